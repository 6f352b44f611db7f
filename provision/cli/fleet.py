"""What commands that work on a fleet share: loading it, with the lab's overlay where its hosts are simulated."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from provision.errors import LabError
from provision.inventory import Fleet, load_fleet, simulated

inventory_argument = click.argument("inventory", type=click.Path(path_type=Path))
lab_option = click.option("--lab", is_flag=True, help="Rehearse on the simulated fleet (provision lab up INVENTORY).")


def load(inventory: Path, lab: bool, asked: Iterable[str] = ()) -> Fleet:
    """The fleet of an inventory; on simulated hosts if it says `lab: true` or the user says --lab.

    `asked`: the settings whose defaults the command needs besides (`Host.setting`).
    Raises InventoryError, and LabError if the simulated hosts are not up.
    """
    if not (lab or simulated(inventory)):
        return load_fleet(inventory, asked=asked)
    from provision.lab import fleet  # noqa: PLC0415 - a real fleet needs nothing of the lab

    found = fleet.find(inventory)
    if found is None:
        load_fleet(inventory)  # what is wrong with it is worth knowing first
        raise LabError(
            f"The hosts of {inventory} are simulated, and are not up.\n  Bring them up:  provision lab up {inventory}"
        )
    return load_fleet(inventory, [found.overlay], asked)
