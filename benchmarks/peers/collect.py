"""Runs on a converged host, as root: prints as JSON what is managed there, read off its receipts and the host itself.

The receipts say which resources; what is in them (contents, modes, versions, settings) is read from the host, so that
the peers are asked for what is there and not for what our modules make of their parameters. Contents below
`/etc/provision/secrets` stay on the host.
"""

# ruff: noqa: ARG002 (every module's method gets its parameters and facts)
from __future__ import annotations

import base64
import grp
import hashlib
import json
import os
import pwd
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

RECEIPTS = Path("/var/lib/provision/receipts")
LISTS = ("files", "directories", "absent", "secrets", "packages", "units", "environments", "states", "uncovered")
MAPPINGS = ("sysctls", "sysfs", "swap", "driver", "gpu", "weights", "api", "ray", "user")
SECRETS = "/etc/provision/secrets/"
SYSTEMD = "/etc/systemd/system/"
GOVERNORS = "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
HUGE_PAGES = "/sys/kernel/mm/hugepages/hugepages-*/nr_hugepages"
RDMA_PORTS = "/sys/class/infiniband/*/ports/*"
GPU_QUERY = "index,persistence_mode,compute_mode,ecc.mode.pending,mig.mode.pending,power.limit"


def run(*argv: str) -> str:
    """What a program says."""
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


class Managed:
    """Everything that is managed on this host; a method for each of our modules."""

    def __init__(self) -> None:
        self.all: dict[str, Any] = {
            **{name: [] for name in LISTS},
            **{name: {} for name in MAPPINGS},
        }
        self.steps: dict[str, int] = {}

    def step(self, module: str, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """Add what a step of a receipt manages; one that nobody here knows is named."""
        self.steps[module] = self.steps.get(module, 0) + 1
        known = getattr(self, module, None)
        if known:
            known(params, facts)
        elif module not in self.all["uncovered"]:
            self.all["uncovered"].append(module)

    def path(self, path: str) -> None:
        """A file, directory or absent path as it is now."""
        if path.startswith(SECRETS) and os.path.exists(path):
            self.all["secrets"].append({"path": path, "mode": f"{stat.S_IMODE(os.stat(path).st_mode):04o}"})
            return
        if not os.path.exists(path):
            self.all["absent"].append(path)
            return
        seen = os.stat(path)
        found = {
            "path": path,
            "mode": f"{stat.S_IMODE(seen.st_mode):04o}",
            "owner": pwd.getpwuid(seen.st_uid).pw_name,
            "group": grp.getgrgid(seen.st_gid).gr_name,
        }
        is_directory = os.path.isdir(path)
        kind = "directories" if is_directory else "files"
        if not is_directory:
            # In base64, since Ansible takes `{%` for the beginning of a template wherever it comes from.
            found["content"] = base64.b64encode(Path(path).read_bytes()).decode()
        self.all[kind].append(found)

    def state(self, read: str, change: str = "false") -> None:
        """What a command tells now, and the command that brings it back: or one that fails."""
        told = run("sh", "-c", read)
        if told:
            self.all["states"].append({"read": read, "told": told, "change": change})

    def host_preflight(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """The system and the free space are asserted by the peers, too."""

    def text_files(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """Files and directories."""
        for item in [*params["directories"], *params["files"]]:
            self.path(item["path"])

    def ca_certificates(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """Certificates, one a file."""
        for path in sorted(Path("/usr/local/share/ca-certificates").glob("provision-*.crt")):
            self.path(str(path))

    def apt_packages(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """Packages by name."""
        self.all["packages"] += [name.partition("=")[0] for name in params["names"]]

    def pinned_packages(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """Packages of the CUDA stage, where it was asked for any."""
        for one in params["sets"]:
            self.all["packages"] += [name.partition("=")[0] for name in one["packages"]]

    def system_user(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """The user as whom the services run."""
        user = pwd.getpwnam(params["name"])
        self.all["user"] = {"name": user.pw_name, "home": user.pw_dir, "shell": user.pw_shell}

    def kernel_tunables(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """Sysctls and files of sysfs, with what sets them at boot."""
        self.all["sysctls"] |= {key: " ".join(str(value).split()) for key, value in params["sysctls"].items()}
        self.all["sysfs"] |= params["sysfs"]
        for path in ("/etc/sysctl.d/90-provision.conf", "/etc/tmpfiles.d/90-provision.conf"):
            self.path(path)

    def cpu_governor(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """The governor of all CPUs, where the host has any."""
        self.state(f"cat {GOVERNORS} 2>/dev/null | sort -u", f"echo {params['governor']} | tee {GOVERNORS}")

    def huge_pages(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """The pages that are set aside, and what does so at boot."""
        self.path(params["file"])
        self.state(f"cat {HUGE_PAGES}", f"systemd-tmpfiles --create {params['file']}")

    def login_limits(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """Their file."""
        self.path(params["path"])

    def time_sync(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """The daemon's package and, where servers are named, its file; the unit is among the units."""
        daemon, files = self._time_daemon()
        self.all["packages"].append(daemon)
        for path in files if params["servers"] else ():
            self.path(path)

    @staticmethod
    def _time_daemon() -> tuple[str, list[str]]:
        daemons = {
            "chrony": ["/etc/chrony/sources.d/90-provision.sources"],
            "ntpsec": [],
            "systemd-timesyncd": ["/etc/systemd/timesyncd.conf.d/90-provision.conf"],
        }
        there = [name for name in daemons if "install ok" in run("dpkg-query", "-W", "-f", "${Status}", name)]
        return there[0], daemons[there[0]]

    def kernel_command_line(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """The file that adds the parameters, and whether the boot loader has them."""
        self.path("/etc/default/grub.d/90-provision.cfg")
        for word in params["parameters"]:
            self.state(f"grep -lwF -- {word} /boot/grub/grub.cfg", "update-grub")

    def initramfs(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """Initial RAM disks that are newer than the files that they hold."""
        for path in params["files"]:
            self.state(f"find /boot -name 'initrd.img-*' -newer {path} | sort", "update-initramfs -u -k all")

    def host_reboot(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """What runs is what a reboot would bring; the loaded driver and the modes of the GPUs are read with them."""
        self.state("cat /proc/cmdline")
        self.state("test -e /run/reboot-required && echo asked || echo none")

    def gpu_numa(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """The nodes on which the GPUs sit."""
        self.state("cat $(dirname $(grep -lx 0x10de /sys/bus/pci/devices/*/vendor))/numa_node")

    def rdma_ports(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """The files that a boot reads, the modules that are loaded, and how the ports are."""
        self.path(params["script"])
        self.path(params["modules_file"])
        self.state(f"cat {RDMA_PORTS}/state {RDMA_PORTS}/link_layer {RDMA_PORTS}/rate 2>/dev/null")
        loaded = "cut -d' ' -f1 /proc/modules | grep -E '^(ib_|rdma_|mlx5_ib|nvidia_peermem)' | sort"
        self.state(loaded, f"grep -v '^#' {params['modules_file']} | xargs modprobe -a")

    def fabric_env(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """The environment of NCCL."""
        self.path(params["path"])

    def nccl_tests(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """The programs that were built, by their size."""
        self.state("find /opt/provision/nccl-tests -type f -printf '%p %s\\n' 2>/dev/null | sort")

    def swap_area(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """The swap file."""
        if int(params["size"]):
            self.all["swap"] = {"path": params["path"], "size": os.stat(params["path"]).st_size}

    def nvidia_driver(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """Repository, pin, packages in one version, holds, the module that is loaded."""
        for path in (
            "/etc/apt/keyrings/provision-nvidia.asc",
            "/etc/apt/preferences.d/provision-nvidia",
            "/etc/apt/sources.list.d/provision-nvidia.sources",
        ):
            self.path(path)
        lines = run("dpkg-query", "--show", "--showformat", "${Package}=${Version}\n", *params["packages"]).splitlines()
        held = sorted(run("apt-mark", "showhold").split())
        self.all["driver"] |= {"version": params["version"], "packages": sorted(lines), "held": held}

    def nvidia_ready(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """Whether the GPUs of the host are joined by a fabric."""
        self.all["driver"]["fabric"] = bool(params["fabric"])

    def gpu_settings(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """The settings that nvidia-smi shows; the clocks of those GPUs that are locked."""
        locked = params["locked_clocks"]
        clocks = {str(index): str(value) for index, value in locked.items()}
        shown = run("nvidia-smi", f"--query-gpu={GPU_QUERY}", "--format=csv,noheader,nounits").splitlines()
        self.all["gpu"] = {"query": GPU_QUERY, "rows": shown, "clocks": clocks}

    def systemd_units(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """Units: text, whether enabled, whether running."""
        for unit in params["units"]:
            name = unit["name"]
            if unit.get("content") is not None or os.path.exists(SYSTEMD + name):
                self.path(SYSTEMD + name)
            if run("systemctl", "show", "--property=LoadState", "--value", name) != "not-found":
                # Neither for a unit that cannot be enabled, such as one that a timer starts.
                enabled = {"enabled": True, "disabled": False}.get(run("systemctl", "is-enabled", name))
                active = run("systemctl", "is-active", name) == "active"
                self.all["units"].append({"name": name, "enabled": enabled, "active": active})

    def python_env(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """An environment: its list of installed versions."""
        lock = f"{facts['location']}/.provision/lock.txt"
        sha = hashlib.sha256(Path(lock).read_bytes()).hexdigest()
        self.all["environments"].append({"lock": lock, "sha256": sha, "python": f"{facts['location']}/bin/python"})

    def model_weights(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """The manifest, and the size of every file."""
        place = facts["location"]
        sizes = sorted(run("find", place, "-type", "f", "-printf", "%P %s\n").splitlines())
        sha = hashlib.sha256(Path(f"{place}.json").read_bytes()).hexdigest()
        self.all["weights"] = {"place": place, "manifest": f"{place}.json", "sha256": sha, "sizes": sizes}

    def ray_token(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """The token's file."""
        self.path(params["path"])

    def ray_cluster(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """How many nodes the cluster has."""
        self.all["ray"] = {"command": params["command"], "nodes": len(params["members"])}

    def vllm_config(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """What vLLM reads at its start."""
        for path in ("/etc/provision/vllm.yaml", "/etc/provision/vllm.env", f"{SECRETS}vllm.env"):
            self.path(path)

    def vllm_canary(self, params: dict[str, Any], facts: dict[str, Any]) -> None:
        """The API, and the model that it is asked to generate with."""
        self.all["api"] = {"url": params["url"], "model": params["model"]}


def finished(found: dict[str, Any]) -> dict[str, Any]:
    """Each resource once, and the system that all of it is made for."""
    for kind in ("files", "directories", "secrets"):
        found[kind] = list({item["path"]: item for item in found[kind]}.values())
    for kind in ("absent", "packages"):
        found[kind] = sorted(set(found[kind]))
    there = {item["path"] for item in found["files"]}
    found["absent"] = [path for path in found["absent"] if path not in there]
    release = dict(re.findall(r'^(ID|VERSION_ID)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.MULTILINE))
    found["os"] = f"{release['ID']} {release['VERSION_ID']}"
    return found


def main() -> None:
    """Read all receipts."""
    managed = Managed()
    for receipt in sorted(RECEIPTS.glob("*.json")):
        for step in json.loads(receipt.read_text(encoding="utf-8"))["steps"]:
            managed.step(step["module"], step["params"], step["facts"])
    print(json.dumps({**finished(managed.all), "steps": managed.steps}))


if __name__ == "__main__":
    main()
