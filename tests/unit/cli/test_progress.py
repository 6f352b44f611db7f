from __future__ import annotations

import io

from rich.console import Console

from provision.cli.progress import Lines, Plain

HOSTS = {"type": "run_started", "hosts": ["n1", "n2"], "stages": ["host", "swap"]}
START = {"type": "stage_started", "stage": "host"}


def finished(host: str, status: str, **fields) -> dict[str, object]:
    return {
        "type": "task_finished",
        "host": host,
        "stage": "host",
        "task": "Set",
        "status": status,
        "message": None,
        **fields,
    }


def test_without_a_terminal_each_stage_is_one_plain_line():
    out = io.StringIO()
    display = Plain(Console(file=out), text=False)
    for event in (
        HOSTS, START, finished("n1", "changed"), finished("n1", "ok"), finished("n2", "ok"),
        finished("n2", "failed", message="No [space].\nmore"), {"type": "stage_finished", "stage": "host", "seconds": 2.0},
    ):  # fmt: skip
        display.event(event)
        display.text("not shown")
    assert out.getvalue() == "n2: host: Set: No [space].\nhost         1 changed · 1 failed  (2.0 s)\n"


VERIFIED = {
    "type": "verified",
    "hosts": ["n1", "n2", "n3"],
    "visits": {"n1": {"host": "it drifted", "swap": "it drifted"}, "n2": {"host": "it drifted"}},
    "waves": [["n1", "n2"]],
}


def terminal(*events: dict[str, object]) -> list[str]:
    """The lines of the screen after these events."""
    out = io.StringIO()
    console = Console(file=out, width=80, height=10, force_terminal=True, color_system=None)
    display = Lines(console, "inventory/prod", text=False)
    for event in events:
        display.event(event)
    console.print(display.live.get_renderable())
    return out.getvalue().splitlines()


def test_a_terminal_has_a_line_for_each_host_that_is_visited():
    started = {"type": "task_started", "host": "n1", "stage": "host", "task": "Set [tunables]"}
    lines = terminal(
        {**HOSTS, "hosts": ["n1", "n2", "n3"]}, VERIFIED, START, started, finished("n2", "failed", message="No.")
    )
    assert lines[0].startswith("inventory/prod")
    assert [line.split()[:3] for line in lines[1:]] == [["n1", "host", "1/2"], ["n2", "failed", "0/1"]]
    assert "Set [tunables]" in lines[1]


def test_a_first_ctrl_c_is_answered():
    stopping = {"type": "stopping", "running": {"n1": {"stage": "host", "task": "Set [tunables]"}}}
    lines = terminal({**HOSTS, "hosts": ["n1", "n2", "n3"]}, VERIFIED, stopping)
    assert "n1 (host: Set [tunables])" in lines[-2] + lines[-1]
    assert "Ctrl-C again stops at once" in lines[-2] + lines[-1]


def test_a_large_fleet_fits_the_terminal():
    out = io.StringIO()
    console = Console(file=out, width=80, height=10, force_terminal=True, color_system=None)
    display = Lines(console, "inventory/prod", text=False)
    display.event({"type": "run_started", "hosts": [f"n{n}" for n in range(50)], "stages": ["host"]})
    console.print(display.live.get_renderable())
    assert len(out.getvalue().splitlines()) <= 10
