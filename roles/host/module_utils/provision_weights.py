"""A model's files on a host: which are what the hub says, and fetching those that are not.

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import stat
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator

from ansible.module_utils.provision_host import (
    Change,
    HostError,
    file_change,
    read_text,
    sha256_text,
    sync_directory,
    write_file,
)
from ansible.module_utils.provision_hub import HubError, find_commit, list_files
from ansible.module_utils.provision_sealed import is_sealed, open_mode, seal, which_hold
from ansible.module_utils.provision_transient import ca_environment, run_unit

MARGIN = 1 << 30  # bytes that stay free beside the weights


def missing_shards(folder: Path, files: dict[str, Any]) -> list[str]:
    """Files that an index of shards names and the model has not."""
    missing = set()
    for index in (name for name in files if name.endswith(".safetensors.index.json")):
        shards = set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values())
        base = Path(index).parent
        missing |= {str(base / shard) for shard in shards} - files.keys()
    return sorted(missing)


def human(size: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return ""


def names_of(names: Iterable[str]) -> str:
    """A few names, and how many more."""
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


class Weights:
    """One model at one commit on this host: what should be there, and what is."""

    def __init__(self, params: dict[str, Any], warn: Callable[[str], None]) -> None:
        self.params, self.warn = params, warn
        self.base = Path(params["directory"], params["repo"].replace("/", "--"))
        self.commit = ""
        self.text: str | None = None  # the manifest
        self.files: dict[str, dict[str, Any]] = {}

    @property
    def place(self) -> Path:
        return self.base / self.commit

    @property
    def manifest(self) -> str:
        return f"{self.place}.json"

    @property
    def partial(self) -> Path:
        return self.base / f"{self.commit}.partial"

    def look_up(self) -> None:
        """Find the commit and what it holds: from the manifest if there is one, else from the hub."""
        hub = (self.params["endpoint"], self.params["repo"])
        self.commit = self.params["revision"]
        if not re.fullmatch("[0-9a-f]{40}", self.commit):
            self.commit = self._commit_of_branch(*hub)
        self.text = self._known_manifest()
        if self.text is None:
            files = list_files(*hub, self.commit, self.params["token"])
            kept = {name: files[name] for name in sorted(files) if not self._excluded(name)}
            told = {"repo": self.params["repo"], "revision": self.params["revision"], "exclude": self.params["exclude"]}
            self.text = json.dumps({**told, "commit": self.commit, "files": kept}, indent=1, sort_keys=True) + "\n"
        self.files = json.loads(self.text)["files"]

    def _known_manifest(self) -> str | None:
        """The manifest on the host; None if there is none for these files, or somebody wrote in it."""
        text = read_text(self.manifest)
        try:
            is_known = text and is_sealed(Path(self.manifest), {"size": len(text.encode())})
            return text if is_known and json.loads(text)["exclude"] == self.params["exclude"] else None
        except (ValueError, KeyError):
            return None

    def _commit_of_branch(self, endpoint: str, repo: str) -> str:
        """Ask the hub what a branch means; where it does not answer, what it meant when it was last downloaded."""
        try:
            return find_commit(endpoint, repo, self.params["revision"], self.params["token"])
        except HubError as error:
            known = sorted(self.base.glob("*.json"), key=lambda path: path.stat().st_ctime, reverse=True)
            for path in known:
                if json.loads(path.read_text(encoding="utf-8"))["revision"] == self.params["revision"]:
                    self.warn(f"{error} Keeping commit {path.stem}, which {self.params['revision']} was before.")
                    return path.stem
            raise

    def _excluded(self, name: str) -> bool:
        hidden = name.startswith(".") or "/." in name
        return hidden or any(fnmatch.fnmatch(name, pattern) for pattern in self.params["exclude"])

    def plan(self, check_mode: bool) -> Iterator[Change]:
        """Bring about what differs."""
        try:
            self.look_up()
        except HubError as error:
            if not check_mode:
                raise
            self.warn(str(error))
            self.commit = ""
            yield Change(f"Downloaded {self.params['repo']} at {self.params['revision']}.", lambda: None)
            return
        touched = [name for name in self.files if not is_sealed(self.place / name, self.files[name])]
        good = which_hold(self.place, self.files, touched)
        if good:
            before = "".join(f"{name}: written since it was verified\n" for name in sorted(good))
            sentence, after = f"Verified again {names_of(good)}.", "the same content\n"
            yield Change(sentence, lambda: [seal(self.place / name) for name in good], str(self.place), before, after)
        wanted = [name for name in touched if name not in good]
        if wanted:
            self.expect_room(wanted)
            yield self.download_change(wanted)
        else:
            yield from self.manifest_changes()
            yield from self.access_changes()

    def manifest_changes(self) -> Iterator[Change]:
        """The list of what is there: its text, its mode, and that nobody wrote it since."""
        changes = list(file_change(self.manifest, self.text or ""))
        is_whole = read_text(self.manifest) == self.text
        for change in changes:
            change.act = change.act if is_whole else self.write_manifest
            yield change
        if not changes and not is_sealed(Path(self.manifest), {"size": len((self.text or "").encode())}):
            sentence, before = f"Verified again {self.manifest}.", "written since it was verified\n"
            yield Change(sentence, lambda: seal(Path(self.manifest)), self.manifest, before, "the same content\n")

    def access_changes(self) -> Iterator[Change]:
        """Who serves must be able to read all of it."""
        closed = self.closed()
        if closed:
            before = "".join(f"{path}: mode {stat.S_IMODE(path.stat().st_mode):04o}\n" for path in closed)
            after = "".join(f"{path}: mode {open_mode(path):04o}\n" for path in closed)
            sentence = f"Opened {names_of(path.name for path in closed)} to readers."
            yield Change(sentence, lambda: self.open_up(closed), str(self.place), before, after)

    def closed(self) -> list[Path]:
        """Of what is in place, the directories and files whose mode is not what readers need."""
        files = [self.place / name for name in self.files]
        folders = {folder for path in files for folder in path.parents if self.place in (folder, *folder.parents)}
        places = [self.base, *sorted(folders), *files]
        return [path for path in places if path.exists() and stat.S_IMODE(path.stat().st_mode) != open_mode(path)]

    def open_up(self, paths: Iterable[Path]) -> None:
        for path in paths:
            os.chmod(path, open_mode(path))

    def download_change(self, wanted: list[str]) -> Change:
        """The change that fetches these files."""
        size = human(sum(self.files[name]["size"] for name in wanted))
        at = f"{self.params['repo']} at {self.commit[:12]}"
        if len(wanted) == len(self.files):
            sentence, before = f"Downloaded {at}: {len(wanted)} files, {size}.", ""
        else:
            sentence = f"Fetched again {names_of(wanted)} of {at}, {size}: missing or damaged."
            before = "".join(f"{name}: missing or damaged\n" for name in wanted)
        after = "".join(f"{name}: {human(self.files[name]['size'])}\n" for name in wanted)
        return Change(sentence, lambda: self.fetch(wanted), str(self.place), before, after)

    def expect_room(self, wanted: list[str]) -> None:
        """Refuse to start what cannot fit on the disk."""
        there = sum(path.stat().st_size for path in self.partial.rglob("*") if path.is_file())
        needed = sum(self.files[name]["size"] for name in wanted) - there + MARGIN
        existing = next(folder for folder in (self.base, *self.base.parents) if folder.is_dir())
        free = shutil.disk_usage(existing).free
        if free < needed:
            raise HostError(
                f"{existing} has {human(free)} free, and {self.params['repo']} needs {human(needed)} more there. "
                f"Remove old models below {self.params['directory']}, or set weights_dir to a larger disk."
            )

    def fetch(self, wanted: list[str]) -> None:
        """Download what is not in the partial directory yet, verify it, and put it in place."""
        self.partial.mkdir(parents=True, exist_ok=True)
        shutil.chown(self.partial, self.params["user"], self.params["user"])
        left = self.unverified(wanted)
        for _ in range(2):
            if left:
                self.download(left)
                left = self.unverified(left)
        if left:
            raise HostError(
                f"The hub sent {names_of(left)} twice with another content than it announces for commit {self.commit}. "
                "Is a proxy or mirror between (weights_endpoint, site_https_proxy) at fault?"
            )
        os.sync()
        self.install(wanted)
        self.open_up(self.closed())  # whatever this process makes directories with

    def unverified(self, names: list[str]) -> list[str]:
        """Of the partial files, mark those that are right and remove the others; tell which are still to be had."""
        unsure = [name for name in names if not is_sealed(self.partial / name, self.files[name])]
        good = which_hold(self.partial, self.files, unsure)
        for name in good:
            seal(self.partial / name)
        left = [name for name in unsure if name not in good]
        for name in left:  # hf takes a damaged file that it knows for a whole one
            (self.partial / name).unlink(missing_ok=True)
        return left

    def download(self, names: list[str]) -> None:
        """Have hf fetch the files into the partial directory."""
        params = self.params
        words = [params["hf"], "download", params["repo"], *names, "--revision", self.commit]
        words += ["--local-dir", str(self.partial), "--max-workers", "8"]
        environment = {
            "HF_HOME": f"{self.partial}/.hf",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_TOKEN": params["token"],
            "HF_ENDPOINT": params["endpoint"],
            # Only the hub itself has the store that the faster protocol needs.
            "HF_HUB_DISABLE_XET" if params["endpoint"] else "HF_XET_HIGH_PERFORMANCE": "1",
            **ca_environment(),
        }
        environment = {name: value for name, value in environment.items() if value}
        run_unit(params["unit"], f"exec {shlex.join(words)} >/dev/null", environment, params["user"])

    def install(self, names: list[str]) -> None:
        """Put verified files in place: all at once where there is nothing yet, else one by one."""
        shutil.rmtree(self.partial / ".cache", ignore_errors=True)
        shutil.rmtree(self.partial / ".hf", ignore_errors=True)
        whole = not self.place.exists()
        absent = missing_shards(self.partial, {**self.files}) if whole else []
        if absent:
            raise HostError(
                f"The index of {self.params['repo']} names {names_of(absent)}, which commit {self.commit} lacks or "
                "weights_exclude leaves out. The model would not load; nothing was put in place."
            )
        self.write_manifest()
        if whole:
            os.rename(self.partial, self.place)
        else:
            for name in names:
                (self.place / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.partial / name, self.place / name)
            shutil.rmtree(self.partial)
        sync_directory(str(self.base))

    def write_manifest(self) -> None:
        write_file(self.manifest, self.text or "")
        seal(Path(self.manifest))

    def facts(self) -> dict[str, Any]:
        """Where the files are, as later stages need to know."""
        text = read_text(self.manifest) if self.commit else None
        return {
            "location": str(self.place) if self.commit else "",
            "commit": self.commit,
            "manifest_sha256": sha256_text(text) if text else "",
            "present": text is not None and self.place.is_dir(),
        }
