"""The driver, its Fabric Manager, the GPUs' settings and reboots, on a host with NVSwitches and one without.

One story on two hosts: bare, set, changed by hand, rebooted, broken, upgraded, downgraded. Each test goes on where the one
before it ended.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from rehearsal import Run, Site, wait_until
from snapshot import difference, snapshot

SWITCHED, JOINED = "node-1", "node-2"  # 8 GPUs behind NVSwitches; 4 that are joined directly
HOSTS = (SWITCHED, JOINED)
STAGES = ("--stage", "host,driver,gpu")
INVENTORY = {
    "hosts.yml": "serving:\n  children:\n    a:\n      hosts: { node-1: }\n    b:\n      hosts: { node-2: }\n",
    "host_vars/node-1.yml": 'gpu_application_clocks: { 2: "2619,1830" }\ngpu_power_limit: { 1: 450 }\n',
    "host_vars/node-2.yml": "hardware_profile: 4xa100-80\ngpu_compute_mode: Exclusive_Process\n",
    # What the host stage installs for the later ones takes minutes, and nothing here needs it.
    "group_vars/serving/lean.yml": "host_packages: [pciutils]\n",
}
INSTALLED = (
    "dpkg-query --show --showformat '${Package} ${Version} ${db:Status-Abbrev}\\n' | grep -E 'nvidia|^libcuda|^cuda'"
)


@pytest.fixture(scope="module")
def site(make_site: Callable[[str], Site]) -> Site:
    """Two bare hosts of two hardware profiles, each a replica of its own."""
    made = make_site("driver")
    serving = made.directory / "group_vars/serving.yml"
    text = re.sub(r"(?m)^vllm_executor:.*\n", "", serving.read_text(encoding="utf-8"))
    serving.unlink()
    made.variables("group_vars/serving/all.yml", re.sub(r"(?m)^(vllm_tensor_parallel_size:) 2", r"\1 1", text))
    for file, content in INVENTORY.items():
        made.variables(file, content)
    made.up()
    return made


def run(site: Site, *options: str, code: int = 0) -> Run:
    return site.bootstrap(*STAGES, *options, code=code)


def foretold(site: Site) -> dict[str, list[str]]:
    """What check mode said, once a run has done exactly that, and another has found nothing more to do."""
    said = run(site, "--check", code=2).changes()
    assert run(site).changes() == said
    assert run(site).changes() == {}
    return said


def installed(site: Site, host: str) -> dict[str, str]:
    """The packages of drivers: version and state."""
    return dict(line.split(" ", 1) for line in site.sh(host, INSTALLED).splitlines())


def boot(site: Site, host: str) -> str:
    return site.sh(host, "cat /proc/sys/kernel/random/boot_id").strip()


def smi(site: Site, host: str, field: str) -> list[str]:
    return site.sh(host, f"nvidia-smi --query-gpu={field} --format=csv,noheader").splitlines()


def stack(site: Site, version: str) -> None:
    lock = site.directory / "stack.lock.yml"
    lock.write_text(re.sub(r"(?m)^(  driver:) \S+", rf"\1 {version}", lock.read_text("utf-8")), encoding="utf-8")


def test_two_bare_hosts_get_what_each_needs(site: Site) -> None:
    said = foretold(site)
    assert "driver: Installed libnvidia-nscq, nvidia-fabricmanager, nvidia-open of driver 580.126.20." in said[SWITCHED]
    assert "driver: Installed nvidia-open of driver 580.126.20." in said[JOINED]
    for host in HOSTS:
        assert set(installed(site, host).values()) == {"580.126.20-1 hi "}
        assert set(smi(site, host, "persistence_mode")) == {"Enabled"}
    assert set(smi(site, SWITCHED, "fabric.state")) == {"Completed"}
    assert "nvidia-fabricmanager" not in installed(site, JOINED)


BY_HAND = {
    SWITCHED: {
        "rm /etc/modprobe.d/provision-nouveau.conf": ["driver: Wrote /etc/modprobe.d/provision-nouveau.conf."],
        "rm /etc/apt/apt.conf.d/52-provision-nvidia": ["driver: Wrote /etc/apt/apt.conf.d/52-provision-nvidia."],
        "rm /etc/apt/preferences.d/provision-nvidia": ["driver: Wrote /etc/apt/preferences.d/provision-nvidia."],
        "apt-mark unhold nvidia-open": ["driver: Held the packages of driver 580.126.20 against upgrades."],
        "systemctl stop nvidia-fabricmanager": ["driver: Started nvidia-fabricmanager.service."],
        "nvidia-smi -i 2 -rac": ["gpu: Set the application clocks of GPU 2 to 2619 MHz of memory and 1830 MHz."],
        "nvidia-smi -i 3 -ac 2619,1500": ["gpu: Set the application clocks of GPU 3 back to the card's own."],
        "nvidia-smi -i 1 -pl 300": ["gpu: Set the power limit of GPU 1 to 450 W."],
        "nvidia-smi -i 5 -e 0": ["gpu: Enabled ECC mode of GPU 5."],
    },
    JOINED: {
        "apt-get install -qq -y nvidia-fabricmanager=580.126.20-1 2>&1": [
            "driver: Removed nvidia-fabricmanager (no NVSwitches here)."
        ],
        "apt-get install -qq -y nvidia-driver-pinning-580 2>&1": [
            "driver: Removed nvidia-driver-pinning-580 (another pin)."
        ],
        "nvidia-smi -c DEFAULT": ["gpu: Set the compute mode of GPUs 0, 1, 2, 3 to Exclusive_Process."],
    },
}


def test_what_was_changed_by_hand_is_repaired_and_nothing_else(site: Site) -> None:
    before = {host: snapshot(site, host) for host in HOSTS}
    for host, broken in BY_HAND.items():
        site.sh(host, " && ".join(broken))
    said = foretold(site)
    assert {host: sorted(sentences) for host, sentences in said.items()} == {
        host: sorted(sentence for sentences in broken.values() for sentence in sentences)
        for host, broken in BY_HAND.items()
    }
    for host in HOSTS:
        assert difference(before[host], snapshot(site, host)) == {}


def test_a_reboot_loses_nothing(site: Site) -> None:
    before = {host: snapshot(site, host) for host in HOSTS}
    for host in HOSTS:
        site.run("lab", "reboot", site.directory, host)
    assert run(site).changes() == {}
    for host in HOSTS:
        assert difference(before[host], snapshot(site, host)) == {}


def test_what_apt_did_behind_our_back_is_undone_without_a_reboot(site: Site) -> None:
    before = {host: boot(site, host) for host in HOSTS}
    site.break_(SWITCHED, "fabric-version")
    site.break_(JOINED, "package-upgraded")
    assert installed(site, SWITCHED)["nvidia-fabricmanager"].startswith("580.126.16-1")
    said = foretold(site)
    assert said[SWITCHED][0] == "driver: Changed nvidia-fabricmanager to driver 580.126.20."
    assert "to driver 580.126.20." in said[JOINED][0]
    for host in HOSTS:
        assert set(installed(site, host).values()) == {"580.126.20-1 hi "}
        assert boot(site, host) == before[host]


def test_a_clock_that_a_card_does_not_list_is_refused_with_the_nearest(site: Site) -> None:
    site.variables("host_vars/node-1.yml", INVENTORY["host_vars/node-1.yml"] + "gpu_locked_clocks: { 0: 1831 }\n")
    refused = run(site, "--limit", SWITCHED, code=1)
    site.variables("host_vars/node-1.yml", INVENTORY["host_vars/node-1.yml"])
    assert "1831 MHz is no clock of these GPUs; the nearest are 1830 and 1845" in refused.text
    assert run(site).changes() == {}


def test_another_driver_waits_until_a_reboot_is_allowed(site: Site) -> None:
    stack(site, "580.159.04")
    before = {host: snapshot(site, host) for host in HOSTS}
    refused = run(site, code=1)
    assert "Driver 580.126.20 is loaded, 580.159.04 is wanted" in refused.text
    assert "reboot_allowed: true" in refused.text
    for host in HOSTS:
        changed = difference(before[host], snapshot(site, host))
        assert [name for name in changed if not name.startswith("files: /var/lib/provision")] == []


def test_an_upgrade_and_the_other_kernel_modules_are_foretold_with_their_reboot(site: Site) -> None:
    before = {host: boot(site, host) for host in HOSTS}
    site.variables("group_vars/serving/reboot.yml", "reboot_allowed: true\n")
    other = INVENTORY["host_vars/node-2.yml"] + "driver_kernel_modules: proprietary\ndriver_pin: package\n"
    site.variables("host_vars/node-2.yml", other)
    site.sh(SWITCHED, "touch /run/reboot-required; echo linux-base > /run/reboot-required.pkgs")
    said = foretold(site)
    why = "driver 580.126.20 is loaded, 580.159.04 is wanted"
    assert f"driver: Rebooted: {why}; linux-base asked for it (/run/reboot-required)." in said[SWITCHED]
    assert f"driver: Rebooted: {why}." in said[JOINED]
    assert "driver: Removed nvidia-kernel-open-dkms, nvidia-open (open kernel modules)." in said[JOINED]
    for host in HOSTS:
        assert boot(site, host) != before[host]
        assert {state.split("-")[0] for state in installed(site, host).values()} == {"580.159.04"}
    assert set(smi(site, SWITCHED, "fabric.state")) == {"Completed"}
    assert "NVIDIA UNIX x86_64 Kernel Module  580.159.04" in site.sh(JOINED, "cat /proc/driver/nvidia/version")
    assert "nvidia-driver-pinning-580.159.04" in installed(site, JOINED)


def test_a_change_that_fails_leaves_the_driver_that_runs(site: Site) -> None:
    stack(site, "580.95.05")
    site.variables("host_vars/node-2.yml", INVENTORY["host_vars/node-2.yml"] + "driver_version: 580.126.99\n")
    before = {host: (boot(site, host), installed(site, host)) for host in HOSTS}
    site.break_(SWITCHED, "module-build-fails")
    failed = run(site, code=1)
    assert "The packages of driver 580.159.04, which is loaded, are back" in failed.text
    assert "Error! Bad return status for module build on kernel" in failed.text
    assert "No package was changed; driver 580.159.04 is loaded and goes on working" in failed.text
    for host in HOSTS:
        assert boot(site, host) == before[host][0]
        now = installed(site, host)
        assert {name: state for name, state in now.items() if "pinning" not in name and " rc" not in state} == {
            name: state for name, state in before[host][1].items() if "pinning" not in name and " rc" not in state
        }
        assert site.sh(host, "dpkg --audit") == ""
        assert smi(site, host, "driver_version")[0] == "580.159.04"


def test_a_downgrade_once_mended_and_ecc_turned_off(site: Site) -> None:
    site.mend(SWITCHED, "module-build-fails")
    site.variables("host_vars/node-2.yml", INVENTORY["host_vars/node-2.yml"] + "gpu_ecc: false\n")
    said = foretold(site)
    assert "driver: Rebooted: driver 580.159.04 is loaded, 580.95.05 is wanted." in said[SWITCHED]
    assert "gpu: Rebooted: ECC mode of GPUs 0, 1, 2, 3 waits to become Disabled." in said[JOINED]
    for host in HOSTS:
        assert set(installed(site, host).values()) == {"580.95.05-1 hi "}
    assert "NVIDIA UNIX Open Kernel Module for x86_64  580.95.05" in site.sh(JOINED, "cat /proc/driver/nvidia/version")
    assert set(smi(site, JOINED, "ecc.mode.current")) == {"Disabled"}


def test_a_host_that_does_not_come_back_is_explained_and_taken_up_again(site: Site) -> None:
    site.variables("host_vars/node-2.yml", INVENTORY["host_vars/node-2.yml"] + "reboot_timeout: 15\n")
    site.break_(JOINED, "hang-at-reboot")
    failed = run(site, "--limit", JOINED, code=1)
    assert "was told to reboot and has not come back within 15 s" in failed.text
    assert "Look at its console" in failed.text
    site.mend(JOINED, "hang-at-reboot")
    wait_until("the host answers again", lambda: site.sh(JOINED, "echo up", check=False).strip() == "up")
    assert run(site).changes() == {}
    assert set(smi(site, JOINED, "ecc.mode.current")) == {"Enabled"}
