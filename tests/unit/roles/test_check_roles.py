"""The check that keeps every role's tasks within what a receipt sees."""

import pytest
from programs import ROOT, imported


@pytest.fixture(scope="module")
def script():
    return imported(ROOT / "scripts/check_roles.py")


@pytest.fixture
def complaints(script, tmp_path):
    """What the check says of a role with these tasks."""

    def check(tasks, folder="tasks"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "main.yml").write_text(tasks)
        return [sentence.split(" uses ")[1].split(",")[0] for sentence in script.unseen(tmp_path)]

    return check


def test_the_roles_as_they_are_pass(script):
    assert script.main() == 0


@pytest.mark.parametrize(
    "task",
    [
        "swap_area: {path: /swap, size: 1}",
        "ansible.builtin.assert: {that: true}\n  when: x\n  vars: {a: b}",
        "block: [{text_files: {}}]\n  rescue: [{ansible.builtin.fail: {msg: No.}}]",
    ],
)
def test_our_modules_and_those_that_manage_nothing_are_fine(complaints, task):
    assert complaints(f"- name: X\n  {task}\n") == []


@pytest.mark.parametrize(
    ("task", "refused"),
    [
        ("ansible.builtin.user: {name: x}", "ansible.builtin.user"),
        ("copy: {dest: /x}", "copy"),
        ("community.general.modprobe: {name: x}", "community.general.modprobe"),
        ("text_files: {}\n  notify: Restart", "notify"),
        ("block: [{block: [{ansible.builtin.command: x}]}]", "ansible.builtin.command"),
        ("block: []\n  always: [{ansible.builtin.shell: x}]", "ansible.builtin.shell"),
    ],
)
def test_what_no_receipt_sees_is_refused(complaints, task, refused):
    assert complaints(f"- name: X\n  {task}\n") == [refused]


def test_a_handler_is_a_task_like_any_other(complaints):
    assert complaints("- name: X\n  ansible.builtin.systemd: {name: x}\n", "handlers") == ["ansible.builtin.systemd"]
