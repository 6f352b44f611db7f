"""Hosts that vLLM joins without Ray: what began anew on one of them begins anew on all."""

import subprocess
import sys
from pathlib import Path

import pytest

FILES = Path(__file__).parents[4] / "roles/vllm/files"


class Host:
    """A host's folder for what runs there, and its two programs."""

    def __init__(self, address: str, head: str, run: Path):
        self.run, self.words = run, ["--head", head, "--address", address, "--run", run]
        run.mkdir()

    def start(self, do: str, *command: str) -> subprocess.Popen:
        argv = [sys.executable, "-I", "-S", FILES / "follow.py", *self.words, "--", do, *command]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)

    def join(self) -> subprocess.Popen:
        return self.start("join", "/bin/cat", str(self.run / "epoch"))


@pytest.fixture
def health(replicas, free_port, tmp_path):
    """The head's program, beside an engine that answers."""
    port, url = free_port(), f"http://{replicas[0].address}:{replicas[0].port}"
    words = ["--listen", f"127.0.0.1:{port}", "--url", url, "--model", "tiny", "--epoch", tmp_path / "epoch"]
    argv = [sys.executable, "-I", "-S", FILES / "health.py", *words, "--others", "127.0.0.8", "127.0.0.9"]
    program = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    program.place = f"127.0.0.1:{port}"
    yield program
    program.kill()
    program.communicate()


def test_a_host_waits_for_the_head_and_goes_on_when_that_begins_anew(health, tmp_path, until):
    follower = Host("127.0.0.8", health.place, tmp_path / "b")
    joining = follower.join()
    until(lambda: "Waiting" in joining.stdout.readline())
    assert joining.poll() is None
    (tmp_path / "epoch").write_text("e1\n")
    assert joining.communicate(timeout=30)[0] == "e1\n"  # it became what it was to run
    watching = follower.start("watch")
    (tmp_path / "epoch").write_text("e2\n")
    assert "began anew" in watching.communicate(timeout=30)[0]
    assert watching.returncode == 70
    assert health.poll() is None


def test_a_head_begins_anew_when_a_host_did(health, tmp_path):
    (tmp_path / "epoch").write_text("e1\n")
    follower = Host("127.0.0.8", health.place, tmp_path / "b")
    assert follower.join().communicate(timeout=30)[0].endswith("e1\n")
    again = follower.join()
    assert "127.0.0.8 began anew" in health.communicate(timeout=30)[0]
    assert health.returncode == 70
    again.kill()
    again.communicate()


def test_only_hosts_of_the_replica_may_join(health, tmp_path):
    (tmp_path / "epoch").write_text("e1\n")
    stranger = Host("127.0.0.7", health.place, tmp_path / "c")
    joining = stranger.join()
    with pytest.raises(subprocess.TimeoutExpired):
        joining.wait(timeout=3)
    joining.kill()
    joining.communicate()
