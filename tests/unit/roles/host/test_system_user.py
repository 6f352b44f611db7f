"""The user that serves: each property judged for itself, and corrected while its processes run."""

import grp
import pwd

import pytest

HOME, SHELL = "/var/lib/x", "/usr/sbin/nologin"


@pytest.fixture
def users(role_module, monkeypatch, tmp_path):
    """The module on a host with a user x; what it runs is in `.ran`."""
    module = role_module("host", "system_user")
    monkeypatch.setattr(module, "PASSWD", str(tmp_path / "passwd"))
    monkeypatch.setattr(module, "SHADOW", str(tmp_path / "shadow"))
    module.passwd, module.shadow = tmp_path / "passwd", tmp_path / "shadow"
    module.passwd.write_text(f"root:x:0:0:root:/root:/bin/bash\nx:x:990:980::{HOME}:{SHELL}\n")
    module.shadow.write_text("root:*:1::::::\nx:!:1::::::\n")
    module.groups, module.ran = {"x": 980}, []
    monkeypatch.setattr(module, "group_id", module.groups.get)
    all_of = lambda: [grp.struct_group((name, "x", gid, [])) for name, gid in module.groups.items()]  # noqa: E731
    monkeypatch.setattr(module.grp, "getgrall", all_of)

    def user_of(name):
        lines = [line.split(":") for line in module.passwd.read_text().splitlines()]
        found = [(n, p, int(u), int(g), c, h, s) for n, p, u, g, c, h, s in lines if n == name]
        return pwd.struct_passwd(found[0]) if found else None

    monkeypatch.setattr(module, "user_of", user_of)
    monkeypatch.setattr(module, "run", lambda argv: module.ran.append(" ".join(argv)))
    return module


def told(users, act=False):
    actions = []
    for change in users.plan("x", HOME, SHELL):
        if act:
            change.act()
        actions.append(change.action)
    return actions


def test_a_user_as_it_should_be_is_left_alone(users):
    assert told(users) == []


@pytest.mark.parametrize(("groups", "option"), [({}, "--user-group"), ({"x": 980}, "--gid x")])
def test_a_missing_user_is_made_in_its_group(users, groups, option):
    users.passwd.write_text("root:x:0:0:root:/root:/bin/bash\n")
    users.groups.clear()
    users.groups.update(groups)
    assert told(users, act=True) == ["Made the user x."]
    assert users.ran == [f"useradd --system {option} --no-create-home --home-dir {HOME} --shell {SHELL} x"]


def replace(path, old, new):
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("drift", "action", "command"),
    [
        (lambda users: replace(users.passwd, SHELL, "/bin/sh"), "shell", f"usermod --shell {SHELL} x"),
        (lambda users: replace(users.shadow, "x:!:", "x:$6$h:"), "password", "usermod --password ! x"),
        (lambda users: replace(users.shadow, "x:!:", "x::"), "password", "usermod --password ! x"),
        (lambda users: users.groups.update(x=77, y=980), "group", "usermod --gid x x"),
    ],
)
def test_each_property_is_corrected_for_itself(users, drift, action, command):
    drift(users)
    assert told(users, act=True) == [f"Corrected the {action} of x."]
    assert users.ran == [command]


def test_a_home_is_corrected_where_it_is_written(users):
    replace(users.passwd, HOME, "/else")
    assert told(users) == told(users, act=True) == ["Corrected the home of x."]
    assert users.ran == []
    assert users.passwd.read_text() == f"root:x:0:0:root:/root:/bin/bash\nx:x:990:980::{HOME}:{SHELL}\n"
    assert told(users) == []


@pytest.mark.parametrize(
    ("groups", "actions", "commands"),
    [
        ({}, ["Made the group x."], ["groupadd --system --gid 980 x"]),
        (
            {"y": 980},
            ["Made the group x.", "Corrected the group of x."],
            ["groupadd --system x", "usermod --gid x x"],
        ),
    ],
)
def test_a_group_that_is_gone_is_made_again(users, groups, actions, commands):
    users.groups.clear()
    users.groups.update(groups)
    assert told(users) == told(users, act=True) == actions
    assert users.ran == commands


def test_a_user_of_the_network_has_no_password_here(users):
    users.shadow.write_text("root:*:1::::::\n")
    assert told(users) == []
