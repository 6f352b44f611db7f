"""The command: which sub-commands there are, each imported when it is used, and what becomes of errors."""

from __future__ import annotations

import difflib
import os
import sys
import time
import traceback
from collections.abc import Iterable
from importlib import import_module
from types import TracebackType
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from provision import __version__, exits
from provision.errors import ProvisionError
from provision.state import state_dir

# name, where its click command is, what it does
COMMANDS = [
    (
        "preflight",
        "provision.cli.preflight:preflight",
        "What could keep a bootstrap from going well; nothing is changed.",
    ),
    ("bootstrap", "provision.cli.bootstrap:bootstrap", "Bring every host to what the inventory says; the whole job."),
    ("plan", "provision.cli.plan:plan", "What bootstrap would do, per host, and why; nothing is changed."),
    ("apply", "provision.cli.apply:apply", "Do exactly what a plan says, or nothing."),
    ("resume", "provision.cli.resume:resume", "Go on with the last run that died, was interrupted or failed."),
    ("history", "provision.cli.history:history", "The runs that were made here: who, when, what, how it ended."),
    ("show", "provision.cli.show:show", "What one run changed, with the differences, and what failed."),
    ("drift", "provision.cli.drift:drift", "What is no longer as the last bootstrap left it, and who changed it."),
    ("status", "provision.cli.status:status", "What is: hosts, GPUs, units, Ray nodes, model, health."),
    ("serve", "provision.cli.serve:serve", "One replica out of rotation, back in; restarted, or brought back."),
    ("stack", "provision.cli.stack:stack", "The versions of a deployment as one decision, and what ties them."),
    ("weights", "provision.cli.weights:weights", "The model's files: plan, fetch, verify, distribute, switch, gc."),
    ("ask", "provision.cli.ask:ask", "Ask the served model one question."),
    ("lab", "provision.cli.lab:lab", "Simulated hosts, to rehearse an inventory before touching machines."),
    ("vars", "provision.cli.vars:variables", "The variables that an inventory may set, with types and defaults."),
    ("init", "provision.cli.init:init", "Start an inventory from an example."),
    ("completion", "provision.cli.completion:completion", "Print the completion script of a shell."),
]

SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    "color": False if os.environ.get("NO_COLOR") else None,
}


class Commands(click.Group):
    """A group that knows its commands from a list, so that `--help` need not import what they do."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names in the order of the list."""
        return [name for name, _, _ in COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command of that name."""
        for name, target, _ in COMMANDS:
            if name == cmd_name:
                module, _, attribute = target.partition(":")
                command: click.Command = getattr(import_module(module), attribute)
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest name where there is none."""
        near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
        if near and args[0] not in self.list_commands(ctx):
            ctx.fail(f"No such command '{args[0]}'. Did you mean {near[0]}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list, as the help shows it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, _, text in COMMANDS])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name from the list, everything else as click does."""
        found = [CompletionItem(name, help=text) for name, _, text in COMMANDS if name.startswith(incomplete)]
        return found if found and not incomplete.startswith("-") else super().shell_complete(ctx, incomplete)


@click.group(cls=Commands, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="provision")
def cli() -> None:
    """Bare GPU servers to a served large language model, and kept there.

    Start with:  provision lab up inventory/lab  then  provision bootstrap inventory/lab
    """


def main(arguments: Iterable[str] | None = None) -> NoReturn:
    """Run the command line and exit with a documented code; no error leaves a traceback on the screen."""
    try:
        code = cli.main(
            args=None if arguments is None else list(arguments), prog_name="provision", standalone_mode=False
        )
        sys.stdout.flush()
    except BrokenPipeError:  # `provision vars | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = exits.OK
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        code = exits.INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = exits.USAGE if isinstance(error, click.UsageError) else exits.FAILED
    except Exception as error:  # noqa: BLE001 - the last place where anything can be put into words
        code = _told(error)
    sys.exit(code if isinstance(code, int) else exits.OK)


def _told(error: Exception) -> int:
    if isinstance(error, ProvisionError):
        click.echo(str(error), err=True)
        return error.exit_code
    click.echo(f"{type(error).__name__}: {error}", err=True)
    click.echo(f"This is a defect of provision. Where it happened: {_kept(error, error.__traceback__)}", err=True)
    return exits.FAILED


def _kept(error: Exception, trace: TracebackType | None) -> str:
    path = state_dir() / f"defect-{time.strftime('%Y%m%dT%H%M%S')}.txt"
    path.touch(mode=0o600)
    path.write_text("".join(traceback.format_exception(type(error), error, trace)), encoding="utf-8")
    return str(path)
