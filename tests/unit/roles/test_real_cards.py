"""The roles' modules over what real cards answered."""

import pytest
from ansible.module_utils import provision_driver, provision_gpu, provision_pci, provision_rdma
from ansible.module_utils.provision_host import HostError

LOADED = "580.159.04"
GPUS = {"h200x2": "GPUs 0, 1", "h100x1": "GPU 0"}
COUNT = {"h200x2": 2, "h100x1": 1}
MEMORY = {"h200x2": 3201, "h100x1": 2619}


@pytest.fixture(autouse=True)
def there(real, monkeypatch, tmp_path):
    """The modules ask the recorded machine."""
    for module in (provision_driver, provision_gpu):
        monkeypatch.setattr(module, "run", real.run)
    monkeypatch.setattr(provision_driver, "read_text", real.read)
    monkeypatch.setattr(provision_pci, "SYS", real.lay_out(tmp_path))


@pytest.fixture
def settings(role_module, monkeypatch, tmp_path):
    module = role_module("gpu", "gpu_settings")
    monkeypatch.setattr(module, "units", lambda unit: {module.DAEMON: {"ActiveState": "active"}})
    monkeypatch.setattr(module, "RECORD", str(tmp_path / "record.json"))

    def plan(**wanted):
        nothing = {name: {} for name in provision_gpu.BY_GPU} | {"compute_mode": "Default", "ecc": True, "mig": False}
        rows = []
        wanted = {**nothing, "expected": {}, "restored_by": "", **wanted}
        sentences = [change.action for change in module.plan(wanted, True, rows)]
        return sentences, module.pending(rows, wanted, True)

    return plan


def test_cards_as_they_come_need_nothing(settings):
    assert settings() == ([], [])


def test_every_setting_is_foretold(real, settings):
    every = {"locked_clocks": {"all": 1965}, "memory_clocks": {"all": MEMORY[real.name]}, "power_limit": {"all": 200}}
    every |= {"application_clocks": {"0": f"{MEMORY[real.name]},1965"}, "compute_mode": "Exclusive_Process"}
    sentences, pending = settings(**every, ecc=False, mig=True)
    assert sentences == [
        f"Set the power limit of {GPUS[real.name]} to 200 W.",
        f"Set the compute mode of {GPUS[real.name]} to Exclusive_Process.",
        f"Disabled ECC mode of {GPUS[real.name]}.",
        f"Enabled MIG mode of {GPUS[real.name]}.",
        f"Locked the graphics clock of {GPUS[real.name]} at 1965 MHz.",
        f"Locked the memory clock of {GPUS[real.name]} at {MEMORY[real.name]} MHz.",
        f"Set the application clocks of GPU 0 to {MEMORY[real.name]} MHz of memory and 1965 MHz.",
    ]
    assert pending == [f"ECC mode of {GPUS[real.name]} becomes Disabled with the next reset of the GPU or reboot."]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"locked_clocks": {"all": 1964}}, "1964 MHz is no clock of these GPUs; the nearest are 1950 and 1965"),
        ({"memory_clocks": {"all": 2400}}, "2400 MHz is no clock of these GPUs; the"),
        ({"power_limit": {"all": 701}}, "GPU 0 takes power limits from 200.00 to 700.00 W, not 701 W"),
        ({"locked_clocks": {"2": 1965}}, "There is no GPU 2 on this host; it has 0"),
    ],
)
def test_what_these_cards_cannot_is_refused(settings, wanted, words):
    with pytest.raises(HostError, match=words):
        settings(**wanted)


def test_whether_they_can_compute(real, role_module, monkeypatch):
    module = role_module("driver", "nvidia_ready")
    monkeypatch.setattr(module, "installed", dict)
    wanted = {"version": LOADED, "fabric": False, "gpus": COUNT[real.name], "timeout": 0}
    assert module.look(wanted, check_mode=False) == {"loaded": LOADED, "gpus": COUNT[real.name], "fabric": []}
    with pytest.raises(HostError, match=rf"nvidia-smi shows {COUNT[real.name]} GPUs of 8"):
        module.look({**wanted, "gpus": 8}, check_mode=False)
    if real.name == "h200x2":
        fabric = module.look({**wanted, "fabric": True}, check_mode=False)["fabric"]
        assert fabric == ["Completed Success"] * 2
    else:  # a card by itself, without NVSwitches
        with pytest.raises(HostError, match=r"not complete.*GPU 0 N/A N/A.*Fabric Manager is not installed"):
            module.look({**wanted, "fabric": True}, check_mode=False)


def test_when_they_need_a_reboot(real, role_module):
    module = role_module("reboot", "host_reboot")
    wanted = {"driver": LOADED, "kernel_modules": "open", "kernel_parameters": None, "packages": False}
    wanted |= {"gpu_modes": {"ecc": True, "mig": False}, "allowed": True, "planned": True, "after": ""}
    wanted["driver_counts"] = True
    assert list(module.plan(wanted, True, [])) == []
    (change,) = module.plan({**wanted, "driver": "580.178.04", "gpu_modes": {"ecc": False, "mig": True}}, True, [])
    why = f"driver {LOADED} is loaded, 580.178.04 is wanted; ECC mode of {GPUS[real.name]} waits to become Disabled"
    assert change.action == f"Rebooted: {why}."
    # There the inventory called the machine otherwise than it calls itself, and the command told would have found no host.
    with pytest.raises(HostError, match=r"--limit with its name in the inventory\.$"):
        list(module.plan({**wanted, "driver": "580.178.04", "allowed": False}, True, []))


def test_where_they_sit(real, role_module, monkeypatch):
    module = role_module("ray", "gpu_numa")
    monkeypatch.setattr(module, "ONLINE", provision_pci.SYS / "devices/system/node/online")
    assert module.gpu_nodes() == [-1] * COUNT[real.name]  # a virtual machine does not say
    assert module.judge(8) == {"nodes": [], "bind": "", "reason": "This host has one NUMA node."}
    cards = provision_pci.gpus()
    assert cards == ["0000:00:06.0", "0000:00:07.0"][: COUNT[real.name]]
    assert provision_pci.distance(*map(provision_pci.place, (cards[0], cards[-1]))) in ("PIX", "PHB")


def test_a_machine_without_adapters_has_no_ports():
    assert provision_rdma.ports() == []
    assert not provision_pci.has_rdma_adapter()
    assert provision_pci.nvswitches() == 0
