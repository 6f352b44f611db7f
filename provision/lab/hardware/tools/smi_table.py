"""What `nvidia-smi` prints when it is asked nothing: the table of cards."""

from __future__ import annotations

import time

import state
from smi_report import CUDA
from smi_values import values

MYPY = False
if MYPY:
    from typing import Any


_BAR = "+-----------------------------------------+------------------------+----------------------+"
_WIDE = "+-----------------------------------------------------------------------------------------+"
_MODES = {"Exclusive_Process": "E. Process", "Exclusive_Thread": "E. Thread"}


def table(hardware: state.Hardware, cards: list[state.Gpu], version: str) -> list[str]:
    loaded = hardware["driver"]["loaded"]
    title = f" NVIDIA-SMI {version:<22} Driver Version: {loaded:<14} CUDA Version: {CUDA:<9}"
    lines = [
        time.strftime("%a %b %e %H:%M:%S %Y") + " " * 7,
        _WIDE,
        f"|{title}|",
        _BAR,
        "| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |",
        "| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage | GPU-Util  Compute M. |",
        "|                                         |                        |               MIG M. |",
        "|=========================================+========================+======================|",
    ]
    for card in cards:
        lines += _card(values(hardware, card))
    lines += [
        "",
        _WIDE,
        f"|{' Processes:':<89}|",
        f"|{'  GPU   GI   CI              PID   Type   Process name                        GPU Memory ':<89}|",
        f"|{'        ID   ID                                                               Usage      ':<89}|",
        f"|{'=' * 89}|",
        f"|{'  No running processes found':<89}|",
        _WIDE,
    ]
    return lines


def _card(told: dict[str, Any]) -> list[str]:
    errors = told["volatile_uncorrected"] if told["ecc_current"] == "Enabled" else "Off"
    power = f"{float(told['power_draw']):.0f}W / {float(told['power_limit']):>4.0f}W"
    name = f"{told['index']:>4}  {told['name']}"[:36]
    mode = _MODES.get(told["compute_mode"], told["compute_mode"])
    on = "On" if told["persistence"] == "Enabled" else "Off"
    return [
        f"|{name:<36}{on:>3}  |   {told['pci_bus_id']} Off | {errors:>20} |",
        f"| N/A  {told['temperature']:>3}C    P0{power:>24} "
        f"|{told['memory_used']:>8}MiB / {told['memory_total']:>6}MiB |      0% {mode:>12} |",
        f"|{'':41}|{'':24}|{told['mig_current']:>21} |",
        _BAR,
    ]
