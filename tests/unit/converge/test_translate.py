from __future__ import annotations

import pytest

from provision.converge.result import Difference
from provision.converge.translate import actions, differences, message


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"msg": "Disk /data has 3 GB."}, "Disk /data has 3 GB."),
        ({"msg": "non-zero return code", "rc": 3, "cmd": ["sh", "x"], "stderr": "a\nb"}, "`sh x` ended with 3:\na\nb"),
        ({"msg": "apt failed", "rc": 100, "stderr": "E: Unable to lock"}, "apt failed\nE: Unable to lock"),
        ({"msg": "apt failed: E: Unable to lock", "rc": 100, "stderr": "E: Unable to lock"}, "apt failed: E: Unable to lock"),
        ({"censored": "hidden"}, "It failed; its output is secret (no_log) and not shown."),
        ({"msg": "MODULE FAILURE: see stdout", "exception": "Traceback\nKeyError: 'x'"}, "The module ended unexpectedly: KeyError: 'x'"),
        ({}, "It failed and gave no reason."),
        (
            {"msg": "One or more items failed", "results": [{"failed": True, "item": "a", "msg": "no"}, {"item": "b"}]},
            "a: no",
        ),
    ],
)  # fmt: skip
def test_message(result, expected):
    assert message(result) == expected


def test_only_the_end_of_a_long_output_is_told():
    said = message({"msg": "non-zero return code", "rc": 1, "cmd": "x", "stderr": "\n".join(map(str, range(50)))})
    assert said.splitlines()[1:] == [str(number) for number in range(42, 50)]


def test_differences_of_our_modules():
    result = {
        "diff": [{"before_header": "vm.swappiness", "after_header": "vm.swappiness", "before": "60", "after": "10"}]
    }
    assert differences(result) == (Difference("vm.swappiness", "60", "10"),)


def test_differences_of_ansibles_own():
    file = {"path": "/x", "diff": {"before": {"path": "/x", "mode": "0644"}, "after": {"path": "/x", "mode": "0600"}}}
    assert differences(file) == (Difference("/x", "mode 0644", "mode 0600"),)
    made = {"path": "/x", "diff": {"before": {"state": "absent"}, "after": {"state": "directory"}}}
    assert differences(made) == (Difference("/x", "absent", "directory"),)
    copy = {"dest": "/y", "diff": [{"before": "", "after": "a\n", "after_header": "/y (content)"}, {}]}
    assert differences(copy) == (Difference("/y", "", "a\n"),)
    same = {"diff": [{"before": "a", "after": "a"}]}
    assert differences(same) == ()


def test_items_that_did_not_change_say_nothing():
    result = {"results": [{"changed": True, "actions": ["Did a."]}, {"changed": False, "actions": ["Did b."]}]}
    assert actions(result) == ("Did a.",)


def test_a_whole_program_is_cut() -> None:
    (difference,) = differences({"diff": [{"before": "", "after": "x" * 100_000, "after_header": "/opt/p"}]})
    assert len(difference.after) < 21_000
    assert difference.after.endswith("(80000 more characters)\n")
