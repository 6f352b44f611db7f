"""The simulated nvidia-smi against what the real one printed on a host with two H200 (recorded/)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from provision.lab.hardware import state

RECORDED = Path(__file__).parent / "recorded"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user may not change a GPU")

# What moves from one second to the next, or is this one card's own history.
MOVING = (
    "Timestamp|Virtualization Mode|Tx Throughput|Rx Throughput|Free|DRAM Correctable|Correctable Error|Temp|Power Draw|"
    "Graphics|SM|Video|timestamp|virtualization_mode|tx_util|rx_util|free|dram_correctable|remapped_row_corr|\\w*temp\\w*|"
    "\\w+_power_draw|graphics_clock|sm_clock"
)


@pytest.fixture
def recorded_host(ready):
    """The recorded host: two H200 at the addresses, and with the names, that they had."""
    host = ready()
    with host.change() as hardware:
        hardware["gpus"] = hardware["gpus"][:2]
        hardware["profile"]["gpus"]["count"] = 2
        names = ("266807a785fb", "9adfaa209b31")
        for gpu, slot, module, temperature, name in zip(hardware["gpus"], (6, 7), (6, 8), (35, 38), names, strict=True):
            gpu.update(bus_id=f"0000:00:0{slot}.0", uuid=f"GPU-00000000-0000-0000-0000-{name}", module_id=module)
            gpu.update(pdi="0x5d4fdd2ddfc54f5a", serial="1650000000000", temperature=temperature)
    return host


def still(text):
    """The lines without what moves: the value of those is cut off, the rest must be equal to the character."""
    cut = re.sub(rf"(?m)^( *[^:\n]*\b(?:{MOVING})\b[^:\n]*: ).*$", r"\1", text)
    return re.sub(rf"<({MOVING})>[^<]*<", r"<\1><", cut).splitlines()


def test_table_is_the_recorded_one(recorded_host):
    assert squeezed(recorded_host.smi()) == squeezed((RECORDED / "table.txt").read_text(encoding="utf-8"))


def squeezed(table):
    """Without the date and the watts of the moment."""
    return [re.sub(r" +\d+W(?= /)", " 0W", line) for line in table.splitlines()[1:]]


def test_report_is_the_recorded_one(recorded_host):
    first = recorded_host.smi("-q").split("GPU 00000000:00:07.0")[0]
    assert still(first) == still((RECORDED / "report.txt").read_text(encoding="utf-8"))


def test_xml_is_the_recorded_one(recorded_host):
    xml = recorded_host.smi("-q", "-x")
    assert ElementTree.fromstring(xml).findtext("attached_gpus") == "2"  # noqa: S314  # our own
    first = xml.split('\t<gpu id="00000000:00:07.0">')[0]
    assert still(first) == still((RECORDED / "report.xml").read_text(encoding="utf-8"))


def test_links_are_the_recorded_ones(recorded_host):
    assert recorded_host.smi("nvlink", "--status") == (RECORDED / "nvlink.txt").read_text(encoding="utf-8")


H100 = {"name": "NVIDIA H100 80GB HBM3", "nvlinks": 0, "pci_device": "0x2330", "pci_subsystem": "0x16c1"}
H100 |= {"vbios": "96.00.DA.00.0C", "board_part": "695-2G520-0200-000", "gpu_part": "2330-885-A1"}
H100 |= {"inforom": "G520.0200.00.05"}
CPUS = {"h200x2": "0-31", "h100x1": "0-15"}


@pytest.fixture
def like_real(real, ready):
    """A simulated machine with the cards of a recorded one."""
    host = ready("8xh200-141" if real.name == "h200x2" else "8xh800-80")
    with host.change() as hardware:
        profile, cards = hardware["profile"], hardware["gpus"]
        del cards[len(real.probe["gpus"]) :]
        profile["gpus"] |= {"count": len(cards)} | (H100 if real.name == "h100x1" else {})
        profile.update(rdma=[], numa_nodes=[CPUS[real.name]])
        for place, (gpu, module) in enumerate(zip(cards, (6, 8), strict=False)):
            gpu.update(bus_id=f"0000:00:0{6 + place}.0", module_id=module, serial=f"{3 * place + 1:013}")
            gpu.update(uuid=f"GPU-00000000-0000-0000-0000-{3 * place + 2:012}", pdi=f"0x{3 * place + 3:016}")
            gpu.update(fabric="Completed" if real.name == "h200x2" else "N/A")
    return host


def settled(asked, text):
    """An answer without the values of the moment."""
    if asked[0] == "-q":
        return still(text)
    fields = asked[0].removeprefix("--query-gpu=").split(",")
    moves = [place for place, name in enumerate(fields) if re.search("power.draw|temperature|clocks.*sm$", name)]
    rows = [line.split(", ") for line in text.splitlines()]
    return [[cell for place, cell in enumerate(row) if place not in moves] for row in rows]


def test_every_question_of_ours_is_answered_as_real_cards_do(real, like_real):
    assert len(real.queries) > 8
    for asked in real.queries:
        done = like_real.run("nvidia_smi", *asked["argv"])
        assert done.returncode == asked["rc"]
        assert settled(asked["argv"], done.stdout) == settled(asked["argv"], asked["out"]), asked["argv"]


def test_query_prints_canonical_names_and_units(recorded_host):
    wanted = "index,name,uuid,pci.bus_id,persistence_mode,memory.total,power.limit,clocks.sm,fabric.state,fan.speed"
    assert recorded_host.smi(f"--query-gpu={wanted}", "--format=csv", "-i", "0").splitlines() == [
        "index, name, uuid, pci.bus_id, persistence_mode, memory.total [MiB], power.limit [W], clocks.current.sm [MHz], "
        "fabric.state, fan.speed [%]",
        "0, NVIDIA H200, GPU-00000000-0000-0000-0000-266807a785fb, 00000000:00:06.0, Enabled, 143771 MiB, 700.00 W, "
        "345 MHz, Completed, [N/A]",
    ]
    bare = recorded_host.smi("--query-gpu", "index,memory.total", "--format=csv,noheader,nounits")
    assert bare == "0, 143771\n1, 143771\n"


def test_supported_clocks(recorded_host):
    lines = recorded_host.smi("--query-supported-clocks=mem,gr", "--format=csv", "-i", "1").splitlines()
    assert lines[:3] == ["memory [MHz], graphics [MHz]", "3201 MHz, 1980 MHz", "3201 MHz, 1965 MHz"]
    assert len(lines) == 1 + 2 * 110


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--query-gpu=bogus.field", "--format=csv"], 2, 'Field "bogus.field" is not a valid field to query.\n\n'),
        (["-i", "9", "-q"], 6, "No devices were found\n"),
    ],
)
def test_errors_are_the_recorded_ones(recorded_host, arguments, status, said):
    done = recorded_host.run("nvidia_smi", *arguments)
    assert (done.returncode, done.stdout) == (status, said)


def test_no_driver_and_another_driver(bare, ready):
    done = bare("8xh20-96").run("nvidia_smi")
    assert done.returncode == 9
    assert done.stdout.startswith("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.")
    done = ready().run("nvidia_smi", "-L", version="580.95.05")
    assert done.returncode == 18
    assert done.stdout == "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95\n"


def test_a_lost_gpu_is_named_and_the_others_answer(ready):
    host = ready()
    with host.change() as hardware:
        hardware["gpus"][3]["lost"] = True
    done = host.run("nvidia_smi", "-L")
    lines = done.stdout.splitlines()
    assert done.returncode == 15
    assert lines[0] == "Unable to determine the device handle for GPU3: 0000:5D:00.0: Unknown Error"
    assert len(lines) == 8


@needs_root
def test_a_lock_is_read_back_from_the_clock(ready):
    host = ready("8xh20-96")
    assert host.smi("-i", "3", "-lgc", "1830,1830") == (
        'GPU clocks set to "(gpuClkMin 1830, gpuClkMax 1830)" for GPU 00000000:5D:00.0\nAll done.\n'
    )
    clocks = host.smi("--query-gpu=clocks.sm", "--format=csv,noheader,nounits").split()
    assert clocks == ["345", "345", "345", "1830", "345", "345", "345", "345"]
    host.smi("-i", "3", "-rgc")
    assert host.smi("--query-gpu=clocks.sm", "--format=csv,noheader", "-i", "3") == "345 MHz\n"


@needs_root
def test_a_memory_lock_is_told_and_a_wrong_range_refused(ready):
    host = ready("8xh20-96")
    assert host.smi("-i", "3", "-lmc", "2619") == (
        'Memory clocks set to "(memClkMin 2619, memClkMax 2619)" for GPU 00000000:5D:00.0\nAll done.\n'
    )
    assert host.run("nvidia_smi", "-i", "3", "-lmc", "2619,1593").returncode == 2


@needs_root
def test_without_persistence_a_setting_is_lost_at_once(ready):
    host = ready()
    host.smi("-pm", "0")
    said = host.smi("-i", "0", "-pl", "600")
    assert "was set to 600.00 W from 700.00 W." in said
    assert "Warning: persistence mode is disabled on device 00000000:18:00.0." in said
    assert host.smi("-i", "0", "--query-gpu=power.limit", "--format=csv,noheader") == "700.00 W\n"


@needs_root
def test_a_power_limit_beyond_the_card_is_refused(ready):
    done = ready().run("nvidia_smi", "-pl", "900")
    assert done.returncode == 2
    assert "should be between 200.00 W and 700.00 W for GPU 00000000:18:00.0" in done.stdout


@needs_root
def test_ecc_waits_for_the_next_boot(ready):
    host = ready()
    host.smi("-e", "0")
    query = ("--query-gpu=ecc.mode.current,ecc.mode.pending", "--format=csv,noheader", "-i", "0")
    assert host.smi(*query) == "Enabled, Disabled\n"
    with host.change() as hardware:
        state.reboot(hardware)
    assert host.smi(*query) == "Disabled, Disabled\n"


def test_topology_of_boards_with_and_without_nvswitches(ready):
    rows = ready("4xa100-80").smi("topo", "-m").splitlines()
    assert rows[1].split("\t")[:6] == ["GPU0", " X ", "NV4", "NV4", "NV4", "PHB"]
    assert ready("8xh800-80").smi("topo", "-m").splitlines()[2].split("\t")[:3] == ["GPU1", "NV8", " X "]
