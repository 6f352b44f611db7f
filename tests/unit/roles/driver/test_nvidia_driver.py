"""The driver: which packages are wrong, when only a reboot helps, whose key signs."""

import pytest
from ansible.module_utils import provision_driver
from ansible.module_utils.provision_apt import Package
from ansible.module_utils.provision_host import HostError, Ran

WANTED = {"version": "580.126.20", "packages": ["nvidia-open"], "family": ["nvidia-*", "libnvidia-*", "libcuda1"]}
WANTED |= {"kernel_headers": False, "lock_timeout": 1, "url": "https://x/{os}", "suite": "/", "components": []}
WANTED |= {"key": "KEY\n", "reboot_allowed": False}
RIGHT = Package("580.126.20-1", held=True)


@pytest.fixture
def driver(role_module, monkeypatch):
    module = role_module("driver", "nvidia_driver")
    module.state = {"loaded": "580.126.20", "packages": {"nvidia-open": RIGHT, "libcuda1": RIGHT}}
    monkeypatch.setattr(module, "loaded_version", lambda: module.state["loaded"])
    monkeypatch.setattr(module, "installed", lambda: module.state["packages"])
    monkeypatch.setattr(module, "file_change", lambda path, text: iter(()))
    return module


def actions(driver, **changes):
    return [change.action for change in driver.plan({**WANTED, **changes}, check_mode=True)]


def test_a_host_with_the_driver_is_left_alone(driver):
    assert actions(driver) == []


def test_a_bare_host_is_told_all_of_it(driver):
    driver.state.update(loaded="", packages={})
    assert actions(driver) == [
        "Installed nvidia-open of driver 580.126.20.",
        "Held the packages of driver 580.126.20 against upgrades.",
        "Loaded the kernel module nvidia.",
    ]


def test_a_package_upgraded_behind_our_back_is_brought_back(driver):
    others = {"nvidia-container-toolkit": Package("1.17.8-1", False), "libc6": Package("580.1-1", False)}
    driver.state["packages"] |= {"libnvidia-nscq": Package("580.159.04-1", False), **others}
    assert actions(driver)[0] == "Changed libnvidia-nscq to driver 580.126.20."


def test_a_lost_hold_is_a_change_of_its_own(driver):
    driver.state["packages"]["libcuda1"] = Package("580.126.20-1", held=False)
    assert actions(driver) == ["Held the packages of driver 580.126.20 against upgrades."]


def test_another_loaded_version_stops_before_anything_unless_a_reboot_is_allowed(driver):
    driver.state["loaded"] = "580.95.05"
    with pytest.raises(
        HostError, match=r"Driver 580.95.05 is loaded, 580.126.20 is wanted.*driver_reboot_allowed: true"
    ):
        actions(driver)
    assert actions(driver, reboot_allowed=True) == []
    facts = driver.facts({**WANTED, "reboot_allowed": True}, check_mode=False)
    assert facts == {"loaded": "580.95.05", "reboot_reason": "driver 580.95.05 is loaded, 580.126.20 is installed"}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (x)\nGCC 13.2.0",
            "580.159.04",
        ),
        ("580.95.05\n", "580.95.05"),
        (None, ""),
    ],
)
def test_the_loaded_version_is_read(monkeypatch, text, version):
    monkeypatch.setattr(provision_driver, "read_text", lambda path: text)
    assert provision_driver.loaded_version() == version


def test_rows_of_nvidia_smi(monkeypatch):
    answers = [Ran(0, "0, Enabled\n1, Disabled\n", ""), Ran(127, "", "")]
    monkeypatch.setattr(provision_driver, "run", lambda *_, **__: answers.pop(0))
    fields = ["index", "persistence_mode"]
    assert provision_driver.query_gpus(fields)[1] == {"index": "1", "persistence_mode": "Disabled"}
    assert provision_driver.query_gpus(fields) == []


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (
            "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.159\n",
            "Mismatch",
            "mismatch",
        ),
        (
            "Unable to determine the device handle for GPU3: 0000:5D:00.0: Unknown Error\n0\n1\n",
            "Host",
            "Unknown Error. Look",
        ),
    ],
)
def test_a_failing_nvidia_smi_is_quoted_without_its_rows(monkeypatch, said, kind, words):
    monkeypatch.setattr(provision_driver, "run", lambda *_, **__: Ran(15, said, ""))
    with pytest.raises(HostError, match=words) as raised:
        provision_driver.query_gpus(["index"])
    assert kind in type(raised.value).__name__


def test_the_repository_is_named_for_the_hosts_system(monkeypatch):
    release = 'PRETTY_NAME="Ubuntu"\nID=ubuntu\nVERSION_ID="24.04"\n'
    monkeypatch.setattr(provision_driver, "read_text", lambda path: release)
    url, text = provision_driver.repository_text("https://x/{os}/x86_64", "/", [], "/k.asc")
    assert url == "https://x/ubuntu2404/x86_64/"
    assert text.splitlines()[1:] == ["Types: deb", f"URIs: {url}", "Suites: /", "Signed-By: /k.asc"]


def test_a_key_that_is_not_nvidias_is_refused(monkeypatch):
    assert provision_driver.key_id("no key at all") == ""
    with pytest.raises(HostError, match="without TLS"):
        provision_driver.fetch_key("http://x/")


def test_the_fabric_is_waited_for_and_explained(role_module, monkeypatch):
    ready = role_module("driver", "nvidia_ready")
    monkeypatch.setattr(ready, "loaded_version", lambda: "580.126.20")
    monkeypatch.setattr(ready, "installed", lambda: {"nvidia-fabricmanager": Package("580.159.04-1", True)})
    rows = [{"index": "0", "fabric.state": "In Progress", "fabric.status": "N/A"}]
    monkeypatch.setattr(ready, "query_gpus", lambda fields: rows)
    with pytest.raises(HostError, match=r"GPU 0 In Progress.*error 802.*580.159.04-1, the driver 580.126.20"):
        ready.look("580.126.20", True, 0, False)
    rows[0].update({"fabric.state": "Completed", "fabric.status": "Success"})
    assert ready.look("580.126.20", True, 0, False)["fabric"] == ["Completed Success"]
    with pytest.raises(HostError, match=r"wanted is 580.95.05"):
        ready.look("580.95.05", True, 0, False)
    assert ready.look("580.95.05", True, 0, True)["fabric"] == []
