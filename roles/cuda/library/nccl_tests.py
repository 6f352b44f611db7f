#!/usr/bin/python
"""Ansible module: NVIDIA's nccl-tests, built on the host from a source that is known by its checksum."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import Change, HostError, converge, read_text, run, sha256_text
from ansible.module_utils.provision_transient import after, run_unit

DOCUMENTATION = r"""
module: nccl_tests
short_description: Converges a build of nccl-tests
description:
  - The source is fetched, compared with its checksum, and built with C(make) under a temporary name; then synced and
    renamed to C(DIRECTORY/ID), where ID is a hash of what it was built from. The build is the transient unit
    C(provision-nccl-tests), which an interrupted run leaves at work and the next waits for.
  - A program that was changed, added or removed since, or another source, NCCL, toolkit or MPI, has it built anew.
options:
  source:
    description: A C(.tar.gz) of nccl-tests, as a URL or as a path on the host. Needed only to build.
    type: str
    default: ""
  sha256:
    description: Its SHA-256, in hex.
    type: str
    required: true
  cuda_home:
    description: Where the CUDA toolkit is.
    type: path
    required: true
  nccl:
    description: The version of the installed NCCL, which the programs are built against.
    type: str
    required: true
  mpi_home:
    description: Where MPI is, with C(include) and C(lib); empty to build without.
    type: str
    default: ""
  directory:
    description: Where builds lie.
    type: path
    default: /opt/provision/nccl-tests
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Build nccl-tests
  nccl_tests:
    source: https://mirror.example.com/nccl-tests-2.17.6.tar.gz
    sha256: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
    cuda_home: /usr/local/cuda-13.0
    nccl: 2.28.9-1+cuda13.0
"""

RETURN = r"""
location:
  description: Where the programs are, or will be.
  returned: always
  type: str
  sample: /opt/provision/nccl-tests/5d1ac6b2f9c0
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: ["Built nccl-tests in /opt/provision/nccl-tests/5d1ac6b2f9c0."]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry when the build is not what it should be.
  returned: always
  type: list
  elements: dict
"""

UNIT = "provision-nccl-tests"
RECORD = "built.json"
# nccl-tests' own make; its default list of GPU generations is long, so the build takes minutes on few cores.
BUILD = r"""
rm -rf "$NEW"; mkdir -p "$NEW/source" "$NEW/made"
tar --extract --gzip --strip-components=1 --no-same-owner --directory="$NEW/source" --file="$ARCHIVE"
make --directory="$NEW/source" --jobs="$(nproc)" BUILDDIR="$NEW/made" CUDA_HOME="$CUDA_HOME" $MPI
mkdir "$NEW/done"
mv "$NEW"/made/*_perf "$NEW/done/"
"""


def wanted_text(params: dict[str, Any]) -> str:
    """What the programs are built from; equal texts mean equal builds."""
    return json.dumps({key: params[key] for key in ("sha256", "cuda_home", "nccl", "mpi_home")}, sort_keys=True) + "\n"


def place(params: dict[str, Any]) -> str:
    """Where the build belongs."""
    return f"{params['directory']}/{sha256_text(wanted_text(params))[:12]}"


def sums(folder: str) -> dict[str, str]:
    """The SHA-256 of each program of a build."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).glob("*_perf"))}


def differences(folder: str, wanted: str) -> list[str]:
    """Why what is there is not the wanted build; empty if it is."""
    recorded = read_text(f"{folder}/{RECORD}")
    if recorded is None:
        return ["unfinished"] if os.path.isdir(folder) else ["absent"]
    try:
        record = json.loads(recorded)
    except ValueError:
        return ["its record is damaged"]
    if record.get("wanted") != wanted or not record.get("programs"):
        return ["built from something else"]
    there, listed = sums(folder), record["programs"]
    return sorted(f"{name}: changed" for name in there.keys() | listed.keys() if there.get(name) != listed.get(name))


def fetch(source: str, sha256: str, target: Path) -> None:
    """Put the source at a path; refuse one with another checksum."""
    place = Path(source).as_uri() if source.startswith("/") else source
    if not place.startswith(("https://", "http://", "file://")):
        raise HostError(f"cuda_nccl_tests_source is '{source}'; expected a URL, or a path on the host.")
    try:
        with urllib.request.urlopen(place, timeout=120) as answer:  # noqa: S310 (its checksum is known)
            data = answer.read()
    except (OSError, urllib.error.URLError) as error:
        raise HostError(
            f"The source of nccl-tests cannot be fetched from {source}: {error}. Set cuda_nccl_tests_source to a "
            "mirror that this host reaches, or to a path on the host."
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise HostError(
            f"The source at {source} has the SHA-256 {found}, expected {sha256}. Nothing was built. If the file is the "
            "release that you mean, set cuda_nccl_tests_sha256 to what is there; if not, find out who changed it."
        )
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    target.write_bytes(data)


def build(params: dict[str, Any], target: str, wanted: str) -> None:
    """Fetch, build beside the place, record, sync and rename."""
    new = Path(params["directory"], f".{Path(target).name}.new")
    archive = Path(params["directory"], f".{Path(target).name}.tar.gz")
    if not os.access(f"{params['cuda_home']}/bin/nvcc", os.X_OK):
        raise HostError(
            f"There is no nvcc in {params['cuda_home']}/bin. cuda_toolkit_packages must bring it: by the metapackage, "
            "or by cuda-nvcc-13-0."
        )
    fetch(params["source"], params["sha256"], archive)
    mpi = f"MPI=1 MPI_HOME={params['mpi_home']}" if params["mpi_home"] else ""
    environment = {"NEW": str(new), "ARCHIVE": str(archive), "CUDA_HOME": params["cuda_home"], "MPI": mpi}
    run_unit(UNIT, BUILD, environment)
    record = {"wanted": wanted, "programs": sums(f"{new}/done")}
    (new / "done" / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    run(["sync", "--file-system", str(new / "done")])
    run(["rm", "-rf", target])
    (new / "done").rename(target)
    run(["sync", "--file-system", params["directory"]])
    run(["rm", "-rf", str(new), str(archive)])


def plan(params: dict[str, Any]) -> Iterator[Change]:
    """Build unless it is there, whole and untouched."""
    target, wanted = place(params), wanted_text(params)
    why = differences(target, wanted)
    if why:
        again = "" if why == ["absent"] else f" again: {why[0]}" + (f" and {len(why) - 1} more" if why[1:] else "")
        before = "".join(f"{line}\n" for line in why)
        yield Change(
            f"Built nccl-tests in {target}{again}.", lambda: build(params, target, wanted), target, before, wanted
        )


def main() -> None:
    text = {"type": "str", "required": True}
    spec = {
        "source": {"type": "str", "default": ""},
        "sha256": text,
        "cuda_home": {"type": "path", "required": True},
        "nccl": text,
        "mpi_home": {"type": "str", "default": ""},
        "directory": {"type": "path", "default": "/opt/provision/nccl-tests"},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    params = module.params
    converge(
        module,
        lambda: after(UNIT, module.check_mode, lambda: plan(params)),
        lambda: {"location": place(params)},
        forget=["source"],  # may hold a password, and the checksum says what it is
    )


if __name__ == "__main__":
    main()
