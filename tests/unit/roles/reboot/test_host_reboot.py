"""A reboot: decided from what runs, foretold in the words in which it is done, verified afterwards."""

import pytest
import yaml
from ansible.module_utils import provision_boot_line
from ansible.module_utils.provision_driver import KernelModule, LibraryMismatchError
from ansible.module_utils.provision_host import HostError
from programs import ROLES

OPEN = KernelModule("580.126.20", "open")
WANTED = {"driver": "580.126.20", "kernel_modules": "open", "kernel_parameters": [], "gpu_modes": {}, "packages": True}
WANTED |= {"driver_counts": True, "allowed": True, "planned": True, "after": ""}
MODES = {"gpu_modes": {"ecc": True, "mig": False}}
ROW = {"index": "3", "compute_cap": "9.0", "ecc.mode.current": "Enabled", "ecc.mode.pending": "Enabled"}
ROW |= {"mig.mode.current": "Disabled", "mig.mode.pending": "Disabled"}
OLD = "driver 580.95.05 is loaded, 580.126.20 is wanted"


@pytest.fixture
def reboot(role_module, monkeypatch, tmp_path):
    module = role_module("reboot", "host_reboot")
    module.loaded, module.built, module.rows, module.waiting = OPEN, OPEN, [], []
    module.files = {module.BOOT_ID: "boot-2\n"}
    (tmp_path / "cmdline").write_text("BOOT_IMAGE=/vmlinuz quiet iommu=pt\n")
    monkeypatch.setattr(provision_boot_line, "CMDLINE", str(tmp_path / "cmdline"))
    monkeypatch.setattr(provision_boot_line, "DROP_IN", str(tmp_path / "90-provision.cfg"))
    monkeypatch.setattr(provision_boot_line, "FORMER", str(tmp_path / "former"))
    monkeypatch.setattr(module, "loaded_module", lambda: module.loaded)
    monkeypatch.setattr(module, "built_module", lambda kernel: module.built)
    monkeypatch.setattr(module, "next_kernel", lambda: "6.1.0-31-amd64")
    monkeypatch.setattr(module, "is_nouveau_busy", lambda: module.loaded.version == "" and "nouveau" in module.files)
    monkeypatch.setattr(module, "MODULES", str(tmp_path))
    monkeypatch.setattr(module, "query_gpus", lambda fields: module.rows)
    monkeypatch.setattr(module, "read_text", module.files.get)
    monkeypatch.setattr(module, "ASKED", str(tmp_path / "reboot-required"))
    return module


def told(module, check_mode=False, **changes):
    return [change.action for change in module.plan({**WANTED, **changes}, check_mode, module.waiting)]


def test_a_host_that_runs_what_is_wanted_is_left_alone(reboot):
    assert told(reboot) == told(reboot, check_mode=True, allowed=False) == []


@pytest.mark.parametrize("check_mode", [False, True])
@pytest.mark.parametrize(
    ("loaded", "words"),
    [
        (KernelModule("580.95.05", "open"), OLD),
        (
            KernelModule("580.126.20", "proprietary"),
            "driver 580.126.20 is loaded with proprietary kernel modules, open ones are wanted",
        ),
    ],
)
def test_another_module_than_the_wanted_one(reboot, check_mode, loaded, words):
    reboot.loaded = loaded
    assert told(reboot, check_mode) == [f"Rebooted: {words}."]
    with pytest.raises(HostError, match=rf"since {words}; it is not allowed.*reboot_allowed: true"):
        told(reboot, check_mode, allowed=False)


def test_a_host_without_a_driver_yet_needs_none(reboot):
    reboot.loaded = KernelModule("", "open")
    assert told(reboot, check_mode=True) == []
    reboot.files["nouveau"] = ""
    assert told(reboot, check_mode=True) == ["Rebooted: nouveau holds the GPUs."]


def test_what_can_wait_waits_where_no_reboot_is_allowed(reboot, tmp_path):
    (tmp_path / "reboot-required").touch()
    reboot.files[reboot.ASKED_BY] = "linux-base\nlibc6\nlinux-base\n"
    why = [
        "the kernel was started without intel_iommu=on",
        f"libc6, linux-base asked for it ({tmp_path}/reboot-required)",
    ]
    parameters = ["iommu=pt", "intel_iommu=on"]
    assert told(reboot, kernel_parameters=parameters) == [f"Rebooted: {'; '.join(why)}."]
    assert told(reboot, kernel_parameters=parameters, packages=False) == [f"Rebooted: {why[0]}."]
    assert told(reboot, kernel_parameters=parameters, allowed=False) == []
    assert reboot.waiting == why


@pytest.mark.parametrize(
    ("row", "applied", "foretold"),
    [
        ({}, [], []),
        ({"ecc.mode.current": "Disabled"}, ["ECC mode of GPU 3 waits to become Enabled"], None),
        (
            {"ecc.mode.current": "Disabled", "ecc.mode.pending": "Disabled"},
            [],
            ["ECC mode of GPU 3 waits to become Enabled"],
        ),
        ({"ecc.mode.current": "[N/A]", "ecc.mode.pending": "[N/A]"}, [], []),
        ({"mig.mode.current": "Enabled"}, [], []),
        (
            {"mig.mode.current": "Enabled", "compute_cap": "8.0"},
            ["MIG mode of GPU 3 waits to become Disabled"],
            None,
        ),
    ],
)
def test_modes_of_gpus_that_wait(reboot, row, applied, foretold):
    reboot.rows = [{**ROW, **row}]
    sentences = [f"Rebooted: {reason}." for reason in applied]
    assert told(reboot, **MODES) == sentences
    expected = sentences if foretold is None else [f"Rebooted: {reason}." for reason in foretold]
    assert told(reboot, check_mode=True, **MODES) == expected


def test_gpus_that_cannot_be_asked_yet(reboot, monkeypatch):
    def query(fields):
        raise LibraryMismatchError("version mismatch")

    monkeypatch.setattr(reboot, "query_gpus", query)
    assert told(reboot, check_mode=True, **MODES) == []
    with pytest.raises(LibraryMismatchError):
        told(reboot, **MODES)


@pytest.mark.parametrize(
    ("built", "seen"), [(KernelModule("", "proprietary"), "none"), (KernelModule("580.95.05", "open"), "580.95.05")]
)
def test_no_reboot_into_a_kernel_without_the_driver(reboot, built, seen):
    reboot.loaded, reboot.built = KernelModule("580.95.05", "open"), built
    with pytest.raises(
        HostError, match=rf"Linux 6.1.0-31-amd64, for which.* is {seen}.*Not rebooted.*dkms autoinstall"
    ):
        told(reboot)
    assert told(reboot, check_mode=True) == [f"Rebooted: {OLD}."]


def test_no_reboot_is_foretold_into_a_kernel_for_which_nobody_would_build_the_driver(reboot, tmp_path):
    """The right driver is loaded and the next kernel's headers are there: no earlier task has anything to do."""
    (tmp_path / "reboot-required").touch()
    reboot.built = KernelModule("", "proprietary")
    assert told(reboot, check_mode=True) == [f"Rebooted: packages asked for it ({tmp_path}/reboot-required)."]
    (tmp_path / "6.1.0-31-amd64/build").mkdir(parents=True)
    for check_mode in (False, True):
        with pytest.raises(HostError, match="Not rebooted"):
            told(reboot, check_mode)


def test_a_driver_that_does_not_count_is_looked_for_all_the_same(reboot):
    """As in the stage gpu: check mode has foretold the driver's reboot in the stage before, and this one is for ECC."""
    reboot.rows, reboot.loaded = [{**ROW, "ecc.mode.current": "Disabled"}], KernelModule("580.95.05", "open")
    asked = {**MODES, "driver_counts": False}
    assert told(reboot, check_mode=True, **asked) == ["Rebooted: ECC mode of GPU 3 waits to become Enabled."]
    reboot.loaded = OPEN
    assert told(reboot, **asked) == ["Rebooted: ECC mode of GPU 3 waits to become Enabled."]
    reboot.built = KernelModule("", "proprietary")
    with pytest.raises(HostError, match="Not rebooted"):
        told(reboot, **asked)
    reboot.rows = []
    assert told(reboot, **asked) == []


def test_a_reboot_is_verified(reboot):
    assert told(reboot, after="boot-1") == []
    with pytest.raises(HostError, match="its boot id is still boot-2"):
        told(reboot, after="boot-2")
    reboot.loaded = KernelModule("580.95.05", "open")
    with pytest.raises(HostError, match=rf"boot id boot-1 became boot-2\), and still {OLD}"):
        told(reboot, after="boot-1")


def test_a_kernel_parameter_that_was_taken_out_counts_until_the_reboot(reboot, tmp_path):
    (tmp_path / "90-provision.cfg").write_text('GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX iommu=pt"\n')
    assert told(reboot, kernel_parameters=["iommu=pt"]) == told(reboot, kernel_parameters=None) == []
    assert told(reboot) == ["Rebooted: the kernel was started with iommu=pt, not asked for any more."]


def tasks_that_include(included):
    """Role and task, for each task that includes this role."""
    for file in sorted(ROLES.glob("*/tasks/main.yml")):
        for task in yaml.safe_load(file.read_text()):
            if task.get("ansible.builtin.include_role", {}).get("name") == included:
                yield file.parts[-3], task


def test_no_role_reboots_without_naming_the_driver_that_the_next_kernel_must_have():
    given = {role: task["vars"] for role, task in tasks_that_include("reboot")}
    assert given.keys() == {"driver", "gpu"}
    for names in given.values():
        assert names.keys() >= {"__reboot_driver", "__reboot_kernel_modules"}


def test_the_gpus_are_waited_for_after_the_reboot_of_the_stage_gpu():
    (task,) = (task for role, task in tasks_that_include("driver") if role == "gpu")
    assert yaml.safe_load((ROLES / "gpu/tasks/main.yml").read_text())[-1] == task
    assert task["ansible.builtin.include_role"]["apply"] == {"environment": {"PROVISION_STAGE": ""}}


def test_what_the_applied_plan_does_not_name_waits_though_it_is_allowed(reboot, tmp_path):
    (tmp_path / "reboot-required").touch()
    assert told(reboot, planned=False) == []
    assert reboot.waiting == [f"packages asked for it ({tmp_path}/reboot-required)"]
    reboot.loaded = KernelModule("580.95.05", "open")
    with pytest.raises(HostError, match=rf"since {OLD}; the plan that is applied names none of this host\. Plan again"):
        told(reboot, planned=False)
    with pytest.raises(HostError, match="it is not allowed"):
        told(reboot, planned=False, allowed=False)


def test_the_receipt_keeps_what_the_inventory_allows_and_not_what_a_plan_named(reboot, monkeypatch):
    asked = {}
    monkeypatch.setattr(reboot, "AnsibleModule", lambda argument_spec, **_: argument_spec)
    monkeypatch.setattr(reboot, "converge", lambda spec, *_, forget: asked.update(spec=spec, forget=forget))
    reboot.main()
    assert "planned" in asked["forget"]
    assert asked["spec"]["planned"]["default"] is True
    assert "allowed" not in asked["forget"]
