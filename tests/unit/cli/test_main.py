from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from provision import exits
from provision.cli import main as main_module
from provision.cli.main import COMMANDS, main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code)


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_help_lists_every_command(capsys):
    assert run("--help") == exits.OK
    shown = capsys.readouterr().out
    assert [name for name, _, _ in COMMANDS if name not in shown] == []


@pytest.mark.parametrize("name", [name for name, _, _ in COMMANDS])
def test_every_command_has_help(name, capsys):
    assert run(name, "--help") == exits.OK
    assert "Usage: provision" in capsys.readouterr().out


def test_help_is_quick():
    def once() -> float:
        """Seconds of the processor: the wall's depend on what else the machine does."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "provision", "--help"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(once() for _ in range(3)) < 0.3


def test_help_imports_neither_ansible_nor_rich():
    code = "import provision.cli.main, sys; print([m for m in ('ansible', 'rich', 'paramiko') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["boostrap"], "No such command 'boostrap'. Did you mean bootstrap?"),
        (["bootstrap"], "Missing argument 'INVENTORY'"),
        (["bootstrap", "x", "--frks", "3"], "No such option"),
        (["vars", "vlm"], "No role or variable vlm"),
        (["init", "x", "--from", "nowhere"], "There is no example nowhere"),
    ],
)
def test_usage_errors(arguments, said, capsys):
    assert run(*arguments) == exits.USAGE
    assert said in capsys.readouterr().err


def test_a_missing_inventory_is_invalid(tmp_path, capsys):
    assert run("bootstrap", str(tmp_path / "none")) == exits.INVALID
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "does not exist" in captured.err


def test_a_defect_is_one_line_and_a_file(monkeypatch, capsys):
    def broken(*_args, **_kwargs):
        raise KeyError("oops")

    monkeypatch.setattr(main_module.cli, "main", broken)
    assert run("vars") == exits.FAILED
    captured = capsys.readouterr().err
    assert "Traceback" not in captured
    path = Path(captured.strip().rsplit(" ", 1)[1])
    assert "KeyError" in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_ctrl_c(monkeypatch, capsys):
    def stopped(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module.cli, "main", stopped)
    assert run("vars") == exits.INTERRUPTED
    assert capsys.readouterr().err == "Interrupted.\n"


def test_vars_as_json(capsys):
    assert run("vars", "--json") == exits.OK
    found = json.loads(capsys.readouterr().out)
    assert {"hardware_profile", "stack"} <= {spec["name"] for spec in found}


def test_vars_of_one_role_and_one_variable(capsys):
    assert run("vars", "preflight") == exits.OK
    assert "hardware_profile" in capsys.readouterr().out
    assert run("vars", "hardware_profile") == exits.OK
    assert len(capsys.readouterr().out.split("\n\n")) == 1


def test_init_starts_an_inventory(tmp_path, capsys):
    target = tmp_path / "mine"
    assert run("init", str(target)) == exits.OK
    assert (target / "hosts.yml").is_file()
    assert "--check" in capsys.readouterr().out
    assert run("init", str(target)) == exits.USAGE


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell, capsys):
    assert run("completion", shell) == exits.OK
    assert "_PROVISION_COMPLETE" in capsys.readouterr().out
