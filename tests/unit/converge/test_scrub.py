from __future__ import annotations

from types import SimpleNamespace

import pytest

from provision.converge import scrub
from provision.converge.scrub import MASK, Scrubber, secret_values
from provision.inventory.schema import Schema, Spec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the key is s3cret-key.", f"the key is {MASK}."),
        ("s3cret-key-2 and s3cret-key", f"{MASK} and {MASK}"),
        ("nothing of it", "nothing of it"),
        ("abc", "abc"),
    ],
)
def test_text(text, expected):
    assert Scrubber(["s3cret-key", "s3cret-key-2", "abc"]).text(text) == expected


def test_each_line_of_a_key_counts():
    key = "-----BEGIN KEY-----\nAAAABBBB\nCCCCDDDD\n-----END KEY-----\n"
    assert "AAAABBBB" not in Scrubber([key]).text("key: |\n    AAAABBBB\n    CCCCDDDD\n")


def test_values_of_every_shape():
    said = {"a": ["xx s3cret-key", 3, None, {"s3cret-key": ("s3cret-key",)}]}
    assert Scrubber(["s3cret-key"]).value(said) == {"a": [f"xx {MASK}", 3, None, {"s3cret-key": [MASK]}]}


def test_which_values_are_secret(monkeypatch):
    deep = Spec(
        "list", "r", "list", options={"password": Spec("password", "r", secret=True), "name": Spec("name", "r")}
    )
    specs = {"token": Spec("token", "r", secret=True), "plain": Spec("plain", "r"), "list": deep}
    monkeypatch.setattr(scrub, "load_schema", lambda _root: Schema(specs, {}, {}))
    variables = {
        "token": " tttttt\n",
        "plain": "pppppp",
        "list": [{"name": "nnnnnn", "password": "dddddd"}],
        "vault_all": {"a": "vvvvvv", "b": [123456]},
        "vault_user": "gpu-01",
        "ansible_become_password": "bbbbbb",
        "ansible_host": "10.0.0.1",
    }
    host = SimpleNamespace(variables=variables, defaults={"token": "eeeeee"})
    fleet = SimpleNamespace(hosts={"gpu-01": host}, groups={})
    assert secret_values(fleet) == {"tttttt", "dddddd", "vvvvvv", "123456", "bbbbbb"}
