"""The module: HAProxy reads new files before they are in place, and what runs is asked what it was given."""

import json
import signal
from pathlib import Path

import pytest
from ansible.module_utils.provision_host import HostError, run, sha256_text


@pytest.fixture
def config(role_module, tmp_path, monkeypatch):
    module = role_module("gateway", "gateway_config")
    monkeypatch.setattr(module, "WORK", str(tmp_path))
    return module


def wanted(gateway, replicas, **more):
    """What the role asks for, as the module sees it."""
    params = {"state": "present", "unit": "provision-gateway.service", **gateway.params(replicas, **more)}
    params["secrets_sha256"] = {name: sha256_text(text) for name, text in params["secrets"].items()}
    return params


def converge(module, params):
    actions = []
    for change in module.plan(params):
        change.act()
        actions.append(change.action)
    return actions


@pytest.fixture
def reloading(config, gateway, monkeypatch):
    """Where systemd would be asked, do what the unit says."""

    def act(argv, **keywords):
        if argv[0] != "systemctl":
            return run(argv, **keywords)
        assert argv == ["systemctl", "reload", "provision-gateway.service"]
        gateway.reload()
        return None

    monkeypatch.setattr(config, "run", act)
    return config


def test_it_comes_to_rest_and_reloads_only_for_another_text(reloading, gateway, replicas):
    params = wanted(gateway, replicas)
    assert converge(reloading, params)[-1] == "Reloaded provision-gateway.service; no connection is cut."
    assert converge(reloading, params) == []
    assert converge(reloading, wanted(gateway, replicas, gateway_request_timeout=60)) == [
        f"Rewrote {gateway.folder}/haproxy.cfg.",
        "Reloaded provision-gateway.service; no connection is cut.",
    ]
    assert gateway.ask(tokens=1).good


def test_a_run_that_was_cut_short_before_the_reload_is_made_good(reloading, gateway, replicas):
    params = wanted(gateway, replicas)
    for change in reloading.plan(params):
        if not change.action.startswith("Reloaded"):
            change.act()
    assert converge(reloading, params) == ["Reloaded provision-gateway.service; no connection is cut."]


def test_what_haproxy_refuses_is_not_put_in_place(reloading, gateway, replicas):
    converge(reloading, wanted(gateway, replicas))
    before = {path.name: path.read_text() for path in gateway.folder.iterdir()}
    with pytest.raises(HostError, match=r"refuses.*nothing was changed.*haproxy.cfg:46\] : unexpected character 'n'"):
        converge(reloading, wanted(gateway, replicas, gateway_request_timeout="never"))
    assert {path.name: path.read_text() for path in gateway.folder.iterdir()} == before
    assert gateway.ask(tokens=1).good


def test_secrets_are_for_root_alone_and_in_no_diff(reloading, gateway, replicas, keys):
    gateway.variables["hostvars"] = {"gpu": {"vllm_api_key": "key-of-the-engine-itself"}}
    params = wanted(gateway, replicas, gateway_keys=keys)
    told = json.dumps([[change.before, change.after, change.action] for change in reloading.plan(params)])
    converge(reloading, params)
    gone = json.dumps([[c.before, c.after] for c in reloading.plan(wanted(gateway, replicas))])
    for word in ("key-of-the-engine-itself", *(key["key"] for key in keys)):
        assert word not in told + gone
    assert {oct(path.stat().st_mode & 0o777) for path in gateway.folder.iterdir()} == {"0o600"}
    assert gateway.folder.stat().st_mode & 0o77 == 0
    # A receipt knows the secret's hash alone, and that is enough to find it as it was left.
    again = {**params, "secrets": {}}
    assert converge(reloading, again) == []
    Path(gateway.folder, "upstream.map").write_text("vllm another\n")
    assert [change.action for change in reloading.plan(again)] == [f"Wrote {gateway.folder}/upstream.map."]


def test_without_a_gateway_its_files_go(config, gateway, replicas):
    gateway.program.send_signal(signal.SIGTERM)
    gateway.program.wait()
    params = {**wanted(gateway, replicas), "state": "absent"}
    assert converge(config, params) == [f"Removed {gateway.folder}/haproxy.cfg."]
    assert converge(config, params) == []


def test_what_never_ran_has_nothing_to_reload(config, gateway, replicas, tmp_path):
    params = {**wanted(gateway, replicas), "folder": str(tmp_path / "etc/gateway"), "socket": str(tmp_path / "none")}
    assert converge(config, params) == [f"Made {tmp_path}/etc/gateway.", f"Wrote {tmp_path}/etc/gateway/haproxy.cfg."]


@pytest.fixture
def shared(gateway):
    """Of two gateways, with an address for both on an interface that this machine does not have."""
    gateway.variables["groups"] = {"gateway": ["gw-00", "gw-01"], "serving": ["gpu"]}
    gateway.variables["hostvars"] = {
        "gpu": {},
        "gw-00": {"ansible_host": "10.9.0.1"},
        "gw-01": {"ray_address": "10.9.0.2"},
    }
    return {"gateway_address": "10.9.0.9/24", "gateway_interface": "nosuch0", "__gateway_tool": "/bin/true"}


def test_gateways_that_share_an_address_know_each_other(gateway, replicas, shared):
    text = wanted(gateway, replicas, **shared)["files"]["keepalived.conf"]
    assert "unicast_src_ip 10.9.0.2\n    unicast_peer {\n        10.9.0.1\n    }" in text
    assert "priority 199" in text
    assert "10.9.0.9/24 dev nosuch0" in text
    assert wanted(gateway, replicas)["files"] == {}


def test_an_address_that_keepalived_refuses_changes_nothing(reloading, gateway, replicas, shared):
    converge(reloading, wanted(gateway, replicas))
    with pytest.raises(HostError, match=r"keepalived refuses its configuration; nothing was changed.*nosuch0"):
        converge(reloading, wanted(gateway, replicas, **shared))
    assert [path.name for path in gateway.folder.iterdir()] == ["haproxy.cfg"]
