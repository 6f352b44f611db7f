"""The program that verifies receipts on a host, run as a host runs it."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from provision.drift.bundle import ENTRY, directory_of, verifier_text
from provision.drift.host import main

PYTHONS = [sys.executable, *map(str, Path.home().glob(".pyenv/versions/3.9.*/bin/python"))]  # at least this one


class Engine(BaseHTTPRequestHandler):
    """Answers as vLLM does where it is asked."""

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.reply(200, b"")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.path)
        self.reply(self.server.status, b'{"usage": {"completion_tokens": 4}}')

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def engine() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    server.asked, server.status, server.url = [], 200, f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_what_stands_is_said_to_stand(verifier, text_file, tmp_path) -> None:
    (tmp_path / "file").write_text("hello\n")
    (tmp_path / "file").chmod(0o644)
    verifier.seal("host", text_file())
    stage = verifier.stages()["host"]
    assert (stage["changes"], stage["facts"], stage["error"]) == ([], [], None)
    assert stage["inputs"] == {"code": "0123"}
    assert stage["sealed"].endswith("Z")


def test_systemd_is_asked_once_for_the_units_of_all_stages(verifier, tmp_path, monkeypatch) -> None:
    systemctl = tmp_path / "bin/systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\n'
        'for word; do case $word in *.service) printf "LoadState=not-found\\nActiveState=inactive\\nNeedDaemonReload=no\\n\\n" ;; esac; done\n'
    )
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{systemctl.parent}:{os.environ['PATH']}")
    for stage, name in (("host", "b.service"), ("gpu", "a.service")):
        verifier.seal(stage, ("systemd_units", {"units": [{"name": name, "state": "absent"}]}, {}))
    found = verifier.stages("--stages", "host,gpu")
    assert [(stage["changes"], stage["error"]) for stage in found.values()] == [([], None)] * 2
    asked = [line.split(" --")[0] for line in (tmp_path / "asked").read_text().splitlines()]
    assert [line for line in asked if line.startswith("show")] == ["show a.service b.service"]


def test_a_change_is_told_as_a_bootstrap_would_tell_it(verifier, text_file, tmp_path) -> None:
    (tmp_path / "file").write_text("other\n")
    verifier.seal("host", text_file())
    (change,) = verifier.stages()["host"]["changes"]
    path = str(tmp_path / "file")
    assert change == {
        "module": "text_files",
        "action": f"Rewrote {path}.",
        "resource": path,
        "before": "other\n",
        "after": "hello\n",
        "effect": "none",
        "who": None,
    }
    assert (tmp_path / "file").read_text() == "other\n"


def test_of_several_stages_those_asked_for_in_their_order(verifier, text_file, tmp_path) -> None:
    for name in ("swap", "host", "gpu"):
        verifier.seal(name, text_file())
    assert list(verifier.stages("--stages", "gpu,driver,host")) == ["gpu", "host"]


def test_facts_that_differ_and_those_that_may(verifier) -> None:
    verifier.seal("host", ("text_files", {}, {"pending": ["something"], "sha256": "ab"}))
    assert verifier.stages()["host"]["facts"] == ["sha256"]


def test_one_step_that_cannot_be_verified_hides_no_other(verifier, text_file) -> None:
    broken = ("kernel_tunables", {"sysctls": {"no.such": "1"}, "sysfs": {}}, {})
    verifier.seal("host", broken, text_file())
    stage = verifier.stages()["host"]
    assert "no.such is not a sysctl of this kernel" in stage["error"]
    assert [change["module"] for change in stage["changes"]] == ["text_files"]


def test_a_crash_is_one_sentence_and_shows_no_secret(verifier) -> None:
    verifier.seal("vllm", ("vllm_config", {"config": None, "api_key": "geheim", "environment": "geheim"}, {}))
    error = verifier.stages()["vllm"]["error"]
    assert error.startswith("vllm_config could not be verified: AttributeError: ")
    assert "\n" not in error
    assert "geheim" not in json.dumps(verifier.stages())


def test_a_step_of_another_version(verifier) -> None:
    verifier.seal("host", ("of_tomorrow", {}, {}))
    assert "of_tomorrow, which this version does not have" in verifier.stages()["host"]["error"]


@pytest.mark.parametrize("text", ["{", '{"format": 2, "steps": [], "inputs": {}}', "[]"])
def test_a_receipt_that_cannot_be_read(verifier, text) -> None:
    verifier.seal("host").write_text(text)
    stage = verifier.stages()["host"]
    assert "cannot be read" in stage["error"]
    assert stage["inputs"] == {}


def test_what_was_left_out_of_a_receipt_has_its_default(verifier, tmp_path) -> None:
    verifier.seal("host", ("text_files", {"files": [{"path": str(tmp_path / "gone")}]}, {}))
    stage = verifier.stages()["host"]
    assert (stage["error"], stage["changes"]) == (None, [])


def test_modules_that_wait_look_for_real_and_once(verifier, engine) -> None:
    canary = {"url": engine.url, "model": "m", "unit": "none.service", "timeout": 1800}
    verifier.seal("vllm", ("vllm_canary", canary, {"latency_ms": 3, "tokens": 4, "waited_s": 1.0}))
    stage = verifier.stages()["vllm"]
    assert (stage["error"], stage["facts"]) == (None, [])
    engine.status = 500
    assert "asked 1 times for a completion it answered 500" in verifier.stages()["vllm"]["error"]
    asked = list(engine.asked)
    assert verifier.stages("--light")["vllm"]["error"] is None
    assert engine.asked == asked


def test_a_branch_stands_for_the_commit_that_it_meant(verifier, tmp_path) -> None:
    commit = "0123456789" * 4
    base = tmp_path / "org--model"
    (base / commit).mkdir(parents=True)
    (base / "current").symlink_to(commit)
    listed = {"config.json": {"size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}}
    told = {"exclude": [], "revision": "another-branch", "files": listed}
    texts = {f"{commit}/config.json": "{}", f"{commit}.json": json.dumps(told, indent=1, sort_keys=True) + "\n"}
    for name, text in texts.items():
        (base / name).write_text(text)
        (base / name).chmod(0o644)
        os.utime(base / name, (946684800, 946684800))  # as files are that were verified
    params = {"repo": "org/model", "revision": "main", "directory": str(tmp_path), "endpoint": "http://127.0.0.1:9"}
    verifier.seal("weights", ("model_weights", params, {"commit": commit, "present": True}))
    stage = verifier.stages()["weights"]
    assert stage["error"] is None
    assert stage["changes"] == []


def test_nothing_is_noted_for_a_receipt(verifier, text_file, monkeypatch) -> None:
    monkeypatch.setenv("PROVISION_STAGE", "host")
    monkeypatch.setenv("PROVISION_RUN", "r1")
    verifier.seal("host", text_file())
    before = sorted(os.listdir(verifier.receipts))
    verifier.stages()
    assert sorted(os.listdir(verifier.receipts)) == before
    assert not Path("/var/lib/provision/receipts/host.pending").exists()


def test_what_the_host_says_of_itself(verifier) -> None:
    told = json.loads(verifier.call().stdout)
    assert told["format"] == 1
    assert told["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert told["python"].startswith("3.")
    assert (told["serving"], told["kv_tokens"], told["stages"]) == (False, None, {})


def test_it_unpacks_itself_once_and_for_root_alone(fresh, text_file) -> None:
    fresh.seal("host", text_file())
    fresh.stages()
    directory = Path(directory_of(str(fresh.run_directory)))
    assert directory.stat().st_mode & 0o777 == 0o700
    unpacked = (directory / ENTRY).stat().st_ino
    old = directory.with_name("verify-000000000000")
    old.mkdir()
    fresh.stages()
    assert (directory / ENTRY).stat().st_ino == unpacked
    warm = subprocess.run(
        ["python3", "-I", "-S", directory / ENTRY, "--receipts", fresh.receipts], capture_output=True, check=True
    )
    assert list(json.loads(warm.stdout)["stages"]) == ["host"]


def test_what_other_versions_left_goes_when_nobody_can_be_at_it(fresh) -> None:
    old, recent = fresh.run_directory / "verify-000000000000", fresh.run_directory / "verify-111111111111"
    old.mkdir(parents=True)
    recent.mkdir()
    os.utime(old, (1, 1))
    fresh.stages()
    assert not old.exists()
    assert recent.exists()


def test_the_text_is_the_same_for_the_same_code() -> None:
    text = verifier_text()
    verifier_text.cache_clear()
    assert verifier_text() == text
    ast.parse(text, feature_version=(3, 9))


@pytest.mark.parametrize("python", PYTHONS)
def test_older_and_newer_pythons(fresh, text_file, python) -> None:
    fresh.seal("host", text_file())
    done = fresh.call("--who", python=python)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["stages"]["host"]["changes"]) == 1


def test_metrics(verifier, text_file, tmp_path) -> None:
    verifier.seal("host", text_file())
    verifier.seal("swap")
    done = verifier.call("--light", "--metrics", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    (path,) = (tmp_path / "out").iterdir()
    assert (path.name, path.stat().st_mode & 0o777) == ("provision_drift.prom", 0o644)
    lines = path.read_text().splitlines()
    assert 'provision_drift_findings{stage="host",effect="none"} 1' in lines
    assert 'provision_drift_findings{stage="host",effect="restart"} 0' in lines
    assert 'provision_drift_stage_stands{stage="host"} 0' in lines
    assert 'provision_drift_stage_stands{stage="swap"} 1' in lines
    assert "provision_drift_reboot_pending 0" in lines
    names = {line.split("{")[0].split()[0] for line in lines if not line.startswith("#")}
    assert names == {line.split()[2] for line in lines if line.startswith("# TYPE")}


def test_while_a_host_is_changed_its_metrics_are_left_as_they_were(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # and back, whatever it does
    monkeypatch.setattr(main.steps, "prepare", lambda _mends: None)
    monkeypatch.setattr(main.provision_host, "lock_holder", lambda: {"pid": 1, "command": "x", "since": "now"})
    assert main.main(["--metrics", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out").exists()


def test_what_nobody_notices_is_set_right_and_verified_again(verifier, text_file, tmp_path) -> None:
    (tmp_path / "good").write_text("hello\n")
    (tmp_path / "good").chmod(0o644)
    (tmp_path / "bad").write_text("other\n")
    verifier.seal("host", text_file("good"), text_file("bad"), text_file("missing"))
    told = verifier.mend("host")
    assert [[change["action"] for change in done["changes"]] for done in told["mended"]["host"]] == [
        [f"Rewrote {tmp_path}/bad."],
        [f"Wrote {tmp_path}/missing."],
    ]
    assert [(tmp_path / name).read_text() for name in ("bad", "missing")] == ["hello\n", "hello\n"]
    assert told["stages"]["host"]["changes"] == []
    assert told["busy"] is None
    assert verifier.mend("host")["mended"] == {"host": []}


def test_only_the_stages_named_are_set_right(verifier, text_file, tmp_path) -> None:
    verifier.seal("host", text_file("one"))
    verifier.seal("swap", text_file("two"))
    told = verifier.mend("swap")
    assert list(told["mended"]) == ["swap"]
    assert not (tmp_path / "one").exists()
    assert [change["resource"] for change in told["stages"]["host"]["changes"]] == [str(tmp_path / "one")]


def test_it_stops_where_it_cannot_go_on(verifier, text_file, tmp_path) -> None:
    (tmp_path / "dir").mkdir()
    verifier.seal("host", text_file("first"), text_file("dir"), text_file("last"))
    told = verifier.mend("host")
    assert len(told["mended"]["host"]) == 1
    assert "should be a file" in told["stages"]["host"]["error"]
    assert not (tmp_path / "last").exists()


def test_what_somebody_would_notice_is_left_to_a_run(verifier, text_file, tmp_path) -> None:
    unit = {"name": "none-such.service", "state": "stopped", "content": "[Service]\nExecStart=/bin/true\n"}
    listed = text_file("other")
    verifier.seal("host", ("host_reboot_of_tomorrow", unit, {}), listed)
    assert verifier.mend("host")["mended"] == {"host": []}
    assert not (tmp_path / "other").exists()
