#!/usr/bin/python
"""Ansible module: certificate authorities that a host trusts besides those of its distribution."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_files import work_folder
from ansible.module_utils.provision_host import Change, HostError, absent_change, converge, file_change, read_text, run

DOCUMENTATION = r"""
module: ca_certificates
short_description: Converges the certificate authorities that a site adds to its hosts
description:
  - Puts each certificate in a file of its own below C(/usr/local/share/ca-certificates), removes those of earlier runs
    that are no longer wanted, and has C(update-ca-certificates) rebuild the bundle when the bundle does not agree.
  - On a host without the package ca-certificates the files wait for it; its installation takes them in.
options:
  certificates:
    description: Certificates in PEM; one text may hold several.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Trust the site's own authority
  ca_certificates:
    certificates: ["{{ lookup('ansible.builtin.file', 'site-ca.pem') }}"]
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: [Rebuilt the bundle of trusted certificates.]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry for each certificate file, and one for the bundle, that differs.
  returned: always
  type: list
  elements: dict
"""

FOLDER = "/usr/local/share/ca-certificates"
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
PREFIX = "provision-"
ENABLED, STOCK = "/etc/ca-certificates.conf", "/usr/share/ca-certificates"
WORK = "/run/provision"
BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)


def bodies(text: str) -> list[str]:
    """The certificates of a text, each as its base64 without white space."""
    return ["".join(body.split()) for body in BLOCK.findall(text)]


def wanted_files(texts: list[str]) -> dict[str, str]:
    """One file per certificate, since update-ca-certificates skips files that hold several; named by content."""
    files = {}
    for text in texts:
        if not bodies(text):
            raise HostError(
                f"A file of site_ca_certificates holds no certificate in PEM; it begins with {text[:40]!r}."
            )
        for body in bodies(text):
            lines = "\n".join(body[start : start + 64] for start in range(0, len(body), 64))
            pem = f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"
            files[f"{FOLDER}/{PREFIX}{hashlib.sha256(body.encode()).hexdigest()[:12]}.crt"] = pem
    return files


def links() -> tuple[set[str], set[str]]:
    """The links beside the bundle: files that are linked by their name, and names that are linked by a hash."""
    names, hashes = set(), set()
    for entry in os.scandir(Path(BUNDLE).parent) if Path(BUNDLE).parent.is_dir() else ():
        if entry.is_symlink():
            target = os.readlink(entry.path)
            if entry.name.startswith(PREFIX):
                names.add(target)
            elif Path(target).name.startswith(PREFIX):
                hashes.add(f"{FOLDER}/{Path(target).stem}.crt")
    return names, hashes


def enabled() -> Iterator[str]:
    """The certificates of the distribution that the bundle holds, each as its base64."""
    for name in (read_text(ENABLED) or "").splitlines():
        text = read_text(f"{STOCK}/{name}") if name and name[0] not in "#!" else None
        yield from bodies(text or "")


def bundle_disagrees(files: dict[str, str]) -> bool:
    """Whether the bundle lacks a certificate, or the directory beside it has other links than it should.

    By its hash a certificate is linked once, whatever name: one that another file holds too may go without.
    """
    trusted = Counter(bodies(read_text(BUNDLE) or ""))
    names, hashes = links()
    alone = {path for path, pem in files.items() if trusted[bodies(pem)[0]] < 2}
    return (
        names != files.keys()
        or not alone <= hashes <= files.keys()
        or any(not trusted[bodies(files[path])[0]] for path in alone)
        or any(not trusted[body] for body in enabled())
    )


def rebuild(files: dict[str, str]) -> None:
    """Have the bundle made anew, and the links too where that does not mend them: it makes them for what is new.

    What it needs meanwhile lies where the next run clears what a kill left.
    """
    with work_folder(WORK, "certificates") as folder:
        run(["update-ca-certificates"], env={"TMPDIR": str(folder)})
        if bundle_disagrees(files):
            run(["update-ca-certificates", "--fresh"], env={"TMPDIR": str(folder)})


def plan(texts: list[str]) -> Iterator[Change]:
    """The files, and then the bundle if it does not agree with them."""
    files = wanted_files(texts)
    for path, pem in files.items():
        yield from file_change(path, pem)
    for path in sorted(Path(FOLDER).glob(f"{PREFIX}*.crt")):
        if str(path) not in files:
            yield from absent_change(str(path))
    if bundle_disagrees(files) and shutil.which("update-ca-certificates"):
        yield Change(
            "Rebuilt the bundle of trusted certificates.",
            lambda: rebuild(files),
            BUNDLE,
            "disagrees with the site's certificates\n",
            "agrees\n",
        )


def main() -> None:
    spec = {"certificates": {"type": "list", "elements": "str", "required": True}}
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    converge(module, lambda: plan(module.params["certificates"]))


if __name__ == "__main__":
    main()
