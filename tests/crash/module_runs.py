"""One module of the roles, run by itself on a host, with strace at hand to end it, or to fail it, at any system call."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provision.lab.host import LabHost

CHECKOUT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).parent / "stand_in"
# What changes something, hands a change over to the kernel for good, or begins the work of another program and waits for it.
CALLS = (
    "openat,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,symlink,"
    "symlinkat,link,linkat,ftruncate,truncate,fallocate,write,pwrite64,writev,copy_file_range,sendfile,utimensat,fsync,fdatasync,"
    "flock,vfork,clone,clone3,fork,poll,setxattr,syncfs"
)
# Calls that can fail for want of space, or for a broken disk.
CAN_FAIL = ("openat", "rename", "mkdir", "ftruncate", "fallocate", "write", "fsync", "symlink", "unlink")
UNPACK = """
import json, os, sys
os.umask(0o077)
for path, text in json.load(sys.stdin).items():
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, "w").write(text)
"""


@dataclass(frozen=True)
class Call:
    """The `when`-th call of `name` in a run of a module."""

    name: str
    when: int
    shown: str

    def __str__(self) -> str:
        return f"{self.name} #{self.when}: {self.shown}"


@dataclass
class Ended:
    """How a module ended: its result, unless it was killed before it gave one."""

    code: int
    result: dict[str, Any] = field(default_factory=dict)
    err: str = ""
    trace: list[str] = field(default_factory=list)

    @property
    def was_disturbed(self) -> bool:
        """Whether strace got to do what it was told to: an error is told in its trace, a death by the lack of a result."""
        return any("INJECTED" in line for line in self.trace) or (not self.result and self.code != 0)


def install(host: LabHost) -> None:
    """Put every module, what they share, and the stand-in for Ansible into a memory file system of the host."""
    files = {
        "/run/crash/ansible/__init__.py": "",
        "/run/crash/ansible/module_utils/__init__.py": "",
        "/run/crash/library/__init__.py": "",
        "/run/crash/ansible/module_utils/basic.py": (STAND_IN / "basic.py").read_text(encoding="utf-8"),
        "/run/crash/run.py": (STAND_IN / "run.py").read_text(encoding="utf-8"),
    }
    for path in CHECKOUT.glob("roles/*/module_utils/*.py"):
        files[f"/run/crash/ansible/module_utils/{path.name}"] = path.read_text(encoding="utf-8")
    for path in CHECKOUT.glob("roles/*/library/*.py"):
        files[f"/run/crash/library/{path.name}"] = path.read_text(encoding="utf-8")
    host.run(["rm", "-rf", "/run/crash"])
    host.run(["python3", "-c", UNPACK], input=json.dumps(files))


def run(host: LabHost, name: str, params: dict[str, Any], inject: str = "", trace: bool = False) -> Ended:
    """Run a module with these parameters; `inject` is what strace is to do to it, in strace's own words."""
    host.run(["python3", "-c", UNPACK], input=json.dumps({"/run/crash/params.json": json.dumps(params)}))
    run_of = ["env", "PROVISION_STAGE=crash", "PROVISION_RUN=crash", "python3", "-B", "/run/crash/run.py", name]
    with tempfile.NamedTemporaryFile("r", prefix="crash-trace-") as log:
        module = subprocess.Popen(
            host._inside(run_of), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert module.stdout is not None
        assert module.stdout.readline() == "ready\n", module.communicate()[1]
        tracer = _attach(_child(module.pid), inject, log.name) if inject or trace else None
        out, err = module.communicate("go\n", timeout=300)
        if tracer:
            tracer.wait(timeout=30)
        lines = out.splitlines()
        return Ended(module.returncode, json.loads(lines[-1]) if lines else {}, err, log.read().splitlines())


def _child(pid: int) -> int:
    """nsenter stays outside; what it started inside is its only child."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return int(child)


def _attach(pid: int, inject: str, log: str) -> subprocess.Popen[str]:
    """strace on this one process, not on what it starts: those live on when it is killed, as they do in truth."""
    words = ["strace", "-p", str(pid), "-o", log, "-y", "-s", "60", "-e", "signal=none", "-e", f"trace={CALLS}"]
    words += ["-e", f"inject={inject}"] if inject else []
    tracer = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    said = tracer.stderr.readline()
    assert "attached" in said, said
    return tracer


def mutating(trace: list[str]) -> Iterator[Call]:
    """The calls of a traced run at which it is worth dying; strace counts each name for itself."""
    counts: dict[str, int] = {}
    for line in trace:
        match = re.match(r"(\w+)\((.*)", line)
        if not match:
            continue
        name, rest = match.groups()
        counts[name] = counts.get(name, 0) + 1
        if name == "openat" and not re.search(r"O_CREAT|O_TRUNC|O_WRONLY|O_RDWR", rest):
            continue
        if name == "write" and re.match(r"\d+<(pipe|socket|/dev/)", rest):
            continue
        if "/run/crash/" in rest or re.search(r"= -1 E", rest):  # changes nothing
            continue
        yield Call(name, counts[name], rest[:90])
