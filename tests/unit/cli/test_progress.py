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


def test_a_terminal_has_a_line_a_host():
    out = io.StringIO()
    console = Console(file=out, width=80, height=10, force_terminal=True, color_system=None)
    display = Lines(console, "inventory/prod", text=False)
    for event in (HOSTS, START, {"type": "task_started", "host": "n1", "stage": "host", "task": "Set [tunables]"},
                  finished("n2", "failed", message="No."), {"type": "stage_finished", "stage": "host", "seconds": 2.0}):  # fmt: skip
        display.event(event)
    console.print(display.live.get_renderable())
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("inventory/prod")
    assert [line.split()[:3] for line in lines[1:]] == [["n1", "host", "1/2"], ["n2", "failed", "0/2"]]
    assert "Set [tunables]" in lines[1]


def test_a_large_fleet_fits_the_terminal():
    out = io.StringIO()
    console = Console(file=out, width=80, height=10, force_terminal=True, color_system=None)
    display = Lines(console, "inventory/prod", text=False)
    display.event({"type": "run_started", "hosts": [f"n{n}" for n in range(50)], "stages": ["host"]})
    console.print(display.live.get_renderable())
    assert len(out.getvalue().splitlines()) <= 10
