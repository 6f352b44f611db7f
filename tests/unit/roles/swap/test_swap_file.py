"""The swap file: each part judged for itself, from any state in which a run may have been killed."""

import os
import struct
from pathlib import Path

import pytest
from ansible.module_utils.provision_host import HostError, Ran

MIB = 2**20


@pytest.fixture
def host(role_module, monkeypatch, tmp_path):
    """The module on a host whose kernel is two files."""
    module = role_module("swap", "swap_file")
    table = tmp_path / "swaps"
    table.write_text("Filename Type Size Used Priority\n")
    (tmp_path / "fstab").write_text("/dev/sda / ext4 defaults 0 1\n")
    monkeypatch.setattr(module, "FSTAB", str(tmp_path / "fstab"))
    texts = {"/proc/swaps": table, "/proc/meminfo": tmp_path / "meminfo"}
    (tmp_path / "meminfo").write_text("MemAvailable: 1048576 kB\n")
    monkeypatch.setattr(module, "read_text", lambda path: Path(texts.get(path, path)).read_text())

    def run(argv, check=True):
        name, path = argv[0], argv[-1]
        if name == "mkswap":
            with open(path, "r+b") as handle:
                handle.seek(1024)
                handle.write(struct.pack("=II", 1, os.stat(path).st_size // module.PAGE - 1))
                handle.seek(module.PAGE - 10)
                handle.write(b"SWAPSPACE2")
        elif name == "swapon":
            table.write_text(table.read_text() + f"{path} file {os.stat(path).st_size // 1024} 0 -2\n")
        elif name == "swapoff":
            table.write_text("".join(line for line in table.read_text().splitlines(keepends=True) if path not in line))
        return Ran(0, "ext2/ext3\n", "")

    monkeypatch.setattr(module, "run", run)
    module.path, module.table = str(tmp_path / "swapfile"), table
    return module


def apply(host, size):
    done = []
    for change in host.plan(host.path, size):
        change.act()
        done.append(
            change.action.replace(host.path, "SWAP").split(" of ")[0]
            if "Made" in change.action
            else change.action.replace(host.path, "SWAP")
        )
    return done


MADE = ["Made the swap file SWAP", "Entered SWAP in {fstab}.", "Turned on swap on SWAP."]


def test_made_resized_and_removed(host):
    entered = f"Entered SWAP in {host.FSTAB}."
    assert apply(host, 2 * MIB) == [MADE[0], entered, MADE[2]]
    assert os.stat(host.path).st_mode & 0o777 == 0o600
    assert apply(host, 2 * MIB) == []
    for size in (4 * MIB, MIB):
        assert apply(host, size) == ["Turned off swap on SWAP.", MADE[0], MADE[2]]
        assert os.stat(host.path).st_size == size
    gone = ["Turned off swap on SWAP.", f"Took SWAP out of {host.FSTAB}.", "Removed the swap file SWAP."]
    assert apply(host, 0) == gone
    assert apply(host, 0) == []
    assert Path(host.FSTAB).read_text() == "/dev/sda / ext4 defaults 0 1\n"


@pytest.mark.parametrize("steps", range(4))
def test_a_run_killed_after_any_step_is_made_good(host, steps):
    for change, _ in zip(host.plan(host.path, 2 * MIB), range(steps), strict=False):
        change.act()
    apply(host, 2 * MIB)
    assert apply(host, 2 * MIB) == []
    assert host.path in host.swaps()


def shrink(host):
    """Format a part of the file only, as `mkswap FILE SIZE` does."""
    with open(host.path, "r+b") as handle:
        handle.seek(1028)
        handle.write(struct.pack("=I", 9))


@pytest.mark.parametrize(
    ("break_it", "repair"),
    [
        (lambda host: host.run(["swapoff", host.path]), ["Turned on swap on SWAP."]),
        (lambda host: os.chmod(host.path, 0o644), ["Set the mode of SWAP to 0600."]),
        (shrink, ["Turned off swap on SWAP.", MADE[0], MADE[2]]),
        (lambda host: Path(host.FSTAB).write_text(""), ["Entered SWAP in"]),
        (lambda host: Path(host.path).write_bytes(b"\0" * 2 * MIB), ["Turned off swap on SWAP.", MADE[0], MADE[2]]),
    ],
)
def test_what_broke_is_repaired_alone(host, break_it, repair):
    apply(host, 2 * MIB)
    break_it(host)
    assert [done.split(" in ")[0] + (" in" if " in " in done else "") for done in apply(host, 2 * MIB)] == repair


def test_swap_that_memory_cannot_take_back_stays_on(host):
    apply(host, 2 * MIB)
    host.table.write_text(f"Filename Type Size Used Priority\n{host.path} file 2048000 1048000 -2\n")
    with pytest.raises(HostError, match="turning it off would kill processes"):
        apply(host, 4 * MIB)
    assert host.path in host.swaps()


def test_a_file_that_does_not_fit_is_refused_first(host):
    with pytest.raises(HostError, match="does not fit"):
        apply(host, 2**60)
    assert not os.path.exists(host.path)


def test_fstab_has_one_line_where_it_was(host):
    text = "/a none swap sw 0 0\n/swap none swap sw 0 0\n/swap old\n# end"
    ours = "/swap none swap sw,nofail 0 0\n"
    assert host.fstab_with(text, "/swap", True) == f"/a none swap sw 0 0\n{ours}# end"
    assert host.fstab_with("# end", "/swap", True) == f"# end\n{ours}"
    assert host.fstab_with(text, "/swap", False) == "/a none swap sw 0 0\n# end"
