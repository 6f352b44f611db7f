"""The unit that fetches weights: what it is told, starting it, waiting for it, and what it says.

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import json
import os
import pwd
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.provision_host import HostError, read_text, remove_file, run, write_file
from ansible.module_utils.provision_hub import HubError
from ansible.module_utils.provision_transient import PROXIES, ca_environment, quoted

SPEC = "/etc/provision/weights.json"
SECRETS = "/etc/provision/secrets/weights.env"
STATE = "/var/lib/provision/weights"
PROGRAM = "/opt/provision/weights"
AT_WORK = ("active", "activating", "reloading", "deactivating")
LIST_S = 120


class Unit:
    """The unit on this host, for one model."""

    def __init__(self, params: dict[str, Any], base: Path) -> None:
        self.params, self.base = params, base
        self.service = f"{params['unit']}.service"

    def spec_text(self, commit: str) -> str:
        """What the program reads: nothing secret."""
        params = self.params
        named = (
            "repo",
            "directory",
            "exclude",
            "chain",
            "port",
            "uplink",
            "streams",
            "rate",
            "serving_rate",
            "patience",
        )
        source = {"kind": params["source"], "endpoint": params["endpoint"]}
        source.update({"path": params["path"], "bucket": params["bucket"]})
        told = {**{name: params[name] for name in named}, "commit": commit, "state": STATE, "host": params["address"]}
        return json.dumps({**told, "source": {name: value for name, value in source.items() if value}}, indent=1) + "\n"

    def environment(self) -> dict[str, str]:
        """What its client libraries find in their environment: keys, proxies, certificates."""
        params = self.params
        variables = {
            "WEIGHTS_TOKEN": params["token"],
            "AWS_ACCESS_KEY_ID": params["s3_access_key"],
            "AWS_SECRET_ACCESS_KEY": params["s3_secret_key"],
            "AWS_DEFAULT_REGION": params["s3_region"],
            **{name: os.environ.get(name, "") for name in PROXIES},
            **ca_environment(),
        }
        variables["AWS_CA_BUNDLE"] = variables.get("REQUESTS_CA_BUNDLE", "")
        return {name: value for name, value in variables.items() if value}

    def listed(self, commit: str) -> dict[str, Any]:
        """The files as the source lists them to the program; a HubError where that is not there yet, or refused."""
        if not os.path.exists(self.params["python"]):
            raise HubError(f"{self.params['source']} can be asked only once {self.params['python']} is there.")
        spec = Path(f"{SPEC}.asked")
        write_file(str(spec), self.spec_text(commit))
        argv = [self.params["python"], "-m", "provision_weights", "--spec", str(spec), "list"]
        ran = run(argv, check=False, timeout_s=LIST_S, env={"PYTHONPATH": PROGRAM, **self.environment()})
        remove_file(str(spec))
        if ran.rc != 0:
            raise HubError((ran.err.strip().splitlines() or ["It could not be asked which files there are."])[-1])
        return dict(json.loads(ran.out))

    def is_at_work(self, commit: str) -> bool:
        """Whether it fetches this very thing now."""
        return self._shown()["ActiveState"] in AT_WORK and read_text(SPEC) == self.spec_text(commit)

    def _shown(self) -> dict[str, str]:
        keys = ("ActiveState", "Result", "LoadState")
        shown = run(["systemctl", "show", self.service, *(f"--property={key}" for key in keys)], check=False)
        return dict.fromkeys(keys, "") | dict(line.split("=", 1) for line in shown.out.splitlines() if "=" in line)

    def start(self, commit: str, manifest: str | None) -> None:
        """Have it fetch this, unless it does: it goes on whatever becomes of this process, and of the controller.

        With the list of files, if that is known, so that only who uses the uplink has to speak to the source.
        """
        if self.is_at_work(commit):
            return
        self.base.mkdir(parents=True, exist_ok=True)
        partial = self.base / f"{commit}.partial"
        partial.mkdir(exist_ok=True)
        if manifest:
            write_file(f"{partial}/.manifest.json", manifest)
        owner = pwd.getpwnam(self.params["user"])
        for path in (self.base, partial, *partial.rglob("*")):  # an earlier version fetched as somebody else
            os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
        lines = (f'{name}="{quoted(value)}"\n' for name, value in sorted(self.environment().items()))
        os.makedirs(os.path.dirname(SECRETS), mode=0o700, exist_ok=True)
        write_file(SECRETS, "".join(lines), 0o600)
        write_file(SPEC, self.spec_text(commit))
        Path(STATE, "state.json").unlink(missing_ok=True)  # what it said of something else
        run(["systemctl", "reset-failed", self.service], check=False)
        run(["systemctl", "restart", self.service])

    def wait(self, commit: str) -> None:
        """Wait until it has ended; what it failed by is a HostError."""
        while True:
            shown = self._shown()
            if shown["ActiveState"] not in AT_WORK:
                break
            time.sleep(0.5)
        state = self.state()
        remove_file(SECRETS)  # it has ended, so nobody needs the token any more
        if state.get("done") and state.get("commit") == commit:
            return
        why = state.get("failed") or f"it ended ({shown['Result'] or 'unknown'}) without a word"
        raise HostError(f"{why}\nSee more on the host with: journalctl -u {self.params['unit']}")

    def state(self) -> dict[str, Any]:
        """What it last said."""
        try:
            return dict(json.loads(read_text(f"{STATE}/state.json") or "{}"))
        except ValueError:
            return {}
