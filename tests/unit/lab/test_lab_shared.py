from __future__ import annotations

from pathlib import Path

from provision.lab import shared


def test_knobs_are_raised_and_put_back(tmp_path: Path) -> None:
    sys, record = tmp_path / "sys", tmp_path / "record"
    before = {"net/ipv4/ip_forward": "0", "fs/inotify/max_user_instances": "128", "kernel/pid_max": "9999999"}
    for knob, value in before.items():
        (sys / knob).parent.mkdir(parents=True, exist_ok=True)
        (sys / knob).write_text(f"{value}\n")

    def now() -> dict[str, str]:
        return {knob: (sys / knob).read_text().strip() for knob in before}

    for _ in range(2):
        shared.raise_knobs(sys, record)
        assert now() == {**before, "net/ipv4/ip_forward": "1", "fs/inotify/max_user_instances": "8192"}
    for _ in range(2):
        shared.restore_knobs(sys, record)
        assert now() == before
        assert not record.exists()
