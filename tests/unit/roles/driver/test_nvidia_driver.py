"""The driver: which packages are wrong, when only a reboot helps, whose key signs."""

import os

import pytest
from ansible.module_utils import provision_apt, provision_driver
from ansible.module_utils.provision_apt import Package
from ansible.module_utils.provision_host import HostError, Ran

WANTED = {"version": "580.126.20", "packages": ["nvidia-open"], "family": ["nvidia-*", "libnvidia-*", "libcuda1"]}
WANTED |= {"kernel_headers": False, "lock_timeout": 1, "url": "https://x/{os}", "suite": "/", "components": []}
WANTED |= {
    "key": "KEY\n",
    "reboot_allowed": False,
    "reboot_planned": True,
    "minimum": "580.65.06",
    "kernel_modules": "open",
    "pin": "apt",
}
WANTED |= {"fabric": True, "fabric_packages": ["nvidia-fabricmanager"]}
RIGHT = Package("580.126.20-1", held=True)
RUNNING, NEXT = os.uname().release, "6.1.0-41-amd64"


OPEN, NONE = provision_driver.KernelModule("580.126.20", "open"), provision_driver.KernelModule("", "proprietary")


@pytest.fixture
def driver(role_module, monkeypatch):
    module = role_module("driver", "nvidia_driver")
    module.state = {"loaded": "580.126.20", "flavour": "open", "switches": 4}
    module.state["packages"] = {"nvidia-open": RIGHT, "libcuda1": RIGHT, "nvidia-fabricmanager": RIGHT}
    monkeypatch.setattr(module, "loaded_version", lambda: module.state["loaded"])
    monkeypatch.setattr(
        module, "loaded_module", lambda: module.KernelModule(module.state["loaded"], module.state["flavour"])
    )
    monkeypatch.setattr(module.pci, "nvswitches", lambda: module.state["switches"])
    monkeypatch.setattr(module, "installed", lambda: module.state["packages"])
    monkeypatch.setattr(module, "absent_change", lambda path: iter(()))
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    # As on a host whose next boot starts the kernel that runs; `built` holds the others, by kernel.
    module.state |= {"next": RUNNING, "built": {}}
    monkeypatch.setattr(module, "next_kernel", lambda: module.state["next"])
    monkeypatch.setattr(module, "kernels", lambda: list(dict.fromkeys((RUNNING, module.state["next"]))))
    monkeypatch.setattr(module, "built_module", lambda kernel: module.state["built"].get(kernel, OPEN))
    monkeypatch.setattr(module, "file_change", lambda path, text: iter(()))
    return module


def actions(driver, **changes):
    return [change.action for change in driver.plan({**WANTED, **changes}, check_mode=True)]


def test_a_host_with_the_driver_is_left_alone(driver):
    assert actions(driver) == []


def test_a_bare_host_is_told_all_of_it(driver):
    driver.state.update(loaded="", packages={})
    assert actions(driver) == [
        "Installed nvidia-fabricmanager, nvidia-open of driver 580.126.20.",
        "Held the packages of driver 580.126.20 against upgrades.",
        "Loaded the kernel module nvidia.",
    ]


def test_a_package_upgraded_behind_our_back_is_brought_back(driver):
    others = {"nvidia-container-toolkit": Package("1.17.8-1", False), "libc6": Package("580.1-1", False)}
    driver.state["packages"] |= {"libnvidia-nscq": Package("580.159.04-1", False), **others}
    assert actions(driver)[0] == "Changed libnvidia-nscq to driver 580.126.20."


def test_what_an_upgrade_adds_is_told_too(driver):
    driver.state["packages"] = {"libcuda1": Package("580.95.05-1", held=True)}
    assert actions(driver)[0] == (
        "Changed libcuda1 to driver 580.126.20. Installed nvidia-fabricmanager, nvidia-open of driver 580.126.20."
    )


def test_a_library_that_fits_any_driver_is_left_alone(driver):
    # As seen on a host with H200: hwloc brought it along, from Ubuntu's archive.
    driver.state["packages"] |= {"libxnvctrl0": Package("510.47.03-0ubuntu4.24.04.1", held=False)}
    assert actions(driver, family=[*WANTED["family"], "libxnvctrl*"]) == []


def test_a_package_that_stopped_half_way_is_finished(driver):
    driver.state["packages"]["libcuda1"] = RIGHT._replace(whole=False)
    assert actions(driver)[0] == "Changed libcuda1 to driver 580.126.20."


def test_a_library_removed_by_force_is_brought_back(driver):
    driver.state["packages"]["nvidia-open"] = RIGHT._replace(depends="libcuda1 (= 580.126.20-1)")
    del driver.state["packages"]["libcuda1"]
    (change, _) = driver.plan(WANTED, check_mode=True)
    assert (change.action, change.after) == ("Installed libcuda1 of driver 580.126.20.", "libcuda1: 580.126.20-*\n")


@pytest.mark.parametrize(("loaded", "effect"), [("580.126.20", "none"), ("", "none"), ("580.95.05", "reboot")])
def test_packages_beside_another_loaded_version_mean_a_reboot(driver, loaded, effect):
    driver.state.update(loaded=loaded, packages={})
    changes = list(driver.plan({**WANTED, "reboot_allowed": True}, check_mode=True))
    assert [change.effect for change in changes][:2] == [effect, "none"]


def test_a_lost_hold_is_a_change_of_its_own(driver):
    driver.state["packages"]["libcuda1"] = Package("580.126.20-1", held=False)
    assert actions(driver) == ["Held the packages of driver 580.126.20 against upgrades."]


def test_another_loaded_version_stops_before_anything_unless_a_reboot_is_allowed(driver):
    driver.state["loaded"] = "580.95.05"
    with pytest.raises(HostError, match=r"Driver 580.95.05 is loaded, 580.126.20 is wanted.*reboot_allowed: true"):
        actions(driver)
    assert actions(driver, reboot_allowed=True) == []
    with pytest.raises(HostError, match=r"the plan that is applied names none of this host\. Nothing was changed"):
        actions(driver, reboot_allowed=True, reboot_planned=False)


def test_the_other_flavour_of_the_loaded_version_takes_a_reboot_too(driver):
    driver.state["flavour"] = "proprietary"
    with pytest.raises(HostError, match=r"loaded with proprietary kernel modules, open ones are wanted: that takes"):
        actions(driver)


def test_a_driver_too_old_for_the_deployment_is_refused(driver):
    with pytest.raises(HostError, match=r"Driver 570.211.01 is wanted, but at least 580.65.06 is needed"):
        actions(driver, version="570.211.01")


def test_switches_without_fabric_manager_are_refused(driver):
    with pytest.raises(HostError, match=r"4 NVSwitches are on the PCI bus.*Set hardware_profile"):
        actions(driver, fabric=False)
    driver.state["switches"] = 0
    assert actions(driver, fabric=False) == ["Removed nvidia-fabricmanager (no NVSwitches here)."]


@pytest.mark.parametrize(
    ("flavour", "there", "gone"),
    [
        ("open", "cuda-drivers", "proprietary kernel modules"),
        ("open", "nvidia-kernel-dkms", "proprietary kernel modules"),
        ("open", "nvidia-dkms-580", "proprietary kernel modules"),
        ("open", "nvidia-dkms-580-open", ""),
        ("open", "nvidia-dkms", "proprietary kernel modules"),
        ("open", "nvidia-kernel-open-dkms", ""),
        ("proprietary", "nvidia-open", "open kernel modules"),
        ("proprietary", "nvidia-dkms-open", "open kernel modules"),
        ("proprietary", "nvidia-kernel-dkms", ""),
        ("open", "libnvidia-compute-580", ""),
        ("open", "nvidia-firmware-580-580.126.20", ""),
        ("open", "nvidia-firmware-580-580.95.05", "another branch or origin"),
        ("open", "nvidia-fabricmanager-570", "another branch or origin"),
        ("open", "libnvidia-compute-535-server", "another branch or origin"),
        ("open", "nvidia-driver-580-server-open", "another branch or origin"),
        ("open", "nvidia-driver-pinning-580", "another pin"),
    ],
)
def test_what_may_not_stay_beside_the_driver(driver, flavour, there, gone):
    asked = {"open": ["nvidia-open"], "proprietary": ["cuda-drivers"]}[flavour]
    packages = {there: Package("580.95.05-1", held=False)}
    wanted = {**WANTED, "kernel_modules": flavour, "packages": asked, "family": ["*"]}
    assert driver.unwanted_packages(wanted, packages) == ({there: gone} if gone else {})
    assert (there in driver.wanted_packages(wanted, packages)) is not bool(gone)


def test_the_other_flavour_goes_in_the_transaction_that_brings_the_wanted_one(driver, monkeypatch):
    calls = []
    monkeypatch.setattr(driver, "install", lambda missing, *_, alone, without: calls.append((missing, without)))
    monkeypatch.setattr(driver, "run", calls.append)
    driver.state["built"] = {RUNNING: provision_driver.KernelModule("580.126.20", "proprietary")}
    wanted = {**WANTED, "kernel_modules": "proprietary", "packages": ["cuda-drivers"], "reboot_allowed": True}
    changes = list(driver.plan(wanted, check_mode=False))
    for change in changes:
        change.act()
    assert [(change.action, change.effect) for change in changes[:2]] == [
        ("Installed cuda-drivers of driver 580.126.20.", "reboot"),
        ("Removed nvidia-open (open kernel modules).", "none"),
    ]
    assert calls[0] == ({"cuda-drivers": "580.126.20-*"}, ["nvidia-open"])


def test_nvidias_own_pin_is_installed_first_and_held(driver, monkeypatch):
    driver.state["packages"]["nvidia-driver-pinning-580.95.05"] = Package("580.95.05-1", held=True)
    assert actions(driver, pin="package") == [
        "Installed nvidia-driver-pinning-580.126.20.",
        "Held the packages of driver 580.126.20 against upgrades.",
    ]
    assert actions(driver) == ["Removed nvidia-driver-pinning-580.95.05 (another pin)."]


BEFORE = {"nvidia-open": Package("580.95.05-1", True), "libcuda1": Package("580.95.05-1", True)}


@pytest.fixture
def failing(driver, monkeypatch):
    """An upgrade from 580.95.05 that fails, after it left the packages as `driver.after` says."""
    driver.state.update(loaded="580.95.05", packages=BEFORE)
    driver.after, driver.calls = BEFORE, []

    def install(missing, *_, **more):
        driver.calls.append((missing, more["without"]))
        if len(driver.calls) == 1 or driver.after == {}:
            driver.state["packages"] = driver.after
            raise HostError("apt-get install failed.")

    monkeypatch.setattr(driver, "install", install)
    monkeypatch.setattr(driver, "run", driver.calls.append)
    return driver


def test_an_upgrade_that_failed_before_it_began_says_so(failing):
    with pytest.raises(HostError, match=r"failed\.\nNo package was changed; driver 580.95.05 is loaded and goes on"):
        failing.transact(WANTED, {}, [])
    assert len(failing.calls) == 1


def test_an_upgrade_that_broke_in_the_middle_is_undone(failing):
    failing.after = {"nvidia-open": RIGHT._replace(whole=False), "libcuda1": RIGHT, "libnvidia-new": RIGHT}
    with pytest.raises(HostError, match=r"The packages of driver 580.95.05, which is loaded, are back"):
        failing.transact(WANTED, {}, [])
    assert failing.calls[1:] == [
        (dict.fromkeys(BEFORE, "580.95.05-1"), ["libnvidia-new"]),
        ["apt-mark", "hold", "libcuda1", "nvidia-open"],
    ]


def test_an_upgrade_that_an_earlier_run_had_done_is_undone_too(failing):
    """Apt fails at once, but the packages are not those of the loaded driver: this is no host that goes on working."""
    failing.state["packages"] = failing.after = {"nvidia-open": RIGHT, "libcuda1": RIGHT}
    with pytest.raises(HostError, match=r"The packages of driver 580.95.05, which is loaded, are back"):
        failing.transact(WANTED, {}, [])
    assert failing.calls[1] == (dict.fromkeys(BEFORE, "580.95.05-*"), [])


def test_an_upgrade_that_cannot_be_undone_says_what_to_do(failing):
    failing.after = {}
    with pytest.raises(HostError, match=r"Do not reboot this host.*apt-get install .* libcuda1=580.95.05-1"):
        failing.transact(WANTED, {}, [])


@pytest.mark.parametrize(
    "said",
    [
        "E: Unable to locate package linux-headers-6.1.0-9",
        "E: Package 'linux-headers-6.1' has no installation candidate",
    ],
)
def test_headers_that_are_gone_are_explained(driver, monkeypatch, said):
    def install(*_, **__):
        raise HostError(f"apt-get install failed. It said last: {said}")

    monkeypatch.setattr(driver, "install", install)
    with pytest.raises(HostError, match=rf"do not have the headers of Linux {RUNNING}, which runs.*reboot the host"):
        driver.transact({**WANTED, "kernel_headers": True}, {}, [])


HEADERS = {f"linux-headers-{kernel}": Package("6.1.1-1", held=False) for kernel in (RUNNING, NEXT)}


@pytest.fixture
def newer(driver, monkeypatch):
    """An upgrade from 580.95.05, where the next boot starts another kernel; apt's lists have `offered`, and new ones `fetched`."""
    driver.state.update(loaded="580.95.05", next=NEXT, packages=BEFORE | HEADERS)
    driver.offered, driver.fetched, driver.calls = set(HEADERS), set(), []
    monkeypatch.setattr(driver, "has_lists", lambda: True)
    monkeypatch.setattr(driver, "unoffered", lambda names: [name for name in names if name not in driver.offered])

    def fetch(_):
        driver.offered |= driver.fetched
        return bool(driver.fetched)

    def install(missing, *_, **more):
        driver.calls.append((missing, more["without"]))
        version = {name: pattern.replace("*", "1") for name, pattern in missing.items()}
        packages = {name: package for name, package in driver.state["packages"].items() if name not in more["without"]}
        driver.state["packages"] = packages | {name: Package(number, True) for name, number in version.items()}

    def run(argv, **_):
        driver.calls.append(argv)
        return Ran(10, "Building module:\n", "Error! Bad return status for module build\n")

    monkeypatch.setattr(driver, "fetch_lists", fetch)
    monkeypatch.setattr(driver, "install", install)
    monkeypatch.setattr(driver, "run", run)
    monkeypatch.setattr(provision_apt, "run", run)
    return driver


UPGRADE = {**WANTED, "kernel_headers": True, "reboot_allowed": True, "fabric": False}
UPGRADE |= {"packages": ["nvidia-open"], "fabric_packages": []}


def apply(driver, **changes):
    done = []
    for change in driver.plan({**UPGRADE, **changes}, check_mode=False):
        change.act()
        done.append(change.action)
    return done


@pytest.mark.parametrize("check_mode", [False, True])
def test_the_headers_of_the_next_kernel_come_in_the_transaction_too(newer, check_mode):
    newer.state.update(packages=dict(BEFORE), switches=0)
    if check_mode:
        done = [change.action for change in newer.plan(UPGRADE, check_mode=True)]
    else:
        done = apply(newer)
        assert newer.calls[0][0].keys() == {*HEADERS, *BEFORE}
    names = ", ".join(sorted(HEADERS))
    assert done[0] == f"Changed libcuda1, nvidia-open to driver 580.126.20. Installed {names}."


@pytest.mark.parametrize("check_mode", [False, True])
def test_headers_of_the_next_kernel_that_cannot_be_had_stop_everything(newer, check_mode):
    newer.state.update(packages=dict(BEFORE), switches=0)
    newer.offered, newer.fetched = {f"linux-headers-{RUNNING}"}, {"linux-headers-of-others"}
    words = rf"nothing was changed\. .*headers of Linux {NEXT}, which the next boot starts: .*remove linux-image-{NEXT}, and"
    with pytest.raises(HostError, match=words):
        list(newer.plan(UPGRADE, check_mode))
    assert newer.calls == []
    assert actions(newer, reboot_allowed=True, kernel_headers=False, fabric=False)


def test_headers_that_only_new_lists_have_are_no_obstacle(newer):
    newer.state.update(packages=dict(BEFORE), switches=0)
    newer.offered, newer.fetched = set(), set(HEADERS)
    assert apply(newer)


def test_what_lists_that_cannot_be_fetched_lack_is_left_to_apt(newer):
    newer.state.update(packages=dict(BEFORE), switches=0)
    newer.offered = set()
    assert apply(newer)


@pytest.mark.parametrize("had_headers", [False, True])
def test_a_driver_without_a_module_for_the_next_kernel_is_undone(newer, had_headers):
    newer.state.update(packages=BEFORE | (HEADERS if had_headers else {}), switches=0, built={NEXT: NONE})
    with pytest.raises(HostError, match=r"packages of driver 580.95.05, which is loaded, are back") as raised:
        apply(newer)
    assert f"Linux {NEXT}, which the next boot starts, is none, not 580.126.20 (open)" in str(raised.value)
    assert "dkms said: Building module: Error! Bad return status" in str(raised.value)
    assert newer.calls[1:] == [
        ["dkms", "autoinstall", "-k", NEXT],
        (dict.fromkeys(BEFORE, "580.95.05-1"), [] if had_headers else [f"linux-headers-{NEXT}"]),
        ["apt-mark", "hold", "libcuda1", "nvidia-open"],
    ]
    assert newer.state["packages"].keys() >= {*BEFORE, f"linux-headers-{RUNNING}"}


def test_a_run_that_was_killed_after_the_transaction_ends_as_one_that_was_not(newer):
    """The packages are whole, the next kernel has no module: what was to judge that was killed."""
    whole = {name: package._replace(version="580.126.20-1") for name, package in BEFORE.items()}
    newer.state.update(packages=whole | HEADERS, switches=0, built={NEXT: NONE})
    assert [change.action for change in newer.plan(UPGRADE, check_mode=True)] == [
        f"Built the kernel module nvidia for Linux {NEXT}."
    ]
    with pytest.raises(HostError, match=r"packages of driver 580.95.05, which is loaded, are back"):
        apply(newer)
    assert newer.calls[1][0] == dict.fromkeys(BEFORE, "580.95.05-*")


def test_a_working_host_is_not_asked_for_a_module_of_the_next_kernel(newer):
    newer.state.update(loaded="580.126.20", packages={"nvidia-open": RIGHT} | HEADERS, switches=0, built={NEXT: NONE})
    assert apply(newer) == []


def test_headers_are_asked_of_apts_lists(monkeypatch):
    said = "a:\n  Installed: (none)\n  Candidate: 6.1\nb:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n"
    monkeypatch.setattr(provision_apt, "run", lambda argv: Ran(0, said, ""))
    assert provision_apt.unoffered(["a", "b", "c"]) == ["b", "c"]


def test_a_link_to_a_kernel_that_is_gone_starts_nothing(monkeypatch):
    links = {"/vmlinuz": "/boot/vmlinuz-6.1.0-9-amd64", "/boot/vmlinuz": f"/boot/vmlinuz-{NEXT}"}
    there = set(links)
    monkeypatch.setattr(provision_driver.os.path, "islink", links.__contains__)
    monkeypatch.setattr(provision_driver.os.path, "exists", lambda path: path in there)
    monkeypatch.setattr(provision_driver.os.path, "realpath", links.get)
    assert provision_driver.next_kernel() == "6.1.0-9-amd64"
    assert provision_driver.kernels() == [RUNNING, "6.1.0-9-amd64"]
    there.remove("/vmlinuz")
    assert provision_driver.next_kernel() == NEXT
    there.clear()
    assert provision_driver.kernels() == [RUNNING]


def test_what_secure_boot_keeps_out_is_explained(driver, monkeypatch):
    said = "modprobe: ERROR: could not insert 'nvidia': Key was rejected by service"
    monkeypatch.setattr(driver, "run", lambda *_, **__: Ran(1, "", said))
    with pytest.raises(HostError, match=r"Secure Boot is on.*mokutil --import"):
        driver.load()


def test_a_module_that_was_never_built_is_built_before_it_is_loaded(driver, monkeypatch):
    driver.state["loaded"] = ""
    monkeypatch.setattr(driver.shutil, "which", lambda name: f"/usr/sbin/{name}")
    driver.state["built"] = {RUNNING: NONE}
    assert [sentence.split(" for Linux")[0] for sentence in actions(driver)] == [
        "Built the kernel module nvidia",
        "Loaded the kernel module nvidia.",
    ]


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
    asked = []

    def smi(argv, **_):
        asked.append(argv[1].partition("=")[2].split(","))
        return Ran(0, "".join(", ".join(f"{field} {gpu}" for field in asked[-1]) + "\n" for gpu in (0, 1)), "")

    monkeypatch.setattr(provision_driver, "run", smi)
    wanted = {"persistence_mode": "persistence_mode 1", "index": "index 1"}
    assert provision_driver.query_gpus(list(wanted))[1] == wanted
    assert provision_driver.query_gpus(["fabric.state"])[0] == {"fabric.state": "fabric.state 0"}
    assert asked[0] == asked[1]  # so that whoever remembers has both at once
    assert provision_driver.query_gpus(["serial"]) == [{"serial": "serial 0"}, {"serial": "serial 1"}]
    monkeypatch.setattr(provision_driver, "run", lambda *_, **__: Ran(127, "", ""))
    assert provision_driver.query_gpus(list(wanted)) == []


def test_a_driver_that_does_not_know_all_fields_is_asked_for_less(monkeypatch):
    def smi(argv, **_):
        unknown = 'Field "clocks.applications.memory" is not a valid field to query.\n\n'
        return Ran(2, unknown, "") if "applications" in argv[1] else Ran(0, "Enabled\n", "")

    monkeypatch.setattr(provision_driver, "run", smi)
    assert provision_driver.query_gpus(["persistence_mode"]) == [{"persistence_mode": "Enabled"}]
    with pytest.raises(HostError, match="not a valid field"):
        provision_driver.query_gpus(provision_driver.FIELDS)


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


# The key of Debian 12's releases: public, short, and its id is published.
DEBIANS = """-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEY865UxYJKwYBBAHaRw8BAQdAd7Z0srwuhlB6JKFkcf4HU4SSS/xcRfwEQWzr
crf6AEq0SURlYmlhbiBTdGFibGUgUmVsZWFzZSBLZXkgKDEyL2Jvb2t3b3JtKSA8
ZGViaWFuLXJlbGVhc2VAbGlzdHMuZGViaWFuLm9yZz6IlgQTFggAPhYhBE1k/sEZ
wgKQZ9bnkfjSWFuHg9SBBQJjzrlTAhsDBQkPCZwABQsJCAcCBhUKCQgLAgQWAgMB
Ah4BAheAAAoJEPjSWFuHg9SBSgwBAP9qpeO5z1s5m4D4z3TcqDo1wez6DNya27QW
WoG/4oBsAQCEN8Z00DXagPHbwrvsY2t9BCsT+PgnSn9biobwX7bDDg==
=5NZE
-----END PGP PUBLIC KEY BLOCK-----
"""
DAMAGED = {
    "no key": "no key at all",
    "a letter changed in a signature": DEBIANS.replace("oBsAQCEN8Z00", "oBsAQCEN8Z01"),
    "cut short": DEBIANS[:300],
    "another appended": DEBIANS + DEBIANS,
}


def test_a_key_is_known_by_its_id():
    assert (
        provision_driver.key_id(DEBIANS) == provision_driver.key_id(DEBIANS.replace("\n", "\r\n")) == "F8D2585B8783D481"
    )
    assert not provision_driver.is_nvidias(DEBIANS)


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_key_is_none(text):
    assert provision_driver.key_id(text) == ""


def test_a_key_is_fetched_by_tls_only():
    with pytest.raises(HostError, match="without TLS"):
        provision_driver.fetch_key("http://x/")


def test_a_damaged_key_of_nvidias_is_fetched_again(role_module, monkeypatch, tmp_path):
    module = role_module("driver", "nvidia_driver")
    for name in ("KEYRING", "PREFERENCES", "SOURCES"):
        monkeypatch.setattr(module, name, str(tmp_path / name))
    monkeypatch.setattr(provision_driver, "NVIDIA_KEY_ID", "F8D2585B8783D481")
    monkeypatch.setattr(module, "fetch_key", lambda url: DEBIANS)

    def apply():
        changes = list(module.plan_repository({**WANTED, "key": ""}, check_mode=False))
        for change in changes:
            change.act()
        return [change.action for change in changes]

    assert len(apply()) == 3
    assert apply() == []
    (tmp_path / "KEYRING").write_text(DAMAGED["cut short"])
    assert apply() == [f"Rewrote {tmp_path}/KEYRING."]


READY = {"version": "580.126.20", "fabric": True, "gpus": 1, "timeout": 0}


@pytest.fixture
def ready(role_module, monkeypatch):
    module = role_module("driver", "nvidia_ready")
    module.rows = [{"fabric.state": "Completed", "fabric.status": "Success"}]
    monkeypatch.setattr(module, "loaded_version", lambda: "580.126.20")
    monkeypatch.setattr(module, "installed", lambda: {"nvidia-fabricmanager": Package("580.159.04-1", True)})
    monkeypatch.setattr(
        module, "query_gpus", lambda fields: [{field: row.get(field, "0") for field in fields} for row in module.rows]
    )
    return module


def test_the_fabric_is_waited_for_and_explained(ready):
    expected = {"loaded": "580.126.20", "gpus": 1, "fabric": ["Completed Success"]}
    assert ready.look(READY, False) == ready.look(READY, True) == expected
    ready.rows[0] = {"fabric.state": "In Progress", "fabric.status": "N/A"}
    with pytest.raises(HostError, match=r"GPU 0 In Progress.*error 802.*580.159.04-1, the driver 580.126.20"):
        ready.look(READY, False)
    assert ready.look(READY, True)["fabric"] == ["In Progress N/A"]
    assert ready.look({**READY, "fabric": False}, False)["fabric"] == []


def test_another_driver_than_the_one_wanted_is_not_ready(ready):
    other = {**READY, "version": "580.95.05"}
    with pytest.raises(HostError, match=r"wanted is 580.95.05"):
        ready.look(other, False)
    assert ready.look(other, True)["fabric"] == []


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_lost_gpu_is_never_called_ready(ready, check_mode):
    with pytest.raises(HostError, match=r"shows 1 GPUs of 8.*power cycle"):
        ready.look({**READY, "gpus": 8}, check_mode)
    ready.rows.clear()
    with pytest.raises(HostError, match=r"shows no GPUs\. Compare"):
        ready.look({**READY, "gpus": 0}, check_mode)


def test_what_was_seen_is_noted_for_the_receipt(ready, fake_module, module_end, monkeypatch):
    noted = []
    monkeypatch.setattr(ready, "AnsibleModule", lambda **_: fake_module(**READY))
    monkeypatch.setattr(ready, "record_step", lambda module, facts: noted.append(facts))
    with pytest.raises(module_end) as end:
        ready.main()
    assert noted == [{"loaded": "580.126.20", "gpus": 1, "fabric": ["Completed Success"]}]
    assert end.value.result == {"failed": False, "changed": False, **noted[0]}
