"""How the settings of a GPU are judged: what nvidia-smi shows of it against what is wanted, each as a sentence."""

from __future__ import annotations

import time
from typing import Any, Iterator, NamedTuple, Sequence

from ansible.module_utils.provision_driver import APPLICATION, FIELDS, KNOWN, SLOWDOWNS, query_gpus
from ansible.module_utils.provision_host import HostError, run

BY_GPU = ("locked_clocks", "memory_clocks", "application_clocks", "power_limit")
NOT_THERE = ("[N/A]", "N/A", "[Not Supported]")
IDLE_BELOW_MHZ = 600  # idle cards of the Hopper and Ampere boards were seen between 210 and 480 MHz


class Setting(NamedTuple):
    """One setting of one GPU that differs."""

    sentence: str  # with {} for the GPUs
    command: tuple[str, ...]
    seen: str
    wanted: str
    effect: str = "none"


def read_gpus() -> list[dict[str, str]]:
    """Everything that is judged here, of each GPU."""
    try:
        return query_gpus(FIELDS)
    except HostError as error:
        if "not a valid field" not in str(error) or "applications" not in str(error):
            raise
    return [{**row, **dict.fromkeys(APPLICATION, "[N/A]")} for row in query_gpus(KNOWN)]


def value_for(values: dict[str, Any], index: str) -> str:
    """What is wanted for a GPU, which its index names before `all` does; empty for nothing."""
    return str(values.get(index, values.get("all", ""))).replace(" ", "")


def as_range(value: str) -> tuple[int, int]:
    """`1830` and `1200,1830` as lowest and highest clock."""
    try:
        numbers = [int(word) for word in value.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or numbers[0] > numbers[-1]:
        raise HostError(f"{value!r} is no clock: give MHz, such as 1830, or a range, such as 1200,1830.")
    return numbers[0], numbers[-1]


def as_pair(value: str) -> tuple[int, int]:
    """`2619,1830` as a memory clock and a graphics clock."""
    numbers = value.split(",")
    if len(numbers) != 2 or not all(word.isdigit() for word in numbers):
        raise HostError(f"{value!r} are no application clocks: give a memory and a graphics clock, such as 2619,1830.")
    return int(numbers[0]), int(numbers[1])


def refuse_unknown(wanted: dict[str, Any], rows: list[dict[str, str]]) -> None:
    """Stop if a setting names a card that is not there."""
    indexes = {row["index"] for row in rows}
    for name in BY_GPU:
        unknown = sorted(set(wanted[name]) - indexes - {"all"})
        if unknown:
            raise HostError(f"There is no GPU {', '.join(unknown)} on this host; it has {', '.join(sorted(indexes))}.")


def refuse_unlisted(wanted: dict[str, Any], rows: list[dict[str, str]]) -> None:
    """Stop before anything is set if a card does not list a clock, or does not allow a power limit."""
    if wanted["locked_clocks"] or wanted["memory_clocks"] or wanted["application_clocks"]:
        listed = run(
            ["nvidia-smi", "--query-supported-clocks=mem,gr", "--format=csv,noheader,nounits"]
        ).out.splitlines()
        pairs = [[int(word) for word in line.split(",")] for line in listed if line.strip()]
        for name, column in (("memory_clocks", 0), ("locked_clocks", 1)):
            supported = sorted({pair[column] for pair in pairs})
            for clock in {clock for value in wanted[name].values() for clock in as_range(str(value))}:
                if clock not in supported:
                    raise HostError(f"{clock} MHz is no clock of these GPUs; {nearest(clock, supported)}.")
        for row in rows:
            refuse_application_clocks(row, value_for(wanted["application_clocks"], row["index"]), pairs)
    for row in rows:
        watts = value_for(wanted["power_limit"], row["index"])
        low, high = row["power.min_limit"], row["power.max_limit"]
        if watts and not float(low) <= float(watts) <= float(high):
            raise HostError(f"GPU {row['index']} takes power limits from {low} to {high} W, not {watts} W.")


def nearest(clock: int, supported: Sequence[int]) -> str:
    """The clocks of a card beside one that it does not have, in words."""
    near = sorted(sorted(supported, key=lambda other: abs(other - clock))[:2])
    if len(near) < 2:
        return f"the only one is {near[0]}" if near else "it lists none"
    return f"the nearest are {near[0]} and {near[1]}"


def refuse_application_clocks(row: dict[str, str], wanted: str, pairs: list[list[int]]) -> None:
    """Stop if a card has no application clocks, or not this pair."""
    if not wanted:
        return
    if row["clocks.applications.graphics"] in NOT_THERE:
        raise HostError(
            f"GPU {row['index']} has no application clocks under this driver; NVIDIA gives them up. Lock its graphics "
            "clock instead: gpu_locked_clocks."
        )
    memory, graphics = as_pair(wanted)
    if [memory, graphics] in pairs:
        return
    if [graphics, memory] in pairs:
        raise HostError(f"Application clocks are memory before graphics: {graphics},{memory}, not {wanted}.")
    memories = sorted({pair[0] for pair in pairs})
    if memory not in memories:
        raise HostError(f"{memory} MHz is no memory clock of GPU {row['index']}; {nearest(memory, memories)}.")
    graphics_clocks = sorted({pair[1] for pair in pairs if pair[0] == memory})
    raise HostError(
        f"{graphics} MHz is no graphics clock of GPU {row['index']} beside {memory} MHz of memory; "
        f"{nearest(graphics, graphics_clocks)}."
    )


def locked_by_hand(row: dict[str, str]) -> bool:
    """Whether a card without work stays at a clock that an unlocked one leaves; asked three times within a second.

    Seen on H200: with no client it drops to 345 MHz within a second, with a client that waits it runs at its highest
    clock. So neither stays in between.
    """

    def stays_up(now: dict[str, str]) -> bool:
        is_free = now["utilization.gpu"] == "0" and not any(now[reason] == "Active" for reason in SLOWDOWNS)
        return is_free and IDLE_BELOW_MHZ <= int(now["clocks.sm"]) < int(now["clocks.max.sm"])

    seen = [row]
    while stays_up(seen[-1]) and seen[-1]["clocks.sm"] == row["clocks.sm"]:
        if len(seen) == 3:
            return True
        time.sleep(0.4)
        seen += [now for now in query_gpus(KNOWN) if now["index"] == row["index"]]
    return False


def application_clocks(row: dict[str, str], wanted: str) -> Iterator[Setting]:
    """The clocks at which programs run unless heat or power hold them below: any pair, or the card's own."""
    seen, own = (tuple(row[field] for field in fields) for fields in (APPLICATION[:2], APPLICATION[2:]))
    if wanted:
        memory, graphics = as_pair(wanted)
        if seen != (str(memory), str(graphics)):
            text = f"{memory} MHz of memory and {graphics} MHz"
            words = (f"Set the application clocks of {{}} to {text}.", ("-ac", f"{memory},{graphics}"))
            yield Setting(*words, f"{seen[0]}, {seen[1]} MHz", text)
    elif seen[0] not in NOT_THERE and own[0] not in NOT_THERE and seen != own:
        words = ("Set the application clocks of {} back to the card's own.", ("-rac",))
        yield Setting(*words, f"{seen[0]}, {seen[1]} MHz", f"{own[0]}, {own[1]} MHz")


def graphics_clock(row: dict[str, str], wanted: str, record: dict[str, Any]) -> Iterator[Setting]:
    """The graphics clock, judged by the clock at which the card runs, and by what an earlier run locked."""
    index, clock = row["index"], int(row["clocks.sm"])
    if not wanted:
        if index in record["graphics"] or locked_by_hand(row):
            yield Setting("Unlocked the graphics clock of {}.", ("-rgc",), f"held at {clock} MHz", "unlocked")
        return
    low, high = as_range(wanted)
    is_slowed = any(row[reason] == "Active" for reason in SLOWDOWNS)
    too_slow = clock < low and not is_slowed and index not in record["quiet"]
    if record["graphics"].get(index) != wanted or too_slow or clock > high:
        text = f"{low} MHz" if low == high else f"{low} to {high} MHz"
        sentence = f"Locked the graphics clock of {{}} at {text}."
        yield Setting(sentence, ("-lgc", f"{low},{high}"), f"{clock} MHz", text)


def memory_clock(row: dict[str, str], wanted: str, record: dict[str, Any]) -> Iterator[Setting]:
    """The memory clock; a low one where none is wanted may be the card's own choice, and is left."""
    index, clock = row["index"], row["clocks.mem"]
    if wanted:
        low, high = as_range(wanted)
        if record["memory"].get(index) != wanted or not low <= int(clock) <= high:
            yield Setting(
                f"Locked the memory clock of {{}} at {high} MHz.", ("-lmc", f"{low},{high}"), f"{clock} MHz", wanted
            )
    elif index in record["memory"]:
        yield Setting("Unlocked the memory clock of {}.", ("-rmc",), f"held at {clock} MHz", "unlocked")


def modes(row: dict[str, str], wanted: dict[str, Any]) -> Iterator[Setting]:
    """Persistence, power limit, compute mode, ECC and MIG."""
    if row["persistence_mode"] != "Enabled":
        yield Setting("Turned on persistence mode of {}.", ("-pm", "1"), row["persistence_mode"], "Enabled")
    watts = value_for(wanted["power_limit"], row["index"]) or row["power.default_limit"]
    if watts != "[N/A]" and float(row["power.limit"]) != float(watts):
        text = f"{float(watts):.0f} W"
        yield Setting(f"Set the power limit of {{}} to {text}.", ("-pl", watts), f"{row['power.limit']} W", text)
    mode = wanted["compute_mode"]
    if row["compute_mode"] != mode:
        yield Setting(f"Set the compute mode of {{}} to {mode}.", ("-c", mode.upper()), row["compute_mode"], mode)
    for name, switch in (("ecc", "-e"), ("mig", "-mig")):
        is_on, seen = wanted[name], row[f"{name}.mode.pending"]
        text = "Enabled" if is_on else "Disabled"
        if seen not in (text, "[N/A]"):
            words = (f"{text} {name.upper()} mode of {{}}.", (switch, "1" if is_on else "0"), seen, text)
            yield Setting(*words, "gpu_reset")


def differing(row: dict[str, str], wanted: dict[str, Any], record: dict[str, Any]) -> Iterator[Setting]:
    """Every setting of one GPU that differs."""
    index = row["index"]
    yield from modes(row, wanted)
    yield from graphics_clock(row, value_for(wanted["locked_clocks"], index), record)
    yield from memory_clock(row, value_for(wanted["memory_clocks"], index), record)
    yield from application_clocks(row, value_for(wanted["application_clocks"], index))


def virgin_rows(wanted: dict[str, Any]) -> list[dict[str, str]]:
    """GPUs as the driver will first show them, on a host that has none yet: nothing set, limits unknown."""
    modes_now = {"persistence_mode": "Enabled", "compute_mode": "Default", "ecc.mode.pending": "Enabled"}
    modes_now = {
        **modes_now,
        "mig.mode.pending": "Disabled",
        **dict.fromkeys(("power.limit", "power.default_limit"), str(wanted["expected"].get("watts", 0))),
    }
    bounds = {"power.min_limit": "0", "power.max_limit": "inf", "clocks.sm": "0", "clocks.mem": "0"}
    fields = {**dict.fromkeys(FIELDS, "0"), **modes_now, **bounds}
    return [{**fields, "index": str(index)} for index in range(wanted["expected"].get("count", 0))]
