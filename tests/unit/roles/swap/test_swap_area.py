"""Swap: each part judged for itself, from any state in which a run may have been killed; and what cannot hold swap."""

import os
import struct
from pathlib import Path

import pytest
from ansible.module_utils import provision_swap
from ansible.module_utils.provision_host import HostError, Ran

MIB, PAGE = 2**20, 4096
ROOT = "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"


class Host:
    """The module on a host whose kernel is a few files."""

    def __init__(self, module, folder):
        self.module, self.path, self.second = module, str(folder / "swapfile"), str(folder / "swapfile.2")
        self.files = {name: folder / name for name in ("swaps", "meminfo", "mountinfo", "fstab", "zswap")}
        self.write("swaps", "Filename Type Size Used Priority\n")
        self.write("meminfo", "MemAvailable: 1048576 kB\n")
        self.write("mountinfo", ROOT)
        self.write("fstab", "/dev/sda1 / ext4 defaults 0 1\n")
        self.write("zswap", "N\n")
        self.told = {}  # what a program says, by its name

    def write(self, name, text):
        self.files[name].write_text(text)

    def read_text(self, path):
        kernel = {"/proc/swaps": "swaps", "/proc/meminfo": "meminfo", "/proc/self/mountinfo": "mountinfo"}
        kernel["/sys/module/zswap/parameters/enabled"] = "zswap"
        file = self.files[kernel[path]] if path in kernel else Path(path)
        return file.read_text() if file.exists() else None

    def run(self, argv, check=True):
        name, path, table = argv[0], argv[-1], self.files["swaps"]
        if name == "mkswap":
            with open(path, "r+b") as handle:
                handle.seek(1024)
                handle.write(struct.pack("=II", 1, os.stat(path).st_size // PAGE - 1))
                handle.seek(PAGE - 10)
                handle.write(b"SWAPSPACE2")
        elif name == "swapon":
            table.write_text(table.read_text() + f"{path} file {os.stat(path).st_size // 1024} 0 -2\n")
        elif name == "swapoff":
            rows = table.read_text().splitlines(keepends=True)
            table.write_text("".join(row for row in rows if row.split()[0] != path))
        return self.told.get(name, Ran(0, "ext2/ext3\n", ""))

    def use(self, path, used_kib):
        """So much is swapped out to an area."""
        rows = self.files["swaps"].read_text().splitlines()
        fields = [row.split() for row in rows]
        rows = [" ".join([*row[:3], str(used_kib) if row[0] == path else row[3], *row[4:]]) for row in fields]
        self.write("swaps", "\n".join(rows) + "\n")

    def swap(self, size=0, mode="file", path="", only=False):
        return self.module.Swap(mode, path or self.path, size, only)

    def apply(self, size=0, steps=None, **wanted):
        """Bring it about, or its first steps only; the sentences, with short names."""
        done = []
        for change in self.swap(size, **wanted).plan():
            if steps is not None and len(done) == steps:
                break
            change.act()
            text = change.action.replace(self.path, "SWAP").replace(str(self.files["fstab"]), "fstab")
            done.append(text)
        return done

    def predict(self, size=0, **wanted):
        actions = [change.action for change in self.swap(size, **wanted).plan()]
        return [text.replace(self.path, "SWAP").replace(str(self.files["fstab"]), "fstab") for text in actions]

    def in_use(self):
        return sorted(provision_swap.areas())

    def entered(self):
        return provision_swap.marked(self.files["fstab"].read_text())


@pytest.fixture
def host(role_module, monkeypatch, tmp_path):
    module = role_module("swap", "swap_area")
    host = Host(module, tmp_path)
    for place in (module, provision_swap):
        monkeypatch.setattr(place, "FSTAB", str(tmp_path / "fstab"))
        monkeypatch.setattr(place, "read_text", host.read_text)
        monkeypatch.setattr(place, "run", host.run)
    return host


MADE, ON, OFF = "Made the swap file SWAP of {} MiB.", "Turned on swap on SWAP.", "Turned off swap on SWAP."
BESIDE, ENTERED = "Made the swap file SWAP of {} MiB, beside the one in use.", "Entered SWAP in fstab."


def test_made_resized_and_removed(host):
    assert host.predict(2 * MIB) == host.apply(2 * MIB) == [MADE.format(2), ON, ENTERED]
    assert os.stat(host.path).st_mode & 0o777 == 0o600
    assert host.apply(2 * MIB) == []
    for size in (4, 1):
        assert host.predict(size * MIB) == [BESIDE.format(size), OFF, ON]
        assert host.apply(size * MIB) == [BESIDE.format(size), OFF, ON]
        assert os.stat(host.path).st_size == size * MIB
        assert host.apply(size * MIB) == []
    gone = [OFF, "Removed the swap file SWAP.", "Took SWAP out of fstab."]
    assert host.predict() == host.apply() == gone
    assert host.apply() == []
    assert host.files["fstab"].read_text() == "/dev/sda1 / ext4 defaults 0 1\n"


@pytest.mark.parametrize("steps", range(4))
@pytest.mark.parametrize("before", [0, 1, 8])
def test_a_run_killed_after_any_step_is_made_good(host, before, steps):
    host.apply(before * MIB)
    host.apply(2 * MIB, steps=steps)
    host.apply(2 * MIB)
    assert host.predict(2 * MIB) == []
    assert (host.in_use(), host.entered()) == ([host.path], [host.path])
    assert not os.path.exists(f"{host.path}.new")


@pytest.mark.parametrize("steps", range(6))
def test_a_killed_removal_or_move_leaves_nothing(host, steps, tmp_path):
    elsewhere = str(tmp_path / "other" / "swap")
    host.apply(2 * MIB)
    host.apply(2 * MIB, path=elsewhere, steps=steps)
    host.apply(2 * MIB, path=elsewhere)
    assert host.predict(2 * MIB, path=elsewhere) == []
    assert (host.in_use(), host.entered()) == ([elsewhere], [elsewhere])
    assert not os.path.exists(host.path)
    host.apply(path=elsewhere, steps=steps)
    host.apply(path=elsewhere)
    assert (host.in_use(), host.entered(), os.listdir(tmp_path / "other")) == ([], [], [])


def test_what_a_killed_run_left_is_removed_when_no_swap_is_wanted(host):
    host.module.build(host.path, 2 * MIB)
    assert host.apply() == ["Removed SWAP.new, which a killed run left."]


def shrink(host):
    """Format a part of the file only, as `mkswap FILE SIZE` does."""
    with open(host.path, "r+b") as handle:
        handle.seek(1028)
        handle.write(struct.pack("=I", 9))


def dig(host):
    """A hole, where a file was copied by somebody who left out zeros."""
    os.truncate(host.path, PAGE)
    os.truncate(host.path, 2 * MIB)


@pytest.mark.parametrize(
    ("break_it", "repair"),
    [
        (lambda host: host.run(["swapoff", host.path]), [ON]),
        (lambda host: os.chmod(host.path, 0o644), ["Set the mode of SWAP to 0600."]),
        (shrink, [BESIDE.format(2), OFF, ON]),
        (dig, [BESIDE.format(2), OFF, ON]),
        (lambda host: host.write("fstab", ""), [ENTERED]),
        (lambda host: host.write("fstab", f"{host.path} none swap sw 0 0\n"), [ENTERED]),
        (lambda host: Path(host.path).write_bytes(b"\0" * 2 * MIB), [BESIDE.format(2), OFF, ON]),
    ],
)
def test_what_broke_is_repaired_alone(host, break_it, repair):
    host.apply(2 * MIB)
    break_it(host)
    assert host.predict(2 * MIB) == repair
    assert host.apply(2 * MIB) == repair
    assert host.apply(2 * MIB) == []


def test_with_short_memory_the_new_file_is_used_before_the_old_one_goes(host):
    host.apply(100 * MIB)
    host.use(host.path, 80 * 1024)
    host.write("meminfo", "MemAvailable: 102400 kB\n")
    assert host.apply(200 * MIB) == [
        "Made the swap file SWAP.2 of 200 MiB.",
        "Turned on swap on SWAP.2.",
        "Entered SWAP.2 in fstab.",
        OFF,
        "Removed the swap file SWAP.",
        "Took SWAP out of fstab.",
    ]
    assert (host.in_use(), host.entered()) == ([host.second], [host.second])
    assert host.apply(200 * MIB) == []


@pytest.mark.parametrize("steps", range(7))
def test_a_resize_with_short_memory_killed_after_any_step_is_made_good(host, steps):
    host.apply(100 * MIB)
    host.use(host.path, 80 * 1024)
    host.write("meminfo", "MemAvailable: 102400 kB\n")
    host.apply(200 * MIB, steps=steps)
    assert host.in_use()
    host.apply(200 * MIB)
    assert (host.in_use(), host.entered()) == ([host.second], [host.second])
    assert host.predict(200 * MIB) == []


def test_swap_that_nothing_can_take_back_stays_on(host):
    host.apply(100 * MIB)
    host.use(host.path, 90 * 1024)
    host.write("meminfo", "MemAvailable: 1024 kB\n")
    for wanted in (10 * MIB, 0):
        with pytest.raises(HostError, match=r"90 MiB are swapped out .* turning it off would kill processes"):
            host.apply(wanted)
    assert (host.in_use(), host.entered(), os.path.exists(host.second)) == ([host.path], [host.path], False)


def test_a_disk_without_room_for_both_gives_up_the_old_one_first(host, monkeypatch):
    host.apply(4 * MIB)
    monkeypatch.setattr(host.module, "disk_free", lambda _: 2**30)
    monkeypatch.setattr(provision_swap, "disk_free", lambda _: 2**30)
    assert host.apply(3 * MIB) == [OFF, MADE.format(3), ON]
    with pytest.raises(
        HostError, match=r"5 MiB does not fit .* 1.0 GiB are free there, 3 MiB of it in what it replaces"
    ):
        host.apply(5 * MIB)
    assert host.in_use() == [host.path]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("overlay overlay rw,lowerdir=/a", "would lie on overlay .*cannot find on a disk"),
        ("tmpfs tmpfs rw", "which is memory itself"),
        ("nfs4 server:/export rw", "which is another host's disk"),
        ("zfs pool/root rw", "where swap can lock the host up"),
        ("f2fs /dev/sdb rw", "from ext4, XFS and btrfs alone"),
    ],
)
def test_a_file_system_that_cannot_hold_swap_is_refused_by_name(host, tmp_path, line, said):
    host.write("mountinfo", f"{ROOT}30 21 0:40 / {tmp_path} rw - {line}\n")
    with pytest.raises(HostError, match=said):
        host.predict(2 * MIB)
    assert not os.path.exists(host.path)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_file_system_that_can_is_taken(host, tmp_path, kind):
    host.write("mountinfo", f"30 21 0:40 / {tmp_path} rw - {kind} /dev/sdb rw\n")
    assert host.apply(2 * MIB) == [MADE.format(2), ON, ENTERED]


def test_btrfs_gets_a_file_without_copy_on_write_and_none_where_files_are_compressed(host, tmp_path, monkeypatch):
    host.write("mountinfo", f"30 21 0:40 / {tmp_path} rw - btrfs /dev/sdb rw,compress=zstd\n")
    host.told["lsattr"] = Ran(0, f"--------c------------- {tmp_path}\n", "")
    with pytest.raises(HostError, match=r"has its files compressed.*chattr -c"):
        host.predict(2 * MIB)
    host.told = {"stat": Ran(0, "btrfs\n", ""), "lsattr": Ran(0, f"---------------------- {tmp_path}\n", "")}
    ran, run = [], host.run
    monkeypatch.setattr(host.module, "run", lambda argv, **more: (ran.append(argv[:2]), run(argv, **more))[1])
    host.apply(2 * MIB)
    assert ran.index(["chattr", "+C"]) < ran.index(["mkswap", f"{host.path}.new"])


def test_a_read_only_file_system_is_refused(host, tmp_path):
    host.write("mountinfo", f"30 21 8:2 / {tmp_path} ro,relatime - ext4 /dev/sdb rw\n")
    with pytest.raises(HostError, match="mounted read-only"):
        host.predict(2 * MIB)


def test_the_last_mount_on_the_deepest_place_counts(tmp_path):
    table = tmp_path / "mountinfo"
    table.write_text(
        f"{ROOT}30 21 8:2 / /var rw - xfs /dev/sdb rw\n31 30 8:3 / /var/with\\040space rw - ext4 /dev/sdc rw\n"
        "32 30 0:50 / /var/with\\040space rw - tmpfs tmpfs rw\n33 30 8:4 / /variable rw - btrfs /dev/sdd rw\n"
    )
    kinds = {
        path: provision_swap.mount_of(path, str(table)).kind for path in ("/", "/var/x", "/var/with space/x", "/home")
    }
    assert kinds == {"/": "ext4", "/var/x": "xfs", "/var/with space/x": "tmpfs", "/home": "ext4"}


def test_other_swap_is_told_of_and_goes_only_if_asked(host, tmp_path):
    host.write("fstab", "UUID=1-2 none swap sw 0 0\n/dev/sda1 / ext4 defaults 0 1\n")
    host.write(
        "swaps", "Filename Type Size Used Priority\n/dev/sdz9 partition 2097152 0 -2\n/dev/zram0 partition 1 0 5\n"
    )
    host.write("zswap", "Y\n")
    host.apply(2 * MIB)
    told = host.swap(2 * MIB).told()
    assert [line.split(" is ")[0] for line in told] == ["/dev/sdz9 (2.0 GiB)", "/dev/zram0", "zswap"]
    assert host.apply(2 * MIB, only=True) == ["Turned off swap on /dev/sdz9.", "Took UUID=1-2 out of fstab."]
    assert host.apply(2 * MIB, only=True) == []
    assert host.in_use() == ["/dev/zram0", host.path]


@pytest.fixture
def partition(host, monkeypatch, tmp_path):
    """A block device that is a file; the device number is 8:7."""
    device = tmp_path / "sdb7"
    device.write_bytes(b"\0" * MIB)
    real = os.stat

    class Block:
        st_mode, st_rdev, st_size = 0o060660, os.makedev(8, 7), MIB

    monkeypatch.setattr(
        provision_swap.os, "stat", lambda path, **more: Block() if path == str(device) else real(path, **more)
    )
    host.told["blkid"] = Ran(2, "", "")
    return str(device)


def test_a_blank_partition_is_formatted_and_used(host, partition):
    host.apply(2 * MIB)
    host.told["mkswap"] = Ran(0, "", "")
    host.told["blkid"] = Ran(0, "TYPE=swap\n", "")
    with open(partition, "r+b") as handle:
        handle.seek(1024)
        handle.write(struct.pack("=II", 1, MIB // PAGE - 1))
        handle.seek(PAGE - 10)
        handle.write(b"SWAPSPACE2")
    host.write("swaps", host.files["swaps"].read_text())
    wanted = {"mode": "partition", "path": partition}
    assert [line.replace(partition, "PART") for line in host.predict(**wanted)] == [
        "Turned on swap on PART.",
        "Entered PART in fstab.",
        OFF,
        "Removed the swap file SWAP.",
        "Took SWAP out of fstab.",
    ]


@pytest.mark.parametrize(
    ("told", "mountinfo", "said"),
    [
        ("TYPE=ext4\n", ROOT, "holds ext4, which would be lost"),
        ("PTTYPE=gpt\n", ROOT, "holds gpt"),
        ("", f"{ROOT}40 21 8:7 / /srv rw - ext4 /dev/sdb7 rw\n", "is mounted at /srv"),
    ],
)
def test_a_partition_that_holds_something_is_refused(host, partition, told, mountinfo, said):
    host.told["blkid"] = Ran(0, told, "")
    host.write("mountinfo", mountinfo)
    with pytest.raises(HostError, match=said):
        host.predict(mode="partition", path=partition)


def test_what_is_no_partition_is_refused(host, tmp_path):
    with pytest.raises(HostError, match="is not there"):
        host.predict(mode="partition", path=str(tmp_path / "none"))
    Path(host.path).write_text("")
    with pytest.raises(HostError, match="no block device"):
        host.predict(mode="partition")


@pytest.fixture
def gpt(host, partition, monkeypatch, tmp_path):
    """A GPT that calls two partitions swap: the blank one, and /dev/sdz9, which somebody else uses; their names."""
    monkeypatch.setattr(provision_swap, "BY_PARTUUID", str(tmp_path / "by-partuuid"))
    (tmp_path / "by-partuuid").mkdir()
    (tmp_path / "by-partuuid" / "b7").symlink_to(partition)
    (tmp_path / "by-partuuid" / "z9").symlink_to("/dev/sdz9")
    rows = [
        ("", ""),
        (provision_swap.LINUX_SWAP, "z9"),
        ("0fc63daf-8483-4772-8e79-3d69d8477de4", "a1"),
        ("0x82", "d-2"),
    ]
    rows += [(provision_swap.LINUX_SWAP.upper(), "b7"), (provision_swap.LINUX_SWAP, "z9")]
    told = "".join(f'PARTTYPE="{kind}" PARTUUID="{uuid}"\n' for kind, uuid in rows)
    host.told["lsblk"] = Ran(0, told, "")
    host.write("swaps", f"{host.files['swaps'].read_text()}/dev/sdz9 partition 2097152 0 -2\n")
    return {name: str(tmp_path / "by-partuuid" / name) for name in ("b7", "z9")}


def off_lines(host):
    return [line for line in host.files["fstab"].read_text().splitlines() if "noauto,x-provision-off" in line]


@pytest.mark.parametrize("steps", range(4))
def test_without_any_swap_systemd_is_kept_from_turning_on_what_it_finds(host, gpt, steps):
    host.write("fstab", "UUID=1-2 none swap sw 0 0\n/dev/sda1 / ext4 defaults 0 1")
    expected = [
        f"Entered {gpt['b7']}, {gpt['z9']} in fstab as off, since systemd turns it on at boot by itself.",
        "Turned off swap on /dev/sdz9.",
        "Took UUID=1-2 out of fstab.",
    ]
    assert host.predict(only=True) == expected
    assert host.apply(only=True, steps=steps) == expected[:steps]
    assert host.apply(only=True) == expected[steps:]
    assert host.predict(only=True) == []
    assert host.in_use() == []
    lines = [f"{gpt[name]} none swap noauto,x-provision-off 0 0\n" for name in ("b7", "z9")]
    assert host.files["fstab"].read_text() == "/dev/sda1 / ext4 defaults 0 1\n" + "".join(lines)


def test_a_line_that_keeps_a_partition_off_is_made_good_though_nothing_is_in_use(host, gpt):
    host.apply(only=True)
    host.write("fstab", host.files["fstab"].read_text().replace(off_lines(host)[1] + "\n", ""))
    assert host.apply(only=True) == [
        f"Entered {gpt['z9']} in fstab as off, since systemd turns it on at boot by itself."
    ]
    assert host.apply(only=True) == []


def test_swap_that_is_wanted_keeps_systemd_from_it_by_its_own_line(host, gpt):
    assert host.apply(2 * MIB, only=True) == [MADE.format(2), ON, ENTERED, "Turned off swap on /dev/sdz9."]
    assert off_lines(host) == []
    host.apply(only=True)
    assert len(off_lines(host)) == 2
    host.apply(2 * MIB, only=True)
    assert (len(off_lines(host)), host.predict(2 * MIB, only=True), host.entered()) == (2, [], [host.path])


def test_other_swap_is_left_to_systemd_unless_asked(host, gpt):
    host.apply()
    assert (off_lines(host), host.in_use()) == ([], ["/dev/sdz9"])


@pytest.mark.parametrize("steps", range(5))
def test_a_partition_of_ours_stays_off_until_it_is_wanted_again(host, gpt, partition, steps):
    host.told["mkswap"] = Ran(0, "", "")
    wanted = {"mode": "partition", "path": partition}
    host.apply(**wanted)
    assert (host.entered(), off_lines(host)) == ([partition], [])
    host.apply(steps=steps)
    host.apply()
    assert (
        host.predict() == host.predict(mode="none", path=partition) == host.predict(mode="none", path=gpt["b7"]) == []
    )
    assert (host.in_use(), host.entered()) == (["/dev/sdz9"], [])
    assert off_lines(host) == [f"{gpt['b7']} none swap noauto,x-provision-off 0 0"]
    back = f"Took the line out of fstab that kept {gpt['b7']} off at boot."
    assert host.predict(**wanted)[-1] == back
    host.apply(**wanted, steps=steps)
    host.apply(**wanted)
    assert (host.predict(**wanted), host.entered(), off_lines(host)) == ([], [partition], [])


def test_a_partition_by_the_name_that_kept_it_off_has_one_line(host, gpt, partition):
    wanted = {"mode": "partition", "path": gpt["b7"]}
    host.write("fstab", provision_swap.fstab_keeping_off("", [gpt["b7"], gpt["z9"]]))
    host.write("swaps", f"{host.files['swaps'].read_text()}{partition} partition 1024 0 -2\n")
    host.apply(**wanted)
    assert host.predict(**wanted) == []
    assert provision_swap.swap_names(host.files["fstab"].read_text()) == [gpt["b7"]]
    assert provision_swap.kept_off(host.files["fstab"].read_text()) == [gpt["z9"]]


def test_fstab_has_one_line_where_it_was():
    text = "/a none swap sw 0 0\n/swap none swap sw 0 0\n/swap none swap old\n# end"
    ours = "/swap none swap sw,nofail,x-provision 0 0\n"
    assert provision_swap.fstab_with(text, "/swap") == f"/a none swap sw 0 0\n{ours}# end"
    assert provision_swap.fstab_with("# end", "/swap") == f"# end\n{ours}"
    assert provision_swap.fstab_with(text, "", ["/swap"]) == "/a none swap sw 0 0\n# end"
    spaced = provision_swap.fstab_with("", "/my swap")
    assert spaced.startswith("/my\\040swap none")
    assert provision_swap.marked(spaced) == ["/my swap"]
