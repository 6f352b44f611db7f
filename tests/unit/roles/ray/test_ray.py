"""Ray: one token for a cluster, and who is missing from it."""

import json

import pytest
from ansible.module_utils.provision_host import HostError, Ran, sha256_text

MEMBERS = {"10.0.0.1": {"host": "a", "gpus": 8}, "10.0.0.2": {"host": "b", "gpus": 8}}
WHOLE = {"10.0.0.1": {"alive": True, "gpus": 8, "head": True}, "10.0.0.2": {"alive": True, "gpus": 8, "head": False}}


@pytest.fixture
def token(role_module):
    module = role_module("ray", "ray_token")

    def converge(path, source=None, value="", check=False, sha256=""):
        wanted = {"path": str(path), "source": source, "value": value}
        wanted["sha256"] = sha256 or (sha256_text(value) if value else "")
        changes = list(module.plan(wanted, check))
        for change in changes if not check else ():
            change.act()
        return [change.action for change in changes]

    return converge


@pytest.fixture
def cluster(role_module):
    return role_module("ray", "ray_cluster")


def test_the_head_makes_a_token_once(token, tmp_path):
    path = tmp_path / "secrets/ray.token"
    assert token(path, check=True) == token(path) == ["Made the token of the Ray cluster."]
    made = path.read_text()
    assert len(made) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert token(path) == []
    path.chmod(0o644)
    assert token(path) == [f"Took {path} out of others' sight."]
    assert (path.read_text(), path.stat().st_mode & 0o777) == (made, 0o600)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert token(path) == [f"Took {path} out of others' sight."]
    assert (path.is_symlink(), path.read_text()) == (False, made)


def test_the_others_copy_it(token, tmp_path):
    path = tmp_path / "ray.token"
    sentence = "Copied the token of the Ray cluster from a."
    assert token(path, "a", "", check=True) == token(path, "a", "t0k3n") == [sentence]
    assert token(path, "a", "t0k3n") == []
    assert token(path, "a", "other") == [sentence]


def test_a_receipt_tells_another_token_by_its_hash(token, tmp_path, role_module, fake_module, monkeypatch):
    path = tmp_path / "ray.token"
    token(path, "a", "t0k3n")
    assert token(path, "a", "", check=True, sha256=sha256_text("t0k3n")) == []
    assert token(path, "a", "", check=True, sha256=sha256_text("other")) != []
    module, given = role_module("ray", "ray_token"), fake_module(path=str(path), source="a", value="t0k3n", sha256="")
    monkeypatch.setattr(module, "AnsibleModule", lambda **_: given)
    monkeypatch.setattr(module, "converge", lambda *_, forget: given.params.update(dict.fromkeys(forget, "forgotten")))
    module.main()
    assert given.params == {"path": str(path), "source": "a", "value": "forgotten", "sha256": sha256_text("t0k3n")}


def test_a_head_without_a_token_is_told(token, tmp_path):
    with pytest.raises(HostError, match="a heads this replica and has no token"):
        token(tmp_path / "ray.token", "a", "")


def test_a_whole_cluster_has_no_troubles(cluster):
    assert cluster.troubles(MEMBERS, [], WHOLE) == []


@pytest.mark.parametrize(
    ("nodes", "word"),
    [
        ({"10.0.0.1": WHOLE["10.0.0.1"]}, "b (10.0.0.2) is not in it"),
        ({**WHOLE, "10.0.0.2": {"alive": False, "gpus": 8, "head": False}}, "b (10.0.0.2) is not in it"),
        ({**WHOLE, "10.0.0.2": {"alive": True, "gpus": 7, "head": False}}, "b (10.0.0.2) offers 7 GPUs, where 8"),
    ],
)
def test_who_is_missing_is_named(cluster, nodes, word):
    (trouble,) = cluster.troubles(MEMBERS, [], nodes)
    assert word in trouble


def test_who_does_not_belong_is_named(cluster):
    nodes = {**WHOLE, "10.0.0.3": {"alive": True, "gpus": 8, "head": False}}
    (trouble,) = cluster.troubles(MEMBERS, [], nodes)
    assert trouble.startswith("10.0.0.3 is in it, which the inventory no longer has")
    assert cluster.troubles(MEMBERS, ["10.0.0.3"], nodes) == []  # of another replica: it leaves when its turn comes
    assert cluster.troubles(MEMBERS, [], {**nodes, "10.0.0.3": {**nodes["10.0.0.3"], "alive": False}}) == []


def test_waiting_ends_when_all_have_joined(cluster, fake_module, module_end, monkeypatch):
    answers = [
        Ran(1, "", "nothing answers at 10.0.0.1:6379: refused\n"),
        Ran(0, json.dumps({"10.0.0.1": WHOLE["10.0.0.1"]}), ""),
        Ran(0, "a warning\n" + json.dumps(WHOLE) + "\n", ""),
    ]
    monkeypatch.setattr(cluster, "run", lambda *_, **__: answers.pop(0))
    monkeypatch.setattr(cluster, "PAUSE_S", 0)
    monkeypatch.setattr(
        cluster, "AnsibleModule", lambda **_: fake_module(command="c", members=MEMBERS, tolerated=[], timeout=60)
    )
    with pytest.raises(module_end) as end:
        cluster.main()
    assert end.value.result == {"failed": False, "changed": False, "nodes": WHOLE}


def test_time_runs_out(cluster, fake_module, module_end, monkeypatch):
    monkeypatch.setattr(cluster, "run", lambda *_, **__: Ran(1, "", "nothing answers at 10.0.0.1:6379: refused\n"))
    monkeypatch.setattr(
        cluster, "AnsibleModule", lambda **_: fake_module(command="c", members=MEMBERS, tolerated=[], timeout=0)
    )
    with pytest.raises(
        module_end, match=r"not whole after 0 s.*nothing answers at 10.0.0.1:6379.*journalctl -u ray-head"
    ):
        cluster.main()
