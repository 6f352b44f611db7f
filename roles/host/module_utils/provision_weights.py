"""A model's files on a host: which are what the hub says, and fetching those that are not.

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
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
from ansible.module_utils.provision_sealed import is_sealed, open_mode, seal, unseal, which_hold
from ansible.module_utils.provision_weights_unit import Unit

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
        self.unit = Unit(params, self.base)

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
        """Find the commit and what it holds: by the manifest if there is one, else from who fetches, or the source."""
        revision = self.params["revision"]
        if re.fullmatch("[0-9a-f]{40}", revision):
            self.commit = revision
        else:
            if self.params["source"] != "huggingface":
                raise HostError(
                    f"weights_revision is {revision}, and should be 40 hex digits: a commit of ModelScope; or of a "
                    "directory or bucket, the first 40 digits that `sha256sum SHA256SUMS` prints there."
                )
            self.commit = self._commit_of_branch(self.params["endpoint"], self.params["repo"])
        self.text = self._known_manifest()
        if self.text is None:
            files = self._fetched_list() or self._asked_list()
            kept = {name: files[name] for name in sorted(files) if not self._excluded(name)}
            told = {"repo": self.params["repo"], "revision": self.params["revision"], "exclude": self.params["exclude"]}
            self.text = json.dumps({**told, "commit": self.commit, "files": kept}, indent=1, sort_keys=True) + "\n"
        self.files = json.loads(self.text)["files"]

    def _fetched_list(self) -> dict[str, Any]:
        """The files as whoever fetches them was told; empty before that."""
        text = read_text(f"{self.partial}/.manifest.json")
        try:
            told = json.loads(text) if text else {}
            return dict(told["files"]) if told.get("exclude") == self.params["exclude"] else {}
        except (ValueError, KeyError):
            return {}

    def _asked_list(self) -> dict[str, Any]:
        """The files as the source lists them."""
        if not self.params["uplink"]:
            raise HubError(f"This host may not ask for the files of {self.params['repo']} itself (weights_uplink).")
        if self.params["source"] == "huggingface":
            return list_files(self.params["endpoint"], self.params["repo"], self.commit, self.params["token"])
        return self.unit.listed(self.commit)

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
            if not check_mode and (not self.commit or len(self.params["chain"]) < 2):
                raise
            self.warn(str(error))  # the others of the chain have the list, or will have it
        if not self.params["wait"]:
            yield from self.begin_changes()
            return
        if not self.files:
            at = self.commit[:12] or self.params["revision"]
            yield Change(f"Downloaded {self.params['repo']} at {at}.", lambda: self.fetch([]))
            if self.commit:
                yield from self.switch_changes()
            return
        touched = [name for name in self.files if not is_sealed(self.place / name, self.files[name])]
        read = self.files if self.params["full"] else touched
        right = which_hold(self.place, self.files, read)
        if good := right.intersection(touched):
            before = "".join(f"{name}: written since it was verified\n" for name in sorted(good))
            sentence, after = f"Verified again {names_of(good)}.", "the same content\n"
            yield Change(sentence, lambda: [seal(self.place / name) for name in good], str(self.place), before, after)
        wanted = [name for name in read if name not in right]
        if wanted:
            self.expect_room(wanted)
            yield self.download_change(wanted)
        else:
            yield from self.manifest_changes()
            yield from self.access_changes()
        yield from self.switch_changes()

    def begin_changes(self) -> Iterator[Change]:
        """Have the files fetched beside whatever else is done here; what is in place already is not looked at."""
        if self.place.exists() or not self.commit:
            return
        left = [name for name in self.files if not is_sealed(self.partial / name, self.files[name])]
        if left:
            self.expect_room(left)
        if (left or not self.files) and not self.unit.is_at_work(self.commit):
            size = f": {len(self.files)} files, {human(self.size_of(self.files))}" if self.files else ""
            sentence = f"Began to fetch {self.params['repo']} at {self.commit[:12]}{size}."
            yield Change(sentence, lambda: self.unit.start(self.commit, self.text))

    def size_of(self, names: Iterable[str]) -> int:
        return sum(self.files[name]["size"] for name in names)

    def switch_changes(self) -> Iterator[Change]:
        """Point `current` to what this host is to serve, and `previous` to what it pointed to before."""
        link = self.base / "current"
        there = os.readlink(link) if link.is_symlink() else ""
        if there != self.commit:
            before, after = (f"{commit or 'nothing'}\n" for commit in (there, self.commit))
            sentence = f"Switched {link} to {self.commit[:12]}."
            yield Change(sentence, lambda: self.switch(there), str(link), before, after)

    def switch(self, before: str) -> None:
        """Each link is replaced in one step."""
        for name, target in (("previous", before), ("current", self.commit)):
            if target:
                new = self.base / f".{name}.new"
                new.unlink(missing_ok=True)
                new.symlink_to(target)
                os.replace(new, self.base / name)
        sync_directory(str(self.base))

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
        size = human(self.size_of(wanted))
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
        needed = self.size_of(wanted) - there + MARGIN
        existing = next(folder for folder in (self.base, *self.base.parents) if folder.is_dir())
        free = shutil.disk_usage(existing).free
        if free < needed:
            raise HostError(
                f"{existing} has {human(free)} free, and {self.params['repo']} needs {human(needed)} more there. "
                f"Remove old models below {self.params['directory']}, or set weights_dir to a larger disk."
            )

    def fetch(self, wanted: list[str]) -> None:
        """Have the unit fetch what is missing, wait for its end, and put that in place."""
        for name in wanted:
            unseal(self.place / name)  # who fetches goes by that
        self.unit.start(self.commit, self.text)
        self.unit.wait(self.commit)
        if not self.files:
            self.look_up()
            wanted = [name for name in self.files if not is_sealed(self.place / name, self.files[name])]
        left = [name for name in wanted if not is_sealed(self.partial / name, self.files[name])]
        if left:
            raise HostError(
                f"{self.params['unit']}.service has ended, and {names_of(left)} of {self.params['repo']} at "
                f"{self.commit[:12]} is not there. See on the host: journalctl -u {self.params['unit']}"
            )
        os.sync()
        self.install(wanted)
        self.open_up(self.closed())  # whatever this process makes directories with

    def install(self, names: list[str]) -> None:
        """Put verified files in place: all at once where there is nothing yet, else one by one."""
        whole = not self.place.exists()
        absent = missing_shards(self.partial, {**self.files}) if whole else []
        if absent:
            raise HostError(
                f"The index of {self.params['repo']} names {names_of(absent)}, which commit {self.commit} lacks or "
                "weights_exclude leaves out. The model would not load; nothing was put in place."
            )
        self.write_manifest()
        (self.partial / ".manifest.json").unlink(missing_ok=True)
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
        known = {"location": str(self.place) if self.commit else "", "commit": self.commit}
        if not self.params["wait"]:
            return known  # what comes later is no fact of who only began it
        text = read_text(self.manifest) if self.commit else None
        return {
            **known,
            "manifest_sha256": sha256_text(text) if text else "",
            "present": text is not None and self.place.is_dir(),
        }
