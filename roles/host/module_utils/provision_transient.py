"""Long work on a host as a named transient systemd unit: it outlives who asked for it, and the next run finds it.

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from typing import Callable, Iterable, Iterator, Mapping

from ansible.module_utils.provision_host import Change, HostError, run, write_file

WORK = "/run/provision"
PROXIES = ("http_proxy", "https_proxy", "no_proxy")
# Runs the script $1 and says last how it ended, on the stream on which all else was said.
SHELL = '/bin/sh -euc "$1"; code=$?; echo "Ended with $code."; exit $code'
LAST = re.compile(r"\nEnded with \d+\.$", re.MULTILINE)
JOURNAL_S = 5  # seconds in which journald must have written what a unit said
CA_STORES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")


class UnitError(HostError):
    """A unit ended with something other than 0; `told` is the end of its journal."""

    def __init__(self, unit: str, told: str) -> None:
        last = "\n".join(told.splitlines()[-15:])
        super().__init__(
            f"{unit}.service failed. Its journal ends with:\n{last}\nSee more on the host with: journalctl -u {unit}"
        )
        self.told = told


def wait_for(unit: str) -> None:
    """Wait for a unit that an interrupted run left at work, if there is one, and clear away what it was given."""
    while run(["systemctl", "is-active", unit], check=False).out.strip() in ("active", "activating", "deactivating"):
        time.sleep(0.5)
    shutil.rmtree(Path(WORK, unit), ignore_errors=True)


def after(unit: str, check_mode: bool, plan: Callable[[], Iterable[Change]]) -> Iterator[Change]:
    """A plan that looks at the host only when a unit that an interrupted run left at work has ended.

    Within the plan, since who interrupted it may have held the host's lock until then.
    """
    if not check_mode:
        wait_for(unit)
    yield from plan()


def ca_environment() -> dict[str, str]:
    """Have pip, uv and hf trust the certificates that this host trusts."""
    store = next((path for path in CA_STORES if os.path.exists(path)), "")
    return dict.fromkeys(("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE"), store) if store else {}


def run_unit(unit: str, script: str, environment: Mapping[str, str], user: str = "root") -> None:
    """Run a shell script as the unit and wait; an end other than 0 is a HostError that quotes its journal.

    It inherits the caller's proxies. The environment goes through a file that only root can read: arguments and the
    properties of a unit are for all to see.
    """
    folder = Path(WORK, unit)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    proxies = {name: os.environ[name] for name in PROXIES if os.environ.get(name)}
    lines = (f'{name}="{quoted(value)}"\n' for name, value in sorted({**proxies, **environment}.items()))
    write_file(str(folder / "environment"), "".join(lines), 0o600)
    # Without a description systemd-run takes the script, whose lines systemd then cannot read at each reload.
    argv = ["systemd-run", "--quiet", "--wait", "--collect", f"--unit={unit}", f"--description={unit}", f"--uid={user}"]
    argv += [f"--property=EnvironmentFile={folder}/environment", "--property=Nice=5"]
    argv += ["/bin/sh", "-c", SHELL, unit, script]
    begin = time.time()
    try:
        if run(argv, check=False).rc != 0:
            raise UnitError(unit, journal(unit, begin))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def journal(unit: str, begin: float) -> str:
    """The last lines that a unit said since it began, without the very last.

    The lines that say why are the last to be written: journald, when it is busy, writes them after the unit has ended,
    and its own --sync does not wait for them. Of a unit that was killed there is no last line.
    """
    deadline = time.monotonic() + JOURNAL_S
    while True:
        run(["journalctl", "--sync"], check=False)
        told = run(["journalctl", "-u", unit, f"--since=@{begin - 1:.0f}", "-n", "200", "-o", "cat"], check=False).out
        told = "".join(line for line in told.splitlines(True) if not line.startswith("/run/systemd/transient/"))
        if LAST.search(told) or time.monotonic() > deadline:
            return LAST.sub("", told).strip()
        time.sleep(0.2)


def quoted(value: str) -> str:
    """A value as it stands between double quotes in a systemd environment file."""
    return value.replace("\\", "\\\\").replace('"', '\\"')
