"""`provision ask INVENTORY QUESTION`: one question to the served model, through the OpenAI API."""

from __future__ import annotations

from pathlib import Path

import click

from provision.cli.fleet import inventory_argument, lab_option, load
from provision.errors import UsageError
from provision.serving.endpoint import ask as ask_endpoint
from provision.serving.endpoint import endpoint_of


@click.command()
@inventory_argument
@click.argument("question")
@click.option("--replica", "name", metavar="NAME", help="Ask this replica [default: the first].")
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True, help="Tokens to generate at most.")
@lab_option
def ask(*, inventory: Path, question: str, name: str | None, max_tokens: int, lab: bool) -> None:
    """Ask the served model of INVENTORY one QUESTION and print its answer as it is generated."""
    replicas = {replica.name: replica for replica in load(inventory, lab).replicas}
    if name is not None and name not in replicas:
        raise UsageError(f"--replica: {inventory} has no replica {name}. It has {', '.join(replicas)}.")
    endpoint = endpoint_of(replicas[name] if name else next(iter(replicas.values())))
    answer = ask_endpoint(endpoint, question, max_tokens=max_tokens, on_text=lambda text: click.echo(text, nl=False))
    click.echo()
    click.echo(
        f"{endpoint.model} at {endpoint.url}: first token after {answer.first_token_s * 1000:.0f} ms, "
        f"{answer.tokens} tokens in {answer.total_s:.1f} s",
        err=True,
    )
