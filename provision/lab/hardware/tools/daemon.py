"""What the daemons share: going to the background, a pid file, the journal, waiting for SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import syslog

import devices
import state


def load_driver() -> state.Hardware:
    """The hardware, after the driver was loaded if it was not, as nvidia-modprobe does."""
    with state.Change() as hardware:
        state.load_module(hardware, "nvidia")
    devices.make(hardware)
    return hardware


def into_background(name: str, pid_file: str) -> None:
    """Returns in the daemon only; the parent ends once the pid file is written, which is what systemd waits for."""
    os.makedirs(os.path.dirname(pid_file), exist_ok=True)
    child = os.fork()
    if child:
        with open(pid_file, "w", encoding="ascii") as file:
            file.write(f"{child}\n")
        os._exit(0)
    os.setsid()
    os.chdir("/")
    with open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write(name[:15])
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)


def sign_in(name: str, **facts: bool) -> None:
    """Hold the driver, until `sign_out`."""
    with state.Change() as hardware:
        hardware["clients"] = state.living_clients(hardware) | {name: state.this_process() | facts}


def sign_out(name: str) -> None:
    """Let the driver go; GPUs that nobody holds any more lose their settings."""
    with state.Change() as hardware:
        hardware["clients"].pop(name, None)
        state.forget_settings_without_persistence(hardware)


def until_terminated() -> None:
    """Sleep until SIGTERM or SIGINT."""
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


def block_signals() -> None:
    """Before the first of them may come."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})


def log(name: str, text: str) -> None:
    """A line in the journal."""
    syslog.openlog(name, syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_NOTICE, text)


def fail(name: str, text: str) -> int:
    """A line in the journal and on stderr; the exit status."""
    log(name, text)
    sys.stderr.write(f"{text}\n")
    return 1
