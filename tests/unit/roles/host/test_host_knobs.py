"""Governor, huge pages, limits, the clock's daemon, the kernel's command line: read from files, changed only where they differ."""

import os
import time
from pathlib import Path

import pytest
from ansible.module_utils import provision_boot_line
from ansible.module_utils.provision_apt import Package
from ansible.module_utils.provision_host import HostError, Ran


def apply(changes):
    """Do them; their sentences."""
    done = []
    for change in changes:
        change.act()
        done.append(change.action)
    return done


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def governor(role_module, monkeypatch, tmp_path):
    module = role_module("host", "cpu_governor")
    monkeypatch.setattr(module, "CPUFREQ", tmp_path)
    for number in range(3):
        files = {"governor": "powersave", "available_governors": "performance powersave", "driver": "intel_pstate"}
        for name, text in files.items():
            put(tmp_path / f"policy{number}/scaling_{name}", f"{text}\n")
    return module


def test_only_cpus_with_another_governor_are_set(governor, tmp_path):
    put(tmp_path / "policy1/scaling_governor", "performance\n")
    assert apply(governor.plan("performance")) == ["Set the governor performance on 2 of 3 CPU policies."]
    assert apply(governor.plan("performance")) == []
    assert governor.facts() == {"driver": "intel_pstate"}


def test_a_governor_that_the_driver_lacks_is_refused_before_any_is_set(governor, tmp_path):
    with pytest.raises(HostError, match=r"no governor ondemand; its driver intel_pstate has performance, powersave"):
        apply(governor.plan("ondemand"))


def test_a_host_without_cpufreq_and_a_cpu_that_is_off_are_fine(governor, tmp_path, monkeypatch):
    (tmp_path / "policy2/scaling_governor").unlink()
    assert apply(governor.plan("performance")) == ["Set the governor performance on 2 of 2 CPU policies."]
    monkeypatch.setattr(governor, "CPUFREQ", tmp_path / "none")
    assert apply(governor.plan("performance")) == []
    assert "no cpufreq" in governor.facts()["msg"]


@pytest.fixture
def huge(role_module, monkeypatch, tmp_path):
    module = role_module("host", "huge_pages")
    monkeypatch.setattr(module, "FOLDER", tmp_path / "hugepages")
    for kib in (2048, 1048576):
        put(tmp_path / f"hugepages/hugepages-{kib}kB/nr_hugepages", "0\n")
    put(tmp_path / "meminfo", "MemAvailable: 8388608 kB\n")
    real = module.read_text
    monkeypatch.setattr(
        module, "read_text", lambda path: real(tmp_path / "meminfo" if path == "/proc/meminfo" else path)
    )
    module.boot_file = str(tmp_path / "tmpfiles.conf")
    return module


def test_huge_pages_are_set_aside_now_and_at_boot_and_given_back(huge):
    file = f"Wrote {huge.boot_file}."
    live = "Set aside 512 huge pages of 2M (there were 0)."
    assert apply(huge.plan({}, huge.boot_file)) == []
    assert apply(huge.plan({"2M": 512}, huge.boot_file)) == [file, live]
    assert apply(huge.plan({"2M": 512}, huge.boot_file)) == []
    assert f"w {huge.place('2M')} - - - - 512\n" in Path(huge.boot_file).read_text()
    huge.place("2M").write_text("0\n")
    assert apply(huge.plan({"2M": 512}, huge.boot_file)) == [live]
    back = ["Set aside 0 huge pages of 2M (there were 512).", f"Removed {huge.boot_file}."]
    assert apply(huge.plan({}, huge.boot_file)) == back
    assert apply(huge.plan({}, huge.boot_file)) == []


def test_huge_pages_that_were_half_given_back_are_still_known(huge):
    apply(huge.plan({"2M": 512}, huge.boot_file))
    next(huge.plan({}, huge.boot_file)).act()
    assert apply(huge.plan({}, huge.boot_file)) == [f"Removed {huge.boot_file}."]


@pytest.mark.parametrize(
    ("pages", "said"),
    [
        ({"4M": 1}, r"no huge pages of 4M; it has 1G, 2M"),
        ({"1G": 8}, r"take 8\.0 GiB more, and 8\.0 GiB are available"),
    ],
)
def test_huge_pages_that_cannot_be_are_refused_first(huge, pages, said):
    with pytest.raises(HostError, match=said):
        apply(huge.plan(pages, huge.boot_file))
    assert not Path(huge.boot_file).exists()


def test_memory_in_pieces_is_told_with_what_to_do(huge, monkeypatch):
    monkeypatch.setattr(huge, "has", lambda _: 3)
    with pytest.raises(
        HostError, match=r"3 of 5 huge pages of 1G.*host_kernel_parameters: \[hugepagesz=1G, hugepages=5\]"
    ):
        huge.set_aside("1G", 5)


@pytest.fixture
def limits(role_module, monkeypatch, tmp_path):
    module = role_module("host", "login_limits")
    put(tmp_path / "nr_open", "1048576\n")
    monkeypatch.setattr(module, "NR_OPEN", tmp_path / "nr_open")
    return module


def test_limits_that_would_lock_everybody_out_are_refused(limits, tmp_path):
    path = str(tmp_path / "90.conf")
    for value in (1048577, "unlimited"):
        with pytest.raises(HostError, match="nobody could log in"):
            apply(limits.plan({"nofile": value}, 0, path))
    with pytest.raises(HostError, match="expected a number or unlimited"):
        apply(limits.plan({"memlock": "much"}, 0, path))
    assert apply(limits.plan({"nofile": 1048577, "memlock": "unlimited"}, 2000000, path)) == [f"Wrote {path}."]
    assert "* - nofile 1048577\n" in Path(path).read_text()
    assert "root - memlock unlimited\n" in Path(path).read_text()


def test_a_later_file_that_sets_a_limit_otherwise_is_named(limits, tmp_path):
    put(tmp_path / "limits.d/95-hpc.conf", "# x\n* soft nofile 1024\n* - memlock unlimited\n* - nproc 5\n")
    found = limits.overridden({"nofile": 1048576, "memlock": "unlimited"}, tmp_path / "limits.d/90.conf")
    assert [sentence.split(" sets ")[1] for sentence in found] == ["nofile of * to 1024, after ours; remove that line."]


class Clock:
    """The module on a host whose packages and units are told here."""

    def __init__(self, module, folder):
        self.module, self.folder = module, folder
        self.packages, self.active, self.since, self.ran = {}, set(), 1.0, []

    def have(self, *names):
        for name in names:
            self.packages[name] = Package("1", held=False)
            put(self.folder / "units" / self.module.DAEMONS[name], "")

    def run(self, argv, check=True):
        self.ran.append(argv)
        state = "active" if argv[2] in self.active else "inactive"
        stamp = round((self.since - time.time() + time.monotonic()) * 1e6)
        return Ran(0, f"ActiveState={state}\nActiveEnterTimestampMonotonic={stamp}\n", "")

    def restarted(self):
        return [argv[-1] for argv in self.ran if argv[1] == "restart"]


@pytest.fixture
def clock(role_module, monkeypatch, tmp_path):
    module = role_module("host", "time_sync")
    clock = Clock(module, tmp_path)
    monkeypatch.setattr(module, "UNIT_FOLDERS", (str(tmp_path / "units"),))
    monkeypatch.setattr(module, "CHRONY_SOURCES", str(tmp_path / "chrony.sources"))
    monkeypatch.setattr(module, "TIMESYNCD_CONF", str(tmp_path / "timesyncd.conf"))
    monkeypatch.setattr(module, "installed", lambda: clock.packages)
    monkeypatch.setattr(module, "install", lambda *_, **__: clock.have("chrony"))
    monkeypatch.setattr(module, "run", clock.run)
    monkeypatch.setattr(module, "act_or_explain", lambda *verb_and_unit: clock.run(["systemctl", *verb_and_unit]))
    return clock


def test_a_host_without_a_time_daemon_gets_chrony(clock):
    assert apply(clock.module.plan([], 60)) == ["Installed chrony, since nothing kept the clock."]
    assert apply(clock.module.plan([], 60)) == []
    assert clock.module.present() == ["chrony"]


def test_the_daemon_that_is_there_stays(clock):
    clock.have("systemd-timesyncd")
    assert apply(clock.module.plan(["10.0.0.1"], 60)) == [f"Wrote {clock.module.TIMESYNCD_CONF}."]
    assert "NTP=10.0.0.1\n" in Path(clock.module.TIMESYNCD_CONF).read_text()


def test_of_two_daemons_the_better_is_kept_and_an_empty_package_is_none(clock):
    clock.have("systemd-timesyncd", "chrony")
    clock.packages["ntp"] = Package("1", held=False)
    assert clock.module.present() == ["chrony", "systemd-timesyncd"]


def test_a_daemon_that_runs_with_other_servers_is_restarted_whoever_was_killed(clock):
    clock.have("chrony")
    clock.active.add("chrony.service")
    changes = clock.module.plan(["a", "b"], 60)
    next(changes).act()  # and killed here
    assert Path(clock.module.CHRONY_SOURCES).read_text().endswith("server a iburst\nserver b iburst\n")
    assert apply(clock.module.plan(["a", "b"], 60)) == ["Restarted chrony.service; its servers changed."]
    assert clock.restarted() == ["chrony.service"]
    clock.since = os.stat(clock.module.CHRONY_SOURCES).st_ctime + 5
    assert apply(clock.module.plan(["a", "b"], 60)) == []
    assert len(apply(clock.module.plan([], 60))) == 2
    assert Path(clock.module.CHRONY_SOURCES).read_text() == clock.module.HEADER


def test_servers_for_a_daemon_that_is_not_ours_are_refused(clock):
    clock.have("openntpd")
    assert apply(clock.module.plan([], 60)) == []
    with pytest.raises(HostError, match=r"openntpd keeps the clock .* Remove openntpd"):
        apply(clock.module.plan(["a"], 60))


def test_a_clock_that_is_not_kept_is_told_after_a_while(clock, monkeypatch, tmp_path):
    clock.have("systemd-timesyncd")
    clock.active.add("systemd-timesyncd.service")
    monkeypatch.setattr(clock.module, "TIMESYNCD_MARK", str(tmp_path / "synchronized"))
    assert "has not synchronised" in clock.module.complaint("systemd-timesyncd")
    put(tmp_path / "synchronized", "")
    assert clock.module.complaint("systemd-timesyncd") == ""
    (tmp_path / "synchronized").unlink()
    clock.since = clock.module.time.time()
    assert clock.module.complaint("systemd-timesyncd") == ""


class Boot:
    """The module on a host with GRUB: `update-grub` makes one entry, `start` boots it."""

    def __init__(self, module, folder):
        self.module, self.folder = module, folder
        put(folder / "update-grub", "")
        self.update(["update-grub"])
        self.start()

    def update(self, argv):
        words = " ".join(provision_boot_line.asked())
        put(self.folder / "grub.cfg", f"menuentry 'Debian' {{\n\tlinux\t/boot/vmlinuz root=/dev/sda1 ro {words}\n}}\n")
        return Ran(0, "", "")

    def start(self):
        (self.folder / "run/former").unlink(missing_ok=True)
        line = (self.folder / "grub.cfg").read_text().split("linux\t")[1].split("\n")[0]
        put(self.folder / "cmdline", f"BOOT_IMAGE={line}\n")

    @property
    def removed(self):
        return f"Removed {self.folder / '90-provision.cfg'}."

    def apply(self, *parameters, steps=None):
        done = []
        for change in self.module.plan(list(parameters)):
            if len(done) == steps:
                break
            change.act()
            done.append(change.action)
        return done

    def reason(self, *parameters):
        return provision_boot_line.reboot_reason(list(parameters))


@pytest.fixture
def boot(role_module, monkeypatch, tmp_path):
    module = role_module("host", "kernel_command_line")
    for place in (module, provision_boot_line):
        monkeypatch.setattr(place, "DROP_IN", str(tmp_path / "90-provision.cfg"))
        monkeypatch.setattr(place, "GRUB_CFG", str(tmp_path / "grub.cfg"))
    monkeypatch.setattr(provision_boot_line, "CMDLINE", str(tmp_path / "cmdline"))
    monkeypatch.setattr(provision_boot_line, "FORMER", str(tmp_path / "run/former"))
    monkeypatch.setattr(module, "UPDATE_GRUB", str(tmp_path / "update-grub"))
    boot = Boot(module, tmp_path)
    monkeypatch.setattr(module, "run", boot.update)
    return boot


MADE = "Had GRUB make its configuration anew."
IOMMU = "Asked the kernel for iommu=pt at the next boot."


def test_a_parameter_is_asked_for_and_in_effect_after_a_reboot(boot):
    assert boot.apply() == []
    assert boot.apply("iommu=pt") == [IOMMU, MADE]
    assert boot.apply("iommu=pt") == []
    assert boot.reason("iommu=pt") == "the kernel was started without iommu=pt"
    boot.start()
    assert (boot.apply("iommu=pt"), boot.reason("iommu=pt")) == ([], "")


def test_what_is_asked_for_no_more_is_a_reason_until_the_reboot(boot):
    boot.apply("iommu=pt", "quiet")
    assert not (boot.folder / "run/former").exists()
    boot.start()
    assert boot.reason("quiet") == "the kernel was started with iommu=pt, not asked for any more"
    assert boot.apply("quiet") == ["Asked the kernel for quiet at the next boot.", MADE]
    assert boot.reason("quiet") == "the kernel was started with iommu=pt, not asked for any more"
    boot.start()
    assert (boot.apply("quiet"), boot.reason("quiet")) == ([], "")
    assert boot.apply() == ["Asked the kernel for nothing of ours any more at the next boot.", MADE, boot.removed]
    assert not (boot.folder / "90-provision.cfg").exists()
    assert boot.reason() == "the kernel was started with quiet, not asked for any more"
    boot.start()
    assert (boot.apply(), boot.reason()) == ([], "")


def test_a_run_that_was_killed_before_grub_read_the_file_is_made_good(boot):
    for parameters, removed in ((["iommu=pt"], []), ([], [boot.removed])):
        os.utime(boot.folder / "grub.cfg", (1, 1))
        boot.apply(*parameters, steps=1)
        assert boot.apply(*parameters) == [MADE, *removed]
        assert boot.apply(*parameters) == []
        assert ("iommu=pt" in (boot.folder / "grub.cfg").read_text()) is bool(parameters)


def test_a_run_that_was_killed_before_it_took_the_empty_file_away_is_made_good(boot):
    boot.apply("iommu=pt")
    boot.apply(steps=2)
    assert boot.apply() == [boot.removed]
    assert boot.apply() == []


def test_an_entry_of_grub_without_a_parameter_and_a_file_of_another_text_are_repaired(boot):
    boot.apply("hugepagesz=1G", "hugepages=4")
    grub = boot.folder / "grub.cfg"
    grub.write_text(grub.read_text().replace("hugepagesz=1G ", ""))
    assert boot.apply("hugepagesz=1G", "hugepages=4") == [MADE]
    with open(boot.folder / "90-provision.cfg", "a") as file:
        file.write("GRUB_CMDLINE_LINUX=quiet\n")
    assert boot.apply("hugepagesz=1G", "hugepages=4") == [
        "Asked the kernel for hugepagesz=1G hugepages=4 at the next boot.",
        MADE,
    ]


@pytest.mark.parametrize(
    "text",
    [
        'GRUB_CMDLINE_LINUX="console=ttyS0"\n',
        "# site\n  export GRUB_CMDLINE_LINUX='console=ttyS0 \\\n  quiet'\n",
        "GRUB_CMDLINE_LINUX=$GRUB_CMDLINE_LINUX_DEFAULT\n",
        "GRUB_CMDLINE_LINUX=\n",
    ],
)
def test_a_later_file_that_drops_our_parameters_is_named_before_anything_is_changed(boot, text):
    put(boot.folder / "95-site.cfg", text)
    put(boot.folder / "80-early.cfg", text)
    with pytest.raises(HostError, match=r"reads \S*/95-site\.cfg after our .* without iommu=pt\. Have that line add"):
        boot.apply("iommu=pt")
    assert not (boot.folder / "90-provision.cfg").exists()
    (boot.folder / "95-site.cfg").unlink()
    assert boot.apply("iommu=pt") == [IOMMU, MADE]
    put(boot.folder / "95-site.cfg", text)
    assert boot.apply("iommu=pt") == []  # its entries have it
    put(boot.folder / "grub.cfg", "linux /boot/vmlinuz console=ttyS0\n")
    with pytest.raises(HostError, match=r"/95-site\.cfg"):
        boot.apply("iommu=pt")
    assert boot.apply()[1:] == [MADE, boot.removed]


@pytest.mark.parametrize(
    "text",
    [
        'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX quiet"\n',
        'GRUB_CMDLINE_LINUX="console=ttyS0 \\\n${GRUB_CMDLINE_LINUX}"\n',
        'GRUB_CMDLINE_LINUX="console=ttyS0 iommu=pt"\n',
        'GRUB_CMDLINE_LINUX=quiet\nGRUB_CMDLINE_LINUX="iommu=pt $GRUB_CMDLINE_LINUX"\n',
        'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\n#GRUB_CMDLINE_LINUX=x\n',
    ],
)
def test_a_later_file_that_leaves_our_parameters_in_is_fine(boot, text):
    put(boot.folder / "95-site.cfg", text)
    assert boot.apply("iommu=pt") == [IOMMU, MADE]


def test_entries_that_lack_a_parameter_once_made_anew_stop_the_run_before_a_reboot(boot, monkeypatch):
    monkeypatch.setattr(boot.module, "run", lambda argv: put(boot.folder / "grub.cfg", "linux /boot/vmlinuz ro\n"))
    for _ in range(2):
        with pytest.raises(HostError, match=r"still \S*grub\.cfg has an entry without iommu=pt.*grep -rn"):
            boot.apply("iommu=pt")
    monkeypatch.setattr(boot.module, "run", lambda argv: (boot.folder / "grub.cfg").unlink())
    with pytest.raises(HostError, match=r"grub\.cfg is not there"):
        boot.apply("iommu=pt")


OTHERS = """### BEGIN /etc/grub.d/20_memtest86+ ###
\tlinux\t/boot/memtest86+x64.bin
### END /etc/grub.d/20_memtest86+ ###
### BEGIN /etc/grub.d/30_os-prober ###
\tlinux16\t/vmlinuz-of-another root=/dev/sdb1
### END /etc/grub.d/30_os-prober ###
"""


@pytest.mark.parametrize("script", ["10_linux", "10_linux_zfs"])
def test_entries_of_others_need_no_parameters(boot, script):
    boot.apply("iommu=pt")
    grub = boot.folder / "grub.cfg"
    own = f"### BEGIN /etc/grub.d/{script} ###\n{grub.read_text()}### END /etc/grub.d/{script} ###\n"
    put(grub, f"### BEGIN /etc/grub.d/10_linux ###\n### END /etc/grub.d/10_linux ###\n{own}{OTHERS}")
    assert boot.apply("iommu=pt") == []
    put(grub, own.replace(" iommu=pt", "") + OTHERS)
    assert boot.apply("iommu=pt") == [MADE]


def test_the_order_of_parameters_counts(boot):
    words = ["hugepages=4", "hugepagesz=1G"]
    assert not provision_boot_line.is_in_order(["hugepagesz=1G", "hugepages=4"], words)


def test_what_is_no_parameter_and_a_host_without_grub_are_refused(boot):
    for word in ('a"b', "$(x)", "a b", "-v"):
        with pytest.raises(HostError, match="is no kernel parameter"):
            boot.apply(word)
    (boot.folder / "update-grub").unlink()
    with pytest.raises(HostError, match=r"has no update-grub.*by hand"):
        boot.apply("iommu=pt")


def test_a_value_that_the_kernel_makes_another_of_is_told(role_module, monkeypatch, tmp_path):
    tunables = role_module("host", "kernel_tunables")
    put(tmp_path / "knob", "1\n")
    monkeypatch.setattr(tunables, "live", lambda _: "3")
    with pytest.raises(HostError, match="took '5' for knob and made '3' of it"):
        tunables.put(tmp_path / "knob", "knob", "5")


@pytest.fixture
def numa(role_module, monkeypatch, tmp_path):
    module = role_module("ray", "gpu_numa")
    monkeypatch.setattr(module.pci, "SYS", tmp_path / "sys")
    monkeypatch.setattr(module, "ONLINE", tmp_path / "online")

    def host(nodes, online):
        put(tmp_path / "online", f"{online}\n")
        rows = [("0x10de", "0x030200", node) for node in nodes] + [("0x10de", "0x068000", 0), ("0x15b3", "0x020700", 1)]
        for place, (vendor, kind, node) in enumerate(rows):
            for name, value in {"vendor": vendor, "class": kind, "numa_node": node}.items():
                put(tmp_path / f"sys/bus/pci/devices/0000:{place:02x}:00.0/{name}", f"{value}\n")
        return module

    return host


@pytest.mark.parametrize(
    ("nodes", "online", "count", "wanted"),
    [
        ([0, 0, 1, 1], "0-1", 4, ([0, 0, 1, 1], "", "nodes 0 and 1")),
        ([0, 0, 1, 1], "0-1", 2, ([0, 0], "0", "All GPUs that it drives sit on NUMA node 0.")),
        ([0, 0], "0", 2, ([], "", "one NUMA node")),
        ([-1, -1], "0-1", 2, ([], "", "does not say")),
        ([2, 2], "0,2-3", 2, ([2, 2], "2", "NUMA node 2")),
    ],
)
def test_a_service_is_bound_where_all_its_gpus_are_on_one_node(numa, nodes, online, count, wanted):
    told = numa(nodes, online).judge(count)
    assert (told["nodes"], told["bind"]) == wanted[:2]
    assert wanted[2] in told["reason"]
