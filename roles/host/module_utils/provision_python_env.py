"""How `python_env` builds an environment: the wheels that it makes itself, and the script that its unit runs.

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

from ansible.module_utils.provision_transient import ca_environment, run_unit

STAMP = 946684800  # 2000-01-01: the modification time of every file that was installed and not touched since
RECORD = (
    ".provision"  # below the environment: what was asked for, what was installed, and everything with its size and mode
)

# How find tells a file in the record: directories by mode, all else by size and mode.
TOLD = r"-type d -printf '%P\td %m\n' -o -printf '%P\t%s %m\n'"

# Whether the tree at $1 is what its record lists, nothing touched since the stamp $2, all of it owned by $3:$4.
AS_RECORDED = rf"""
cd "$1" && find . -path ./.provision -prune -o -name __pycache__ -type d -prune -o \
  \( ! -uid "$3" -o ! -gid "$4" -o ! -type d \( -newermt "@$2" -o ! -newermt "@$(($2 - 1)).999999999" \) \) \
  -printf 'changed\n' -o {TOLD} \
  | LC_ALL=C sort | cmp -s - .provision/files
"""

# $NEW is built and renamed to $TARGET. The stamp comes before anything is compiled, since compiled files carry it. They
# are made now, because who runs in the environment later may not write there.
BUILD = (
    r"""
umask 022
rm -rf "$NEW"
trap 'rm -rf "$NEW.uv"' EXIT
if [ -n "$BOOTSTRAP" ]; then
  python3 -m venv "$NEW.uv"
  "$NEW.uv/bin/pip" install --quiet "$BOOTSTRAP"
  UV="$NEW.uv/bin/uv"
fi
"$UV" venv --quiet --relocatable --no-project --python "$WANTED_PYTHON" "$NEW"
mkdir "$NEW/.provision"
cp -r "$FOLDER/wanted.json" "$NEW/.provision/"
"$UV" pip install --quiet --no-config --python "$NEW" --link-mode copy --excludes "$FOLDER/excludes.txt" \
  --requirements "$FOLDER/requirements.txt"
"$UV" pip freeze --quiet --no-config --python "$NEW" > "$NEW/.provision/lock.txt"
cd "$NEW"
find . -path ./.provision -prune -o -name __pycache__ -prune -o ! -type d -exec touch -h -d @"$STAMP" {} +
find . -path ./.provision -prune -o -name __pycache__ -prune -o \( """
    + TOLD
    + r""" \) \
  | LC_ALL=C sort > .provision/files
touch -d @"$STAMP" .provision/files .provision/lock.txt .provision/wanted.json
cd /
if [ -n "$COMPILE" ]; then
  "$NEW/bin/python" -m compileall -q -j 0 "$NEW/lib" || true
fi
if [ -n "$IMPORTS" ]; then
  "$NEW/bin/python" -c "import $IMPORTS"
fi
if [ -n "$WARM" ]; then
  "$NEW/bin/python" -c 'import importlib, sys
for name in sys.argv[1:]:
    try: importlib.import_module(name)
    except Exception as error: print("Not compiled ahead:", name, error)' $WARM
fi
sync -f "$NEW"
if [ -e "$TARGET" ]; then
  rm -rf "$TARGET.old"
  mv -T "$TARGET" "$TARGET.old"
fi
mv -T "$NEW" "$TARGET"
sync -f "$TARGET"
rm -rf "$TARGET.old"
"""
)


def wheel(package: dict[str, Any]) -> tuple[str, bytes]:
    """Name and bytes of a wheel with the package's files; equal packages give equal bytes."""
    name, version = package["name"].replace("-", "_"), package["version"]
    info = f"{name}-{version}.dist-info"
    files = dict(package["files"])
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {package['name']}\nVersion: {version}\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: provision\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    if package["entry_points"]:
        files[f"{info}/entry_points.txt"] = package["entry_points"]
    lines = [f"{path},{_record_hash(text)},{len(text.encode())}\n" for path, text in sorted(files.items())]
    files[f"{info}/RECORD"] = "".join(lines) + f"{info}/RECORD,,\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, text in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(path), text)
    return f"{name}-{version}-py3-none-any.whl", packed.getvalue()


def _record_hash(text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
    return "sha256=" + digest.rstrip(b"=").decode()


def environment(params: dict[str, Any], target: str, folder: str) -> dict[str, str]:
    """What the build's programs read from their environment; here, since an index's URL may hold a password."""
    extra, links = params["extra_index_urls"], params["find_links"]
    variables = {
        "NEW": f"{target}.new",
        "TARGET": target,
        "FOLDER": folder,
        "STAMP": str(STAMP),
        "UV": params["uv"] or "",
        "BOOTSTRAP": params["bootstrap"] or "",
        "WANTED_PYTHON": params["python"],
        "IMPORTS": ", ".join(params["imports"]),
        "COMPILE": "yes" if params["compile"] else "",
        "WARM": " ".join(params["warm"]),
        "HOME": folder,
        "TORCHINDUCTOR_CACHE_DIR": folder,
        "UV_CACHE_DIR": params["cache"],
        "UV_PYTHON_INSTALL_DIR": "/opt/provision/python",
        "UV_DEFAULT_INDEX": params["index_url"],
        "UV_INDEX": " ".join(extra),
        "UV_INDEX_STRATEGY": "unsafe-best-match" if extra else "",
        "UV_FIND_LINKS": ",".join(links),
        "PIP_INDEX_URL": params["index_url"],
        "PIP_EXTRA_INDEX_URL": " ".join(extra),
        "PIP_FIND_LINKS": " ".join(links),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_CACHE_DIR": "1",
        **ca_environment(),
    }
    kept = {"UV", "BOOTSTRAP", "IMPORTS", "COMPILE", "WARM"}
    return {name: value for name, value in variables.items() if value or name in kept}


def build(params: dict[str, Any], target: str, wanted: str) -> None:
    """Lay out what the build reads, and run it; `params` are those of the module `python_env`."""
    folder = Path("/run/provision", f"{params['unit']}.input")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    try:
        wheels = []
        for name, content in map(wheel, params["local_packages"]):
            (folder / name).write_bytes(content)
            wheels.append(str(folder / name))
        (folder / "wanted.json").write_text(wanted, encoding="utf-8")
        (folder / "requirements.txt").write_text("\n".join([*params["requirements"], *wheels, ""]), encoding="utf-8")
        (folder / "excludes.txt").write_text("\n".join([*params["excludes"], ""]), encoding="utf-8")
        run_unit(params["unit"], BUILD, environment(params, target, str(folder)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
