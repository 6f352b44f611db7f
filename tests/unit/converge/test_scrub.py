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


@pytest.mark.parametrize(
    ("value", "secrets"),
    [
        ("http://bob:s3cret-1@proxy:3128", {"s3cret-1", "bob:s3cret-1"}),
        ("http://bob:s3%40cret%2F1@proxy", {"s3%40cret%2F1", "s3@cret/1", "bob:s3%40cret%2F1", "bob:s3@cret/1"}),
        ("http://bob:with@sign@proxy/a:b@c", {"with@sign", "bob:with@sign"}),
        ({"site": "URIs: https://bob:apt-pw@mirror/debian\nSuites: trixie\n"}, {"apt-pw", "bob:apt-pw"}),
        ([{"a": ["https://one/", "https://bob:in-deep@two/"]}], {"in-deep", "bob:in-deep"}),
        ("http://a:s3cret-1@one,http://b:s3cret-2@two", {"s3cret-1", "a:s3cret-1", "s3cret-2", "b:s3cret-2"}),
        ("http://bob:pw@proxy", {"bob:pw"}),  # alone it would mask half of every sentence
        ("https://ghp_0123456789abcdef@git/x", {"ghp_0123456789abcdef"}),
        ("https://ghp_0123456789abcdef:x@git/x", {"ghp_0123456789abcdef", "ghp_0123456789abcdef:x"}),
        ("ssh://ubuntu@git/x", set()),  # a login says nothing that is secret, and occurs elsewhere
        ("http://bob:gpu-01@proxy", {"bob:gpu-01"}),
        ("http://proxy:3128/a@b bob:s3cret@x", set()),
    ],
)
def test_credentials_of_urls_are_secret_in_any_variable(monkeypatch, value, secrets):
    monkeypatch.setattr(scrub, "load_schema", lambda _root: Schema({}, {}, {}))
    host = SimpleNamespace(variables={"site_http_proxy": value}, defaults={})
    assert secret_values(SimpleNamespace(hosts={"gpu-01": host}, groups={})) == secrets


def test_a_url_is_shown_without_its_credentials(monkeypatch):
    monkeypatch.setattr(scrub, "load_schema", lambda _root: Schema({}, {}, {}))
    host = SimpleNamespace(variables={}, defaults={"site_http_proxy": "http://bob:s3%40cret@proxy:3128"})
    scrubber = Scrubber(secret_values(SimpleNamespace(hosts={"gpu-01": host}, groups={})))
    assert scrubber.text("+http_proxy=http://bob:s3%40cret@proxy:3128") == f"+http_proxy=http://{MASK}@proxy:3128"
    assert scrubber.text("bob said s3@cret") == f"bob said {MASK}"
