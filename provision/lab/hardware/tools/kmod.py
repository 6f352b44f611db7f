"""`modprobe`, `rmmod`, `lsmod`, `modinfo` for the modules of the simulated hardware; others go to the real kmod."""

from __future__ import annotations

import os
import sys

import devices
import state

KMOD = "/usr/bin/kmod"
KNOWN = {*state.NVIDIA_MODULES, *state.RDMA_MODULES, "nouveau"}
VALUED = (
    "-C",
    "--config",
    "-d",
    "--dirname",
    "-S",
    "--set-version",
    "-F",
    "--field",
    "-b",
    "--basedir",
    "-k",
    "--set-version",
)


def main(program: str, arguments: list[str]) -> int:
    if program == "lsmod":
        return _lsmod()
    flags, names = _split(arguments)
    if not names or not any(name in KNOWN for name in names):
        os.execv(KMOD, [program, *arguments])  # noqa: S606  # the program that this one stands before
    if program == "modinfo":
        return max(_modinfo(name, flags) for name in names)
    if program == "rmmod" or {"-r", "--remove"} & set(flags):
        return _remove(program, names)
    wanted = names if {"-a", "--all"} & set(flags) else names[:1]  # the rest are parameters of the module
    if {"-n", "--dry-run", "--show", "-D", "--show-depends"} & set(flags):
        return 0
    return max(_load(name, quiet=bool({"-q", "--quiet"} & set(flags))) for name in wanted)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    flags, names, rest = [], [], list(arguments)
    while rest:
        word = rest.pop(0)
        if word.startswith("-"):
            flags.append(word)
            if word in VALUED and rest:
                flags.append(rest.pop(0))
        elif "=" not in word:
            names.append(os.path.basename(word).split(".ko")[0].replace("-", "_"))
    return flags, names


def _load(name: str, quiet: bool) -> int:
    with state.Change() as hardware:
        objection = state.load_module(hardware, name)
    if objection == "not found":
        if not quiet:
            sys.stderr.write(
                f"modprobe: FATAL: Module {name} not found in directory /lib/modules/{os.uname().release}\n"
            )
        return 1
    if objection:
        sys.stderr.write(f"modprobe: ERROR: could not insert '{name}': {objection}\n")
        return 1
    devices.make(hardware)
    return 0


def _remove(program: str, names: list[str]) -> int:
    status = 0
    for name in names:
        with state.Change() as hardware:
            objection = state.unload_module(hardware, name)
            users = state.users_of(hardware, name)
        if objection == "not loaded" and program == "modprobe":
            continue
        if objection:
            status = 1
            by = f" by: {' '.join(users)}" if users else ""
            if program == "rmmod":
                told = (
                    f"Module {name} is in use{by}"
                    if objection == "in use"
                    else f"Module {name} is not currently loaded"
                )
                sys.stderr.write(f"rmmod: ERROR: {told}\n")
            else:
                sys.stderr.write(f"modprobe: FATAL: Module {name} is in use.\n")
    devices.make(hardware)
    return status


def _lsmod() -> int:
    hardware = state.read()
    lines = ["Module                  Size  Used by"]
    for name in reversed(hardware["modules"]):
        users = state.users_of(hardware, name)
        count = len(users) + (len(state.living_clients(hardware)) if name == "nvidia" else 0)
        lines.append(f"{name:<19} {state.module_size(name):>8}  {count} {','.join(users)}".rstrip())
    lines += _real_modules()
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _real_modules() -> list[str]:
    try:
        with open("/proc/modules", encoding="utf-8") as file:
            rows = [line.split() for line in file]
    except OSError:  # a kernel without modules
        return []
    return [f"{row[0]:<19} {row[1]:>8}  {row[2]} {row[3].strip('-,')}".rstrip() for row in rows if row[0] not in KNOWN]


def _modinfo(name: str, flags: list[str]) -> int:
    driver = state.read()["driver"]
    version = driver["installed"]
    if name in state.NVIDIA_MODULES and not version:
        sys.stderr.write(f"modinfo: ERROR: Module {name} not found.\n")
        return 1
    release = os.uname().release
    inbox = name not in state.NVIDIA_MODULES
    fields = {
        "filename": f"/lib/modules/{release}/" + (f"kernel/{name}.ko" if inbox else f"updates/dkms/{name}.ko"),
        "version": "" if inbox else version,
        "license": "NVIDIA" if not inbox and driver["flavour"] == "proprietary" else "Dual MIT/GPL",
        "vermagic": f"{release} SMP preempt mod_unload modversions ",
    }
    field = next((flags[place + 1] for place, flag in enumerate(flags) if flag in ("-F", "--field")), None)
    if field:
        sys.stdout.write(f"{fields[field]}\n" if fields.get(field) else "")
        return 0
    sys.stdout.write("".join(f"{key + ':':<16}{value}\n" for key, value in fields.items() if value))
    return 0
