"""The proof that GPUs reach one another: when it is wanted, how it is judged, and the program around torch."""

import contextlib
import json
import socket
import subprocess
import sys
import time

import pytest
from ansible.module_utils.provision_driver import KernelModule
from ansible.module_utils.provision_host import HostError, Ran
from programs import ROLES, imported

PROGRAM = ROLES / "fabric/files/prove.py"
FOUND = {"ranks": 16, "backend": "nccl", "all_reduce_gb_per_s": 214.6, "paths": {"NET/IB/GDRDMA": 16, "P2P": 112}}
# A torch whose processes meet in a folder, and whose numbers arrive, or do not.
TORCH = """
class Flags(list):
    def sum(self): return sum(self)
class Tensor(list):
    def fill_(self, value): self[:] = [value] * len(self)
    def zero_(self): self.fill_(0)
    def numel(self): return len(self)
    def __ne__(self, value): return Flags(each != value for each in self)
    __hash__ = None
float32 = "float32"
def empty(size, **_): return Tensor([0])
def empty_like(other): return Tensor(other)
"""
GROUP = """
import os, sys, time
class P2POp:
    def __init__(self, kind, tensor, peer): self.kind, self.tensor, self.peer = kind, tensor, peer
    def wait(self): pass
isend, irecv = "send", "recv"
def TCPStore(address, port, world_size, is_master, timeout, use_libuv, master_listen_fd=None):
    if is_master:
        import socket
        assert socket.socket(fileno=master_listen_fd).getsockname() == (address, port)
def init_process_group(backend, store, world_size, rank, timeout):
    global world
    world, folder = world_size, os.environ["MEETING"]
    open(os.path.join(folder, str(rank)), "w").close()
    end = time.monotonic() + float(os.environ.get("PATIENCE", 60))
    while len(os.listdir(folder)) < world:
        if time.monotonic() > end:
            raise TimeoutError("not all came")
        time.sleep(0.01)
    print("a library says hello")
def all_reduce(tensor):
    if any(tensor != 0):
        tensor.fill_(int(os.environ.get("SUM", world * (world + 1) // 2)))
def batch_isend_irecv(works):
    for work in works:
        if work.kind == "recv":
            work.tensor.fill_(work.peer)
    return works
def barrier(): pass
def destroy_process_group(): pass
"""
NCCL = """\
gpu-11:311:402 [0] NCCL INFO Channel 00/0 : 7[7] -> 8[0] [receive] via NET/IB/0/GDRDMA
gpu-11:311:402 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM
gpu-11:311:402 [0] NCCL INFO Channel 01/0 : 0[0] -> 1[1] via P2P/CUMEM/read
gpu-11:311:402 [0] NCCL INFO Channel 01/0 : 8[0] -> 0[0] [send] via NET/Socket/0
gpu-11:311:402 [0] NCCL INFO Channel 02 : 2[2] -> 3[3] via SHM/direct/direct
gpu-11:311:402 [0] NCCL INFO Channel 03/0 : 8[0] -> 0[0] [send] via NET/IBext_v8/3(1)/GDRDMA/Shared
gpu-11:311:402 [0] NCCL INFO Using network IB
"""


@pytest.fixture
def proof(role_module, monkeypatch, tmp_path):
    module = role_module("fabric", "fabric_proof")
    monkeypatch.setattr(module, "GPUS", str(tmp_path / "gpus/*/information"))
    for number in (1, 2):
        card(tmp_path, number, f"GPU-{number}")
    monkeypatch.setattr(module, "WORK", str(tmp_path / "run"))
    monkeypatch.setattr(module, "run", lambda *_, **__: Ran(3, "inactive\n", ""))
    monkeypatch.setattr(module, "host_lock", lambda *_: contextlib.nullcontext())
    return module


@pytest.fixture
def params(tmp_path):
    return {
        "hosts": ["gpu-11", "gpu-12"],
        "first": 8,
        "here": 8,
        "world": 16,
        "master": "10.1.4.71:29511",
        "device": "cuda",
        "based_on": {"driver": "580.95.05"},
        "expect": "gpudirect",
        "minimum": 0,
        "again": False,
        "timeout": 300,
        "record": str(tmp_path / "fabric-proof.json"),
    }


def told(proof, params):
    return [change.action for change in proof.plan(params)]


def prove(proof, params, tmp_path, found=FOUND):
    folder = tmp_path / "run" / proof.UNIT
    folder.mkdir(parents=True)
    (folder / "found.json").write_text(json.dumps(found))
    return proof.end(params)


def card(folder, number, uuid):
    place = folder / f"gpus/0000:{number}9:00.0"
    place.mkdir(parents=True, exist_ok=True)
    (place / "information").write_text(f"Model: \t\t NVIDIA H20\nGPU UUID: \t {uuid}\nBus Type: \t PCIe\n")


def test_what_is_proved_is_not_proved_again_until_something_is_another(proof, params, tmp_path):
    sentence = ["Had the 16 GPUs of gpu-11 and gpu-12 prove that they reach one another."]
    assert told(proof, params) == sentence
    assert proof.end(params) == {}  # nothing was begun
    assert prove(proof, params, tmp_path) == FOUND
    assert told(proof, params) == []
    assert told(proof, {**params, "again": True}) == sentence
    for name, other in (("hosts", ["gpu-11", "gpu-13"]), ("based_on", {"driver": "590"})):
        (change,) = proof.plan({**params, name: other})
        assert change.before == f"{name}: another than was proved\n"
    card(tmp_path, 2, "GPU-9")
    assert told(proof, params) == sentence


def test_another_yardstick_is_held_to_what_was_found(proof, params, tmp_path):
    prove(proof, {**params, "minimum": 200.0}, tmp_path)
    assert told(proof, {**params, "minimum": 100.0}) == told(proof, {**params, "expect": "any"}) == []
    (change,) = proof.plan({**params, "minimum": 400.0})
    assert "214.6 GB/s" in change.before


def test_one_gpu_has_nothing_to_prove_and_no_record(proof, params, tmp_path):
    prove(proof, params, tmp_path)
    alone = {**params, "hosts": ["gpu-11"], "world": 1}
    assert told(proof, alone) == [f"Removed {params['record']}."]


def test_gpus_are_known_by_their_uuids_and_are_none_without_a_driver(proof, monkeypatch):
    assert proof.cards() == ["GPU-1", "GPU-2"]
    monkeypatch.setattr(proof, "GPUS", "/proc/no/such/*")
    assert proof.cards() == []


@pytest.mark.parametrize(
    ("found", "expect", "said"),
    [
        (
            {"error": "rank 8: Timed out waiting for clients. 1/2 clients joined."},
            "any",
            r"1/2 clients.*10\.1\.4\.71:29511",
        ),
        ({"paths": {"NET/Socket": 4}}, "gpudirect", "over TCP"),
        ({"paths": {"NET/Socket": 4}}, "rdma", "over TCP"),
        ({"paths": {"NET/IB": 4}}, "gpudirect", "GPUDirect is off"),
        ({"paths": {"NET/IB": 2, "NET/IB/GDRDMA": 14}}, "gpudirect", "GPUDirect is off"),
        ({"paths": {"P2P": 56}}, "rdma", "no path between hosts"),
        ({"paths": {}}, "gpudirect", "none at all"),
    ],
)
def test_what_is_wrong_is_said_and_not_kept(proof, params, tmp_path, found, expect, said):
    with pytest.raises(HostError, match=f"(?s){said}"):
        prove(proof, {**params, "expect": expect}, tmp_path, {**FOUND, **found})
    assert told(proof, {**params, "expect": expect})


@pytest.mark.parametrize(
    ("paths", "expect"),
    [
        ({"NET/Socket": 4}, "any"),
        ({"NET/IB": 4}, "rdma"),
        ({"NET/IB/GDRDMA": 4, "P2P": 56}, "gpudirect"),
        ({"P2P": 56}, "any"),
    ],
)
def test_what_was_expected_passes(proof, params, tmp_path, paths, expect):
    assert prove(proof, {**params, "expect": expect}, tmp_path, {**FOUND, "paths": paths})["paths"] == paths


def test_too_slow_is_refused_with_its_speed(proof, params, tmp_path):
    with pytest.raises(HostError, match=r"16 GPUs moves 214\.6 GB/s, over NET/IB/GDRDMA, P2P; fabric_minimum is 400\."):
        prove(proof, {**params, "minimum": 400.0}, tmp_path)


def test_a_program_that_said_nothing_is_quoted_from_the_journal(proof, params, tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "journal", lambda *_: "Killed")
    with pytest.raises(HostError, match="Killed"):
        prove(proof, params, tmp_path, {})


def test_one_host_needs_no_path_to_others(proof, params, tmp_path):
    alone = {**params, "hosts": ["gpu-11"], "world": 8}
    assert prove(proof, alone, tmp_path, {**FOUND, "paths": {"P2P": 56}})["paths"] == {"P2P": 56}


def test_processes_without_gpus_tell_no_paths(proof, params, tmp_path):
    found = {**FOUND, "backend": "gloo", "paths": {}}
    assert prove(proof, {**params, "device": "cpu"}, tmp_path, found) == found


def test_only_who_waited_is_sent_to_the_network(proof, params):
    assert "any port" in proof.objection(params, {"error": "rank 0: Timed out waiting for clients."})
    assert "any port" not in proof.objection(params, {"error": "rank 3: GPU 3 has 0.4 GiB free, 2 are needed"})


class Host:
    """A host whose engine runs, by what the module asks of systemd."""

    def __init__(self, proof, monkeypatch, free="512", loaded="580.95.05"):
        self.ran, self.states = [], "inactive\ninactive\nactive\n"
        monkeypatch.setattr(proof, "run", self.run)
        monkeypatch.setattr(proof, "loaded_module", lambda: KernelModule(loaded, "open"))
        monkeypatch.setattr(proof, "query_gpus", lambda _: [{"memory.free": each} for each in ("9000", free, "0")])

    def run(self, argv, **_):
        self.ran.append([str(word) for word in argv])
        return Ran(0, {"is-active": self.states, "show": "inactive\n\n"}.get(argv[1], ""), "")

    def started(self):
        (words,) = [words for words in self.ran if words[0] == "systemd-run"]
        return [word.removeprefix("--property=") for word in words if word.startswith("--property=")]


MORE = {
    "python": "python",
    "program": "prove",
    "user": "vllm",
    "environment_file": "/e",
    "properties": ["A=b"],
    "here": 2,
}
ROOM = ["ExecStartPre=+/usr/bin/systemctl stop vllm", "ExecStopPost=+/usr/bin/systemctl start --no-block vllm"]


@pytest.mark.parametrize(("free", "stops"), [("9000", False), ("512", True)])
def test_an_engine_that_leaves_no_memory_makes_room_by_the_unit_itself(proof, params, monkeypatch, free, stops):
    host = Host(proof, monkeypatch, free)
    proof.begin({**params, **MORE})
    assert "A=b" in host.started()
    assert (set(ROOM) <= set(host.started())) == stops
    assert not any(words[1] in ("stop", "start") for words in host.ran)  # whoever dies now, systemd goes on
    assert not any("=truncate:" in line for line in host.started())  # ExecStopPost would empty what was found


def test_after_a_killed_run_the_engine_makes_room_again(proof, params, monkeypatch):
    Host(proof, monkeypatch)
    proof.begin({**params, **MORE})
    again = Host(proof, monkeypatch, free="9000")  # it was started again just now, and has loaded nothing yet
    proof.clear()
    assert again.ran == [["systemctl", "stop", proof.UNIT]]
    proof.begin({**params, **MORE})
    assert set(ROOM) <= set(again.started())


def test_what_an_earlier_run_began_is_not_taken_for_an_answer(proof, params, monkeypatch):
    Host(proof, monkeypatch)
    proof.begin({**params, **MORE})
    proof.clear()
    assert proof.end(params) == {}


@pytest.mark.parametrize("loaded", ["", "570.1"])
def test_another_driver_than_the_wanted_one_proves_nothing(proof, params, tmp_path, monkeypatch, loaded):
    prove(proof, params, tmp_path)
    Host(proof, monkeypatch, loaded=loaded)
    with pytest.raises(HostError, match=r"Driver 580\.95\.05 is wanted and"):
        proof.begin({**params, **MORE})
    assert told(proof, params) == []  # the record stays


def test_memory_that_is_not_told_is_said_and_the_record_stays(proof, params, tmp_path, monkeypatch):
    prove(proof, params, tmp_path)
    Host(proof, monkeypatch, free="[N/A]")
    with pytest.raises(HostError, match="no free memory of each GPU"):
        proof.begin({**params, **MORE})
    assert told(proof, params) == []


def test_the_paths_that_nccl_tells():
    assert imported(PROGRAM, "roles_fabric_prove").paths(NCCL) == {
        "NET/IB/GDRDMA": 1,
        "NET/Socket": 1,
        "P2P": 2,
        "SHM": 1,
    }


@pytest.fixture
def program(tmp_path, monkeypatch):
    """The program, with a torch that is a stand-in: both hosts on this one."""
    torch, meeting = tmp_path / "site/torch", tmp_path / "meeting"
    torch.mkdir(parents=True)
    meeting.mkdir()
    (torch / "__init__.py").write_text(TORCH)
    (torch / "distributed.py").write_text(GROUP)
    monkeypatch.setenv("PYTHONPATH", str(torch.parent))
    monkeypatch.setenv("MEETING", str(meeting))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def start(first, here=1, world=2, timeout=60):
        words = [f"--first={first}", f"--here={here}", f"--world={world}", f"--timeout={timeout}"]
        argv = [sys.executable, PROGRAM, *words, f"--master=127.0.0.1:{port}", "--device=cpu"]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def ended(process):
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    return json.loads(out)


def test_all_ranks_of_two_hosts_meet(program):
    hosts = [program(0, here=2, world=3), program(2, world=3)]
    for found in map(ended, hosts):
        assert (found["ranks"], found["backend"], found["paths"]) == (3, "gloo", {})
        assert found["all_reduce_gb_per_s"] > 0 < found["ring_gb_per_s"]


def test_numbers_that_arrive_otherwise_are_told(program, monkeypatch):
    monkeypatch.setenv("SUM", "4")
    told = [ended(process)["error"] for process in (program(0), program(1))]
    assert all("numbers are not the sum over all ranks" in one for one in told)


def test_a_host_that_does_not_come_is_told(program, monkeypatch):
    monkeypatch.setenv("PATIENCE", "1")
    assert ended(program(0))["error"] == "rank 0: TimeoutError: not all came"


def test_a_rank_that_hangs_is_ended_in_time(program):
    begin = time.monotonic()
    told = ended(program(0, timeout=1))["error"]
    assert time.monotonic() - begin < 30
    assert "rank 0" in told
    assert "not all came" not in told


def test_what_a_rank_raised_is_told_and_not_what_torch_says_as_it_ends(program, monkeypatch, tmp_path):
    behind = "import atexit, sys\natexit.register(lambda: print('[rank0]:[W1] destroy_process_group() was not called', file=sys.stderr))\n"
    (tmp_path / "site/torch/distributed.py").write_text(behind + GROUP)
    monkeypatch.setenv("SUM", "4")
    assert "numbers are not the sum" in ended([program(0), program(1)][0])["error"]


def test_a_rank_that_somebody_killed_is_not_told_as_one_that_hung(program, tmp_path):
    (tmp_path / "site/torch/distributed.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    assert ended(program(0))["error"] == "rank 0: It said nothing (killed by signal 9)"
