"""Files whose content is known beforehand: written in order, hashed on the way, sealed when right.

A sealed file carries a fixed modification time, which tells later that nobody wrote it since.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

STAMP = 946684800  # 2000-01-01, as in the module model_weights
BLOCK = 1 << 22  # bytes read at a time
PART = ".part"  # of a file that is not whole yet
Entry = Mapping[str, Any]  # of a manifest: `size`, and `sha256` or `git`


def digest_for(entry: Entry) -> Any:
    """What to hash a file's content with: SHA-256, or git's SHA-1 where the source tells no other."""
    if "sha256" in entry:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % entry["size"])  # noqa: S324 - git's


def wanted_digest(entry: Entry) -> str:
    """What the hash has to be."""
    return str(entry.get("sha256") or entry["git"])


def is_sealed(path: Path, entry: Entry) -> bool:
    """Whether the file was verified and not written since, told by its size and modification time alone."""
    try:
        seen = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(seen.st_mode) and seen.st_size == entry["size"] and seen.st_mtime == STAMP


def seal(path: Path) -> None:
    """Mark a file as verified."""
    os.chmod(path, 0o644)
    os.utime(path, (STAMP, STAMP))


def forget(path: Path) -> None:
    """Have the kernel drop what it has of a file in memory, so that reading it reads the disk."""
    with contextlib.suppress(OSError), path.open("rb", buffering=0) as stream:
        os.fdatasync(stream.fileno())  # what is not written yet cannot be dropped
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def hash_file(path: Path, digest: Any) -> int:
    """Read a file into a digest, once and in big pieces; how many bytes there were."""
    block, total = memoryview(bytearray(BLOCK)), 0
    with path.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while count := stream.readinto(block):
            digest.update(block[:count])
            total += count
    return total


def is_right(path: Path, entry: Entry) -> bool:
    """Whether a file's content is what the manifest says, by reading all of it."""
    digest = digest_for(entry)
    try:
        return hash_file(path, digest) == entry["size"] and digest.hexdigest() == wanted_digest(entry)
    except OSError:
        return False


def which_are_right(folder: Path, files: Mapping[str, Entry], names: Iterable[str]) -> set[str]:
    """Those of the files whose content is right; all CPUs read and hash, the largest files first."""
    listed = sorted(names, key=lambda name: -files[name]["size"])
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        verdicts = pool.map(lambda name: is_right(folder / name, files[name]), listed)
        return {name for name, right in zip(listed, verdicts) if right}  # noqa: B905  Python 3.9


class Growing:
    """A file that grows in order, under a name of its own until it is whole and right."""

    def __init__(self, path: Path, entry: Entry) -> None:
        self.path, self.entry = path, entry
        self.part = path.with_name(path.name + PART)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.digest, self.size = digest_for(entry), 0
        if self.part.exists() and self.part.stat().st_size <= entry["size"]:
            self.size = hash_file(self.part, self.digest)  # what is proved by the hash at the end
        self.file = self.part.open("ab" if self.size else "wb", buffering=0)
        os.fchmod(self.file.fileno(), 0o644)

    def write(self, data: memoryview) -> None:
        """Append bytes; whoever follows sees them at once."""
        rest = data[: self.entry["size"] - self.size]
        while rest:
            count = self.file.write(rest)
            self.digest.update(rest[:count])
            self.size += count
            rest = rest[count:]

    @property
    def is_whole(self) -> bool:
        """Whether no byte is missing."""
        return bool(self.size >= self.entry["size"])

    def finish(self) -> bool:
        """Seal it under its own name if it is right; else remove it. Whether it was."""
        right = self.digest.hexdigest() == wanted_digest(self.entry)
        if right:
            os.fdatasync(self.file.fileno())  # before the seal, which says that all of it is there
            seal(self.part)
            os.replace(self.part, self.path)
        else:
            self.part.unlink(missing_ok=True)
        self.file.close()
        return right

    def close(self) -> None:
        """Leave what there is for the next time."""
        self.file.close()


def objections(folder: Path, files: Mapping[str, Entry]) -> list[str]:
    """What safetensors say against the files: shards or tensors that are missing, sizes that differ, garbage."""
    try:
        return _objections(folder, files)
    except (AttributeError, KeyError, TypeError, ValueError, struct.error) as error:
        return [f"an index or header of safetensors is not one that can be read ({error!r})"]


def _objections(folder: Path, files: Mapping[str, Entry]) -> list[str]:
    found = []
    for index in (name for name in files if name.endswith(".safetensors.index.json")):
        weight_map = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
        shards = {shard: str(Path(index).parent / shard) for shard in sorted(set(weight_map.values()))}
        found += [f"{index} names {name}, which is not there" for name in shards.values() if name not in files]
        tensors = {shard: tensors_of(folder / name) for shard, name in shards.items() if name in files}
        lost = [tensor for tensor, shard in weight_map.items() if shard in tensors and tensor not in tensors[shard]]
        if lost:
            found.append(f"{index} has {lost[0]} in {weight_map[lost[0]]}, which does not hold it")
    for name in (name for name in files if name.endswith(".safetensors")):
        said, size = said_size(folder / name), (folder / name).stat().st_size
        if said != size:
            found.append(f"{name} is {size} bytes, and its header says {said}")
    return found


def header_of(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the header of a safetensors file ends, and what it says."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return 8 + length, json.loads(stream.read(length))


def tensors_of(path: Path) -> set[str]:
    """The tensors that a safetensors file holds."""
    return set(header_of(path)[1]) - {"__metadata__"}


def said_size(path: Path) -> int:
    """How many bytes a safetensors file should have, by its own header."""
    end, header = header_of(path)
    return end + max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
