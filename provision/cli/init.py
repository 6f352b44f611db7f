"""`provision init DIR`: an inventory to start from."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from provision.content import content_root
from provision.errors import UsageError


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--from", "example", default="lab", show_default=True, metavar="EXAMPLE", help="Which example to copy.")
def init(directory: Path, example: str) -> None:
    """Copy an example inventory to DIRECTORY."""
    examples = sorted(path.name for path in (content_root() / "inventory").iterdir() if path.is_dir())
    if example not in examples:
        raise UsageError(f"There is no example {example}. There are: {', '.join(examples)}")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory} exists already and is not empty.")
    shutil.copytree(content_root() / "inventory" / example, directory, dirs_exist_ok=True)
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        click.echo(f"  {path}")
    click.echo(f"Say in {directory}/hosts.yml which hosts there are, then see what would happen:")
    click.echo(f"  provision bootstrap {directory} --check")
