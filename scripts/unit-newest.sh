#!/usr/bin/env bash
# Unit tests on the newest Python that is here, where ansible-core's newest release installs. Debian 12 alone has none
# newer than 3.11: then this says so, since it has tested nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

newest() {
  local candidate
  for version in 3.14 3.13 3.12; do
    for candidate in "python$version" "$(command -v pyenv >/dev/null && pyenv prefix "$(pyenv versions --bare | grep -x "$version\..*" | tail -n 1)" 2>/dev/null)/bin/python3"; do
      if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
        command -v "$candidate"
        return
      fi
    done
  done
}

python=$(newest)
if [[ -z "$python" ]]; then
  echo "No Python newer than 3.11 on this machine: the unit tests ran on $(.venv/bin/python -V) alone."
  exit 0
fi
stamp="$python $(cat pyproject.toml scripts/unit-newest.sh | sha256sum)"
if [[ "$(cat .venv-newest/.stamp 2>/dev/null)" != "$stamp" ]]; then
  rm -rf .venv-newest
  "$python" -m venv .venv-newest
  .venv-newest/bin/pip install --quiet --quiet --editable '.[lab,test]'
  echo "$stamp" >.venv-newest/.stamp
fi
echo "$(.venv-newest/bin/python -V), $(.venv-newest/bin/ansible --version | head -n 1)"
exec .venv-newest/bin/pytest -q --numprocesses auto -p no:cacheprovider tests/unit
