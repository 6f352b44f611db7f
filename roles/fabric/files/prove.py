#!/usr/bin/env python3
"""Runs in the serving environment: a process for each GPU of this host joins those of the replica's other hosts.

By the torch, the NCCL and the environment with which vLLM will talk they do an all-reduce, as tensor parallelism does,
and a ring of sends, as pipeline stages do. What arrives is compared with what must, and timed. Prints one JSON object:
`error`, or what this host's processes found.
"""

import argparse
import collections
import contextlib
import datetime
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import traceback

MIB = 1 << 20
NEEDS = 2 << 30  # bytes that must be free on a GPU: contexts, NCCL's buffers and ours
SIZES = {"cuda": (256 * MIB, 20), "cpu": (4 * MIB, 3)}  # bytes of a message, and how often it is timed
PATH = re.compile(r"(\[send\])? via (P2P|SHM|NET/[^/\s]+)(\S*)")
NOISE = re.compile(r"frame #|\[rank\d+\]:\[W|\s")  # of torch, behind what counts
TOLD_BY = 0.8  # of the time: whoever has waited so long for another says so before it is ended
PATIENCE_S = 5  # for the others, once one has failed


def rank(options):
    """One process: join, talk, compare, measure. Returns what it found."""
    import torch  # noqa: PLC0415  the parent has no use for it
    import torch.distributed as group  # noqa: PLC0415

    backend = "gloo"
    if options.device == "cuda":
        backend, local = "nccl", options.rank - options.first
        torch.cuda.init()  # says why there are no GPUs, if there are none
        torch.cuda.set_device(local)
        free, _ = torch.cuda.mem_get_info()
        if free < NEEDS:
            raise SystemExit(
                f"GPU {local} has {free / 2**30:.1f} GiB free, {NEEDS >> 30} are needed: see nvidia-smi for who has it"
            )
    patience = datetime.timedelta(seconds=options.timeout * TOLD_BY)
    store = meeting(group, options, patience)
    group.init_process_group(backend, store=store, world_size=options.world, rank=options.rank, timeout=patience)
    size, times = SIZES[options.device]
    tensor = torch.empty(size // 4, dtype=torch.float32, device=options.device)
    found = {"all_reduce_gb_per_s": all_reduce(torch, group, tensor, options, times)}
    found["ring_gb_per_s"] = ring(torch, group, tensor, options, times)
    group.barrier()
    group.destroy_process_group()
    version = ".".join(map(str, torch.cuda.nccl.version())) if backend == "nccl" else ""
    return {"ranks": options.world, "backend": backend, "version": version, **found}


def meeting(group, options, patience):
    """Where ranks find one another. torch by itself would listen on every address of the host."""
    address, _, port = options.master.rpartition(":")
    address, more = address.strip("[]"), {}
    if options.rank == 0:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        more = {"master_listen_fd": socket.create_server((address, int(port)), family=family, backlog=1024).detach()}
    return group.TCPStore(
        address, int(port), options.world, options.rank == 0, timeout=patience, use_libuv=False, **more
    )


def all_reduce(torch, group, tensor, options, times):
    """GB/s over the slowest link, as nccl-tests count it (busbw)."""
    tensor.fill_(options.rank + 1)
    group.all_reduce(tensor)
    expect(tensor, options.world * (options.world + 1) // 2, "the sum over all ranks")
    tensor.zero_()
    seconds = timed(torch, group, options, times, lambda: group.all_reduce(tensor))
    return gb_per_s(tensor, seconds) * 2 * (options.world - 1) / options.world


def ring(torch, group, tensor, options, times):
    """GB/s from each rank to the next, all at once."""
    before, after = (options.rank - 1) % options.world, (options.rank + 1) % options.world
    tensor.fill_(options.rank)
    got = torch.empty_like(tensor)

    def once():
        sends = [group.P2POp(group.isend, tensor, after), group.P2POp(group.irecv, got, before)]
        for work in group.batch_isend_irecv(sends):
            work.wait()

    once()
    expect(got, before, f"what rank {before} sent")
    return gb_per_s(tensor, timed(torch, group, options, times, once))


def expect(tensor, wanted, what):
    """All of a tensor is one number."""
    wrong = int((tensor != wanted).sum())
    if wrong:
        raise SystemExit(
            f"{wrong} of {tensor.numel()} numbers are not {what}: what the GPUs send does not arrive as it was sent"
        )


def timed(torch, group, options, times, work):
    """Seconds that it takes, the middle of several."""
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    took = []
    for _ in range(times):
        group.barrier()
        wait()
        begin = time.perf_counter()
        work()
        wait()
        took.append(time.perf_counter() - begin)
    return sorted(took)[len(took) // 2]


def gb_per_s(tensor, seconds):
    return tensor.numel() * 4 / seconds / 1e9


def paths(text):
    """How NCCL said that it connects ranks, and how often: `P2P`, `SHM`, `NET/IB/GDRDMA`, `NET/IB`, `NET/Socket`.

    Between hosts who receives counts: with GPUs that no NVLink joins, NCCL sends by way of the host's memory by intent.
    """
    found = collections.Counter()
    for sends, kind, rest in PATH.findall(text):
        if not sends or "/Socket" in kind:
            found[kind + ("/GDRDMA" if "/GDRDMA" in rest else "")] += 1
    return dict(sorted(found.items()))


class Child:
    """The process of one rank, and the files in which it speaks."""

    def __init__(self, folder, number):
        self.number, self.hung = number, False
        self.said, self.answer, self.nccl = (f"{folder}/{number}.{kind}" for kind in ("err", "out", "nccl"))
        # NCCL tells its paths to a file of its own; what the host's environment says of its network holds.
        environment = {**os.environ, "NCCL_DEBUG": "INFO", "NCCL_DEBUG_FILE": self.nccl}
        environment.pop("NCCL_DEBUG_SUBSYS", None)
        with open(self.answer, "wb") as out, open(self.said, "wb") as err:
            words = [sys.executable, __file__, *sys.argv[1:], "--rank", str(number)]
            self.process = subprocess.Popen(words, stdout=out, stderr=err, env=environment)

    def kill(self):
        """End what has not ended in time."""
        if self.process.poll() is None:
            self.hung = True
            self.process.kill()
            self.process.wait()

    def last_words(self):
        with open(self.said, encoding="utf-8", errors="replace") as file:
            lines = [line.rstrip() for line in file if line.strip()]
        sys.stderr.write("".join(f"rank {self.number}: {line}\n" for line in lines[-20:]))
        told = [line for line in lines if not NOISE.match(line)]
        last = told[-1] if told else "It said nothing"
        if self.hung:
            return f"it came to no end in time. {last}"
        with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
            return self.found()["error"]
        code = self.process.returncode
        return f"{last} (killed by signal {-code})" if code < 0 else f"{last} (ended with {code})"

    def found(self):
        with open(self.answer, encoding="utf-8") as file:
            return json.loads(file.read().splitlines()[-1])  # what libraries print comes before

    def connections(self):
        with contextlib.suppress(OSError), open(self.nccl, encoding="utf-8", errors="replace") as file:
            return paths(file.read())
        return {}


def wait(children, deadline):
    """The first child that failed, or that has not ended in time; None if all are well."""
    while time.monotonic() < deadline:
        codes = [child.process.poll() for child in children]
        for child, code in zip(children, codes, strict=True):
            if code:
                deadline = time.monotonic() + PATIENCE_S
                while time.monotonic() < deadline and any(one.process.poll() is None for one in children):
                    time.sleep(0.1)
                return child
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.1)
    return next((child for child in children if child.process.poll() is None), None)


def together(options):
    """All ranks of this host; the answer that is printed."""
    with tempfile.TemporaryDirectory() as folder:
        children = [Child(folder, options.first + number) for number in range(options.here)]
        try:
            bad = wait(children, time.monotonic() + options.timeout)
        finally:
            for child in children:
                child.kill()
        if bad:
            return {"error": f"rank {bad.number}: {bad.last_words()}"}
        counted = sum((collections.Counter(child.connections()) for child in children), collections.Counter())
        return {**children[0].found(), "paths": dict(sorted(counted.items()))}


def answer(options):
    """Print what one process found, or what ended it: that first, since torch says more while it ends."""
    try:
        told = rank(options)
    except BaseException as error:  # noqa: BLE001  what it was is said by the host's answer
        traceback.print_exc()
        named = str(error) if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
        lines = (line.strip() for line in named.splitlines() if not line.startswith("frame #"))
        print("\n" + json.dumps({"error": " ".join(filter(None, lines))}), flush=True)
        sys.stderr.flush()
        os._exit(1)
    print(f"\n{json.dumps(told)}")  # a library may have left a line open


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, required=True, help="the number of this host's first rank")
    parser.add_argument("--here", type=int, required=True, help="ranks on this host")
    parser.add_argument("--world", type=int, required=True, help="ranks on all hosts")
    parser.add_argument("--master", required=True, help="ADDRESS:PORT of rank 0")
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--timeout", type=int, required=True, help="seconds")
    parser.add_argument("--rank", type=int, help="be this rank")
    options = parser.parse_args()
    if options.rank is None:
        json.dump(together(options), sys.stdout)
    else:
        answer(options)


if __name__ == "__main__":
    main()
