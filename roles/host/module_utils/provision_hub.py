"""Asking a hub of models, in the API of Hugging Face's, what a revision is and which files it has.

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from ansible.module_utils.provision_host import HostError

HUB = "https://huggingface.co"
TRIES = 3


class HubError(HostError):
    """The hub did not answer, or refused."""


def ask(endpoint: str, path: str, token: str) -> tuple[Any, str]:
    """One JSON answer of the hub, and the address of the next page, empty for none."""
    url = path if "://" in path else f"{endpoint or HUB}{path}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})  # noqa: S310  the URL is the inventory's
    for left in reversed(range(TRIES)):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                following = re.search(r'<([^>]+)>;\s*rel="next"', answer.headers.get("Link") or "")
                return json.load(answer), following.group(1) if following else ""
        except urllib.error.HTTPError as error:
            raise HubError(_refused(url, error.code)) from error
        except (OSError, ValueError) as error:
            if not left:
                why = getattr(error, "reason", error)
                raise HubError(
                    f"{url} does not answer this host: {why}. If the site has a mirror or a proxy, set "
                    "weights_endpoint or site_https_proxy; a certificate authority of the site's own goes into "
                    "site_ca_certificates."
                ) from error
            time.sleep(2)
    raise AssertionError("unreachable")


def _refused(url: str, code: int) -> str:
    if code in (401, 403):
        return (
            f"{url} answers {code}: there is no such model, or it is not for everybody. Check weights_repo; for a "
            "gated or private model, accept its terms and set weights_token."
        )
    if code == 404:
        return f"{url} answers 404: there is no such model or revision. Check weights_repo and weights_revision."
    return f"{url} answers {code}, so the weights cannot be looked up. Try again later."


def find_commit(endpoint: str, repo: str, revision: str, token: str) -> str:
    """The commit that a branch or tag means now."""
    answer, _ = ask(endpoint, f"/api/models/{repo}/revision/{urllib.parse.quote(revision, safe='')}", token)
    return str(answer["sha"])


def list_files(endpoint: str, repo: str, commit: str, token: str) -> dict[str, dict[str, Any]]:
    """Size and hash of every file at a commit: SHA-256 for large files, git's SHA-1 for the others."""
    path, files = f"/api/models/{repo}/tree/{commit}?recursive=true&expand=false", {}
    while path:
        entries, path = ask(endpoint, path, token)
        for entry in entries:
            if entry["type"] == "file":
                large = entry.get("lfs")
                kind, value = ("sha256", large["oid"]) if large else ("git", entry["oid"])
                files[entry["path"]] = {"size": entry["size"], kind: value}
    return files
