"""The simulated `nvidia-smi`: reads the command line, finds the cards that are meant, and prints."""

from __future__ import annotations

import os
import sys
import time

import devices
import smi_links
import smi_query
import smi_report
import smi_set
import smi_table
import state
from smi_values import bus_id

MYPY = False
if MYPY:
    from typing import Any, TextIO


# NVML's error codes are nvidia-smi's exit statuses.
INVALID, NOT_FOUND, NO_DRIVER, GPU_LOST, MISMATCH = 2, 6, 9, 15, 18
INVALID_TEXT = "Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n"
NO_DRIVER_TEXT = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running.\n"
)
VALUED = {
    "-i": "--id",
    "-d": "--display",
    "-f": "--filename",
    "-l": "--loop",
    "-lms": "--loop-ms",
    "-m": "--mode",
    "--query-gpu": "--query-gpu",
    "--query-supported-clocks": "--query-supported-clocks",
    "--query-compute-apps": "--query-compute-apps",
    "--format": "--format",
}
PLAIN = {"-q": "--query", "-x": "--xml-format", "-L": "--list-gpus", "-h": "--help", "-eow": "--error-on-warning"}
PLAIN |= {name: name for name in ("--version", "--help-query-gpu", "--dtd")}


class EndError(Exception):
    """Nothing more to do: what is still printed, and the exit status."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def main(version: str, arguments: list[str]) -> int:
    try:
        options = parse(arguments)
        if "--help" in options:
            raise EndError(_help(version), 0)
        if "--help-query-gpu" in options:
            raise EndError(_fields_help(), 0)
        out = open(options["--filename"], "w", encoding="utf-8") if "--filename" in options else sys.stdout  # noqa: SIM115
        seconds = _interval(options)
        while True:
            status = run(options, version, out)
            out.flush()
            if seconds is None:
                return status
            time.sleep(seconds)
    except EndError as end:
        sys.stdout.write(str(end))
        return end.status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141


def run(options: dict[str, Any], version: str, out: TextIO) -> int:
    hardware = _driver(version)
    if "--version" in options:
        short = ".".join(version.split(".")[:2])
        loaded = hardware["driver"]["loaded"]
        out.write(f"NVIDIA-SMI version  : {version}\nNVML version        : {short}\n")
        out.write(f"DRIVER version      : {loaded}\nCUDA Version        : 13.0\n")
        return 0
    switch = next((name for name in smi_set.SWITCHES if name in options), None)
    if switch:
        return _change(switch, options, out)
    cards, lost = _chosen(hardware, options)
    for gpu in lost:
        out.write(f"{_no_handle(gpu)}\n")
    _show(hardware, cards, options, version, out)
    return GPU_LOST if lost else 0


def _show(hardware: state.Hardware, cards: list[state.Gpu], options: dict[str, Any], version: str, out: TextIO) -> None:
    query = next((name for name in options if name.startswith("--query-")), None)
    if query:
        lines = _query(query, hardware, cards, options)
    elif "topo" in options:
        lines = _topology(hardware, options["topo"])
    elif "nvlink" in options:
        lines = smi_links.status(hardware, cards)
    elif "--list-gpus" in options:
        name = hardware["profile"]["gpus"]["name"]
        lines = [f"GPU {gpu['index']}: {name} (UUID: {gpu['uuid']})" for gpu in cards]
    elif "--query" in options:
        displays = options.get("--display")
        xml = "--xml-format" in options
        out.write(smi_report.xml(hardware, cards) if xml else smi_report.text(hardware, cards, displays))
        return
    else:
        lines = smi_table.table(hardware, cards, version)
    out.write("".join(f"{line}\n" for line in lines))


def _query(query: str, hardware: state.Hardware, cards: list[state.Gpu], options: dict[str, Any]) -> list[str]:
    form = options.get("--format", "").split(",")
    if "csv" not in form:
        raise EndError(INVALID_TEXT, INVALID)
    header, units = "noheader" not in form, "nounits" not in form
    wanted = [name.strip() for name in options[query].split(",")]
    try:
        if query == "--query-gpu":
            return smi_query.gpus(hardware, cards, wanted, header, units)
        if query == "--query-supported-clocks":
            return smi_query.supported_clocks(hardware, cards, wanted, header, units)
        return smi_query.processes(wanted, header)
    except smi_query.UnknownFieldError as unknown:
        raise EndError(f'Field "{unknown}" is not a valid field to query.\n\n', INVALID) from None


def _topology(hardware: state.Hardware, arguments: list[str]) -> list[str]:
    if arguments[:1] in (["-m"], ["--matrix"]):
        return smi_links.matrix(hardware)
    if arguments[:1] == ["-p2p"]:
        return smi_links.peers(hardware)
    raise EndError(INVALID_TEXT, INVALID)


def _change(switch: str, options: dict[str, Any], out: TextIO) -> int:
    _, action, _, afterwards = smi_set.SWITCHES[switch]
    if os.geteuid():
        cards, _ = _chosen(state.read(), options)
        out.write(f"{smi_set.refusal(action, cards[0])}\nTerminating early due to previous errors.\n")
        return smi_set.NO_PERMISSION
    with state.Change() as hardware:
        state.forget_settings_without_persistence(hardware)
        cards, lost = _chosen(hardware, options)
        try:
            for gpu in lost:
                raise smi_set.RefusedError(_no_handle(gpu), GPU_LOST)
            for gpu in cards:
                said = action(hardware, gpu, options[switch])
                out.write(f"{said}\n" if said else "")
                if action in smi_set.VOLATILE and not state.persistent(hardware, gpu):
                    out.write(smi_set.UNPERSISTED.format(bus_id(gpu)))
        except smi_set.RefusedError as refused:
            out.write(f"{refused}\nTerminating early due to previous errors.\n")
            return refused.status
        state.forget_settings_without_persistence(hardware)  # this program was the last to hold the card
    out.write("All done.\n" + (f"{afterwards}\n" if afterwards else ""))
    return 0


def _driver(version: str) -> state.Hardware:
    """The hardware behind a loaded driver of this program's version, loading it where it may be."""
    hardware = state.read()
    if not hardware["driver"]["loaded"] and hardware["driver"]["installed"] and not os.geteuid():
        with state.Change() as hardware:  # as nvidia-modprobe does for nvidia-smi
            state.load_module(hardware, "nvidia")
        devices.make(hardware)
    loaded = hardware["driver"]["loaded"]
    if not loaded or not hardware["gpus"]:
        raise EndError(NO_DRIVER_TEXT, NO_DRIVER)
    if loaded != version:
        short = ".".join(version.split(".")[:2])
        raise EndError(
            f"Failed to initialize NVML: Driver/library version mismatch\nNVML library version: {short}\n", MISMATCH
        )
    state.forget_settings_without_persistence(hardware)
    return hardware


def _no_handle(gpu: state.Gpu) -> str:
    return f"Unable to determine the device handle for GPU{gpu['index']}: {gpu['bus_id'].upper()}: Unknown Error"


def _chosen(hardware: state.Hardware, options: dict[str, Any]) -> tuple[list[state.Gpu], list[state.Gpu]]:
    """The cards that are meant, and among them those that fell off the bus."""
    cards = hardware["gpus"]
    if "--id" in options:
        found = [_card(hardware, name) for name in options["--id"].split(",")]
        if None in found:
            raise EndError("No devices were found\n", NOT_FOUND)
        cards = found
    return [gpu for gpu in cards if not gpu["lost"]], [gpu for gpu in cards if gpu["lost"]]


def _card(hardware: state.Hardware, name: str) -> state.Gpu | None:
    for gpu in hardware["gpus"]:
        names = (
            str(gpu["index"]),
            gpu["uuid"].lower(),
            gpu["serial"],
            gpu["bus_id"],
            bus_id(gpu).lower(),
            gpu["bus_id"][5:],
        )
        if name.lower() in names:
            return gpu
    return None


def parse(arguments: list[str]) -> dict[str, Any]:
    """The command line as a dict from long names to values; `topo` and `nvlink` keep their own arguments."""
    switches = {short: long for long, (short, *_) in smi_set.SWITCHES.items()}
    valued = set(VALUED.values()) | {long for long, (_, _, takes, _) in smi_set.SWITCHES.items() if takes}
    options, rest = {}, list(arguments)
    while rest:
        word, _, value = rest.pop(0).partition("=")
        name = VALUED.get(word) or PLAIN.get(word) or switches.get(word) or word
        if name in valued:
            if not value and not rest:
                raise EndError(INVALID_TEXT, INVALID)
            options[name] = value or rest.pop(0)
        elif name in PLAIN.values() or name in smi_set.SWITCHES:
            options[name] = value
            if name == "--gpu-reset" and rest[:1] == ["bus"]:
                rest.pop(0)
        elif word in ("topo", "nvlink") and not options:
            options |= _subcommand(word, rest)
            rest = []
        else:
            raise EndError(f"Option {word} is not recognized. Please run 'nvidia-smi -h'.\n", INVALID)
    if "--display" in options:
        options["--display"] = [name.strip().upper() for name in options["--display"].split(",")]
        unknown = [name for name in options["--display"] if name not in smi_report.DISPLAYS]
        if unknown:
            raise EndError(f"\"{unknown[0]}\" is not a valid display. Please run 'nvidia-smi -h' for help.\n", INVALID)
    return options


def _subcommand(word: str, rest: list[str]) -> dict[str, Any]:
    options = {word: rest}
    if "-i" in rest[:-1]:
        options["--id"] = rest[rest.index("-i") + 1]
    if word == "nvlink" and not {"-s", "--status"} & set(rest):
        raise EndError(INVALID_TEXT, INVALID)
    return options


def _interval(options: dict[str, Any]) -> float | None:
    for name, divisor in (("--loop", 1), ("--loop-ms", 1000)):
        if name in options:
            return float(options[name]) / divisor
    return None


def _help(version: str) -> str:
    switches = "".join(
        f"    {short:<6} {long}{'=' if takes else ''}\n" for long, (short, _, takes, _) in smi_set.SWITCHES.items()
    )
    return (
        f"NVIDIA System Management Interface -- v{version}\n\n"
        "Simulated: this card and its driver are part of a provision lab. It understands\n\n"
        "    -h -L --version -i ID -f FILE -l SECONDS -lms MILLISECONDS\n"
        f"    -q [-x | -d DISPLAY,...]   DISPLAY: {', '.join(smi_report.DISPLAYS)}\n"
        "    --query-gpu=FIELD,... --format=csv[,noheader][,nounits]   (fields: --help-query-gpu)\n"
        "    --query-supported-clocks=mem,gr --query-compute-apps=pid,name,used_memory\n"
        f"    topo -m, topo -p2p r, nvlink --status\n{switches}"
    )


def _fields_help() -> str:
    lines = ['List of valid properties to query for the switch "--query-gpu":\n']
    seen = []
    for names, _, _ in smi_query.known_fields().values():
        if names not in seen:
            seen.append(names)
            lines.append(" or ".join(f'"{name}"' for name in names) + "\n")
    return "\n".join(lines)
