"""The switches of nvidia-smi that change a card. Each changes one card and returns what is printed of it."""

from __future__ import annotations

import state
from smi_values import bus_id, graphics_clocks

MYPY = False
if MYPY:
    from collections.abc import Callable


NO_PERMISSION = 4
ONOFF = {"0": False, "DISABLED": False, "1": True, "ENABLED": True}
COMPUTE_MODES = {"0": "Default", "DEFAULT": "Default", "2": "Prohibited", "PROHIBITED": "Prohibited"}
COMPUTE_MODES |= {"3": "Exclusive_Process", "EXCLUSIVE_PROCESS": "Exclusive_Process", "1": "Exclusive_Thread"}
UNPERSISTED = (
    "\nWarning: persistence mode is disabled on device {}. See the Known Issues section of the nvidia-smi(1) man page "
    "for more information. Run with [--help | -h] switch to get more information on how to enable persistence mode.\n"
)


class RefusedError(Exception):
    """The card or the driver refuses: the message, and nvidia-smi's exit status."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


def persistence_mode(hardware: state.Hardware, gpu: state.Gpu, value: str) -> str:
    wanted = _onoff(value)
    if state.persistent(hardware, gpu) == wanted:
        return f"Persistence mode is already {'Enabled' if wanted else 'Disabled'} for GPU {bus_id(gpu)}."
    daemon = state.living_clients(hardware).get("nvidia-persistenced")
    if daemon:
        daemon["persistence"] = wanted  # nvidia-smi asks the daemon where there is one
    else:
        gpu["persistence"] = wanted
    legacy = "" if daemon else "Legacy "
    return f"{'Enabled' if wanted else 'Disabled'} {legacy}persistence mode for GPU {bus_id(gpu)}."


def _clock_range(value: str, form: str, names: dict[str, int]) -> tuple[list[str], list[int]]:
    """The words of a clock or a pair of clocks, and the range in MHz that they mean; some words are names of clocks."""
    words = value.split(",")
    low, high = (_number(names.get(word, word)) for word in (words[0], words[-1]))
    if len(words) > 2 or low > high:  # noqa: PLR2004  # a pair, or one value
        raise RefusedError(f'Invalid clock range "{value}": give {form} in MHz.')
    return words, [low, high]


def lock_gpu_clocks(hardware: state.Hardware, gpu: state.Gpu, value: str) -> str:
    clocks = graphics_clocks(hardware["profile"]["gpus"])
    names = {"tdp": clocks[0], "base": clocks[-1], "unlimited": clocks[0]}
    words, gpu["graphics_lock"] = _clock_range(value, "<minGpuClock,maxGpuClock>", names)
    return f'GPU clocks set to "(gpuClkMin {words[0]}, gpuClkMax {words[-1]})" for GPU {bus_id(gpu)}'


def reset_gpu_clocks(_hardware: state.Hardware, gpu: state.Gpu, _value: str) -> None:
    gpu["graphics_lock"] = None


def lock_memory_clocks(_hardware: state.Hardware, gpu: state.Gpu, value: str) -> str:
    _, (low, high) = _clock_range(value, "<minMemClock,maxMemClock>", {})
    gpu["memory_lock"] = [low, high]
    return f'Memory clocks set to "(memClkMin {low}, memClkMax {high})" for GPU {bus_id(gpu)}'


def reset_memory_clocks(_hardware: state.Hardware, gpu: state.Gpu, _value: str) -> None:
    gpu["memory_lock"] = None


def application_clocks(hardware: state.Hardware, gpu: state.Gpu, value: str) -> str:
    card = hardware["profile"]["gpus"]
    words = value.split(",")
    memory, graphics = _number(words[0]), _number(words[-1])
    if len(words) != 2 or memory not in card["memory_clocks"] or graphics not in graphics_clocks(card):  # noqa: PLR2004
        raise RefusedError(
            f'Specified clock combination "(MEM {words[0]}, SM {words[-1]})" is not supported for GPU {bus_id(gpu)}. '
            "Run 'nvidia-smi -q -d SUPPORTED_CLOCKS' to see list of supported clock combinations"
        )
    gpu["application_clocks"] = [memory, graphics]
    return f'Applications clocks set to "(MEM {memory}, SM {graphics})" for GPU {bus_id(gpu)}'


def reset_application_clocks(_hardware: state.Hardware, gpu: state.Gpu, _value: str) -> None:
    gpu["application_clocks"] = None


def power_limit(hardware: state.Hardware, gpu: state.Gpu, value: str) -> str:
    limits = hardware["profile"]["gpus"]["power"]
    try:
        watts = float(value)
    except ValueError:
        raise RefusedError(f'"{value}" is not a number of watts.') from None
    if not limits["min"] <= watts <= limits["max"]:
        raise RefusedError(
            f"Provided power limit {watts:.2f} W is not a valid power limit which should be between "
            f"{limits['min']:.2f} W and {limits['max']:.2f} W for GPU {bus_id(gpu)}"
        )
    before, gpu["power_limit"] = gpu["power_limit"], watts
    return f"Power limit for GPU {bus_id(gpu)} was set to {watts:.2f} W from {before:.2f} W."


def ecc_config(_hardware: state.Hardware, gpu: state.Gpu, value: str) -> str:
    wanted = "Enabled" if _onoff(value) else "Disabled"
    if gpu["ecc_pending"] == wanted:
        return f"ECC support is already {wanted} for GPU {bus_id(gpu)}."
    gpu["ecc_pending"] = wanted
    return f"{wanted} ECC support for GPU {bus_id(gpu)}."


def mig_mode(hardware: state.Hardware, gpu: state.Gpu, value: str) -> str:
    gpu["mig_pending"] = "Enabled" if _onoff(value) else "Disabled"
    if hardware["profile"]["gpus"]["architecture"] == "Hopper":
        gpu["mig_current"] = gpu["mig_pending"]  # since Hopper without a reset
    elif gpu["mig_current"] != gpu["mig_pending"]:
        return f"Warning: MIG mode is in pending {'enable' if _onoff(value) else 'disable'} state for GPU {bus_id(gpu)}"
    return f"{gpu['mig_pending']} MIG Mode for GPU {bus_id(gpu)}"


def compute_mode(_hardware: state.Hardware, gpu: state.Gpu, value: str) -> str:
    mode = COMPUTE_MODES.get(value.upper())
    if mode is None:
        raise RefusedError(f'"{value}" is not a compute mode.')
    gpu["compute_mode"] = mode
    return f"Set compute mode to {mode.upper()} for GPU {bus_id(gpu)}."


def reset_ecc_errors(_hardware: state.Hardware, gpu: state.Gpu, value: str) -> str:
    kind = {"0": "volatile", "VOLATILE": "volatile", "1": "aggregate", "AGGREGATE": "aggregate"}.get(value.upper())
    if kind is None:
        raise RefusedError(f'"{value}" is neither VOLATILE nor AGGREGATE.')
    gpu["ecc_errors"][kind] = dict.fromkeys(gpu["ecc_errors"][kind], 0)
    return f"Reset {kind} ECC errors to zero for GPU {bus_id(gpu)}."


def gpu_reset(hardware: state.Hardware, gpu: state.Gpu, _value: str) -> str:
    if "nv-fabricmanager" in state.living_clients(hardware):
        raise RefusedError(
            f"The following GPUs could not be reset:\n  GPU {bus_id(gpu)}: In use by another client\n\n"
            "1 device is currently being used by one or more other processes (e.g., Fabric Manager, CUDA application, "
            "graphics application such as an X server, or a monitoring application such as another instance of "
            "nvidia-smi). Please first kill all processes using this device and all compute applications running in "
            "the system.\n",
            status=19,
        )
    state.reset_gpu(hardware, gpu)
    return f"GPU {bus_id(gpu)} was successfully reset."


# Long name: (short name, what it does, whether it takes a value, what is printed once at the end).
SWITCHES = {
    "--persistence-mode": ("-pm", persistence_mode, True, ""),
    "--lock-gpu-clocks": ("-lgc", lock_gpu_clocks, True, ""),
    "--reset-gpu-clocks": ("-rgc", reset_gpu_clocks, False, ""),
    "--lock-memory-clocks": ("-lmc", lock_memory_clocks, True, ""),
    "--reset-memory-clocks": ("-rmc", reset_memory_clocks, False, ""),
    "--applications-clocks": ("-ac", application_clocks, True, ""),
    "--reset-applications-clocks": ("-rac", reset_application_clocks, False, ""),
    "--power-limit": ("-pl", power_limit, True, ""),
    "--ecc-config": ("-e", ecc_config, True, "Reboot required."),
    "--reset-ecc-errors": ("-p", reset_ecc_errors, True, ""),
    "--multi-instance-gpu": ("-mig", mig_mode, True, ""),
    "--compute-mode": ("-c", compute_mode, True, ""),
    "--gpu-reset": ("-r", gpu_reset, False, ""),
}
VOLATILE = (lock_gpu_clocks, lock_memory_clocks, application_clocks, power_limit, compute_mode)
CLOCKS = (lock_gpu_clocks, reset_gpu_clocks, lock_memory_clocks, reset_memory_clocks, application_clocks)


def refusal(action: Callable[..., str | None], gpu: state.Gpu) -> str:
    """What an ordinary user is told."""
    if action in (*CLOCKS, reset_application_clocks):
        return f"The current user does not have permission to change clocks for GPU {bus_id(gpu)}."
    if action is power_limit:
        return f"Failed to set power management limit for GPU {bus_id(gpu)}: Insufficient Permissions"
    if action is persistence_mode:
        return f"Unable to set persistence mode for GPU {bus_id(gpu)}: Insufficient Permissions"
    return f"Unable to change the settings of GPU {bus_id(gpu)}: Insufficient Permissions"


def _onoff(value: str) -> bool:
    if value.upper() not in ONOFF:
        raise RefusedError(f'"{value}" is neither 0/DISABLED nor 1/ENABLED.')
    return ONOFF[value.upper()]


def _number(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise RefusedError(f'"{word}" is not a clock in MHz.') from None
