"""A signed apt repository of small packages, laid out flat as NVIDIA's own for Debian 12."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from provision.lab.hardware.packages import Package, all_packages

KEY = "key.asc"
_ORIGIN = ("Origin=NVIDIA", "Label=NVIDIA CUDA", "Architectures=amd64", "Suite=", "Codename=")


def build(directory: Path) -> None:
    """Write packages, index, signature and `key.asc` into `directory`. The signing key does not outlive the call."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lab-apt-") as work:
        for package in all_packages():
            _pack(package, Path(work), directory)
        (directory / "Packages").write_bytes(_output(["apt-ftparchive", "packages", "."], directory))
        options = [word for each in _ORIGIN for word in ("-o", f"APT::FTPArchive::Release::{each}")]
        (directory / "Release").write_bytes(_output(["apt-ftparchive", *options, "release", "."], directory))
        _sign(directory, Path(work) / "gnupg")


def _pack(package: Package, work: Path, directory: Path) -> None:
    tree = work / f"{package.name}_{package.version}"
    for name, text in {
        **package.files,
        f"usr/share/doc/{package.name}/copyright": "Made by provision's lab.\n",
    }.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755 if "bin/" in name else 0o644)
    control = tree / "DEBIAN"
    control.mkdir()
    (control / "control").write_text(_control(package), encoding="utf-8")
    settings = sorted(f"/{name}\n" for name in package.files if name.startswith("etc/"))
    if settings:
        (control / "conffiles").write_text("".join(settings), encoding="utf-8")
    for script, body in (("postinst", package.postinst), ("prerm", package.prerm)):
        if body:
            (control / script).write_text(f"#!/bin/sh\nset -e\n{body}", encoding="utf-8")
            (control / script).chmod(0o755)
    for path in (tree, *tree.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    _output(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", str(tree), str(directory)], directory)


def _control(package: Package) -> str:
    fields = {
        "Package": package.name,
        "Version": package.version,
        "Architecture": "amd64",
        "Maintainer": "cudatools <cudatools@nvidia.com>",
        "Section": "non-free/libs",
        "Priority": "optional",
        "Depends": package.depends,
        **package.fields,
        "Description": package.description,
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items() if value)


def _sign(directory: Path, home: Path) -> None:
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--yes"]
    try:
        new = ["--passphrase", "", "--quick-generate-key", "provision lab <lab@localhost>", "ed25519", "sign", "never"]
        _output([*gpg, *new], directory)
        (directory / KEY).write_bytes(_output([*gpg, "--armor", "--export"], directory))
        _output([*gpg, "--clearsign", "--output", "InRelease", "Release"], directory)
        _output([*gpg, "--armor", "--detach-sign", "--output", "Release.gpg", "Release"], directory)
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "gpg-agent"], check=False, capture_output=True)


def _output(argv: list[str], directory: Path) -> bytes:
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(argv, cwd=directory, env=environment, check=True, stdout=subprocess.PIPE).stdout
