#!/usr/bin/env bash
# Install what this project needs: Debian packages for the simulated fleet and those given as arguments, and the command
# with its Python packages in .venv. Does nothing when all of it stands.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(apt-utils dpkg-dev fuse3 gnupg haproxy iproute2 keepalived libfuse2 mmdebstrap nftables nginx-light
  openssh-client python3-venv rsync shellcheck sudo systemd-container xz-utils zstd "$@")

missing() { dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null |
  awk '$2 == "installed" { print $1 }' | sort | comm -13 - <(printf '%s\n' "${packages[@]}" | sort); }

if [[ -n "$(missing)" ]]; then
  if [[ $EUID -ne 0 ]]; then
    echo "These Debian packages are missing: $(missing | tr '\n' ' '). Run this as root, or install them first." >&2
    exit 1
  fi
  echo "Installing Debian packages: $(missing | tr '\n' ' ')" >&2
  export DEBIAN_FRONTEND=noninteractive
  # Tests start these themselves; the services that their packages bring have no business on this machine.
  for name in haproxy keepalived nginx; do
    if [[ "$(missing)" == *$name* && ! -e /etc/systemd/system/$name.service ]]; then
      ln -s /dev/null "/etc/systemd/system/$name.service"
    fi
  done
  apt-get -qq update
  # shellcheck disable=SC2046  # one word a package
  apt-get -qq install --yes --no-install-recommends $(missing) >/dev/null
fi

# The stamp names all that the environment is made from, so that a changed dependency is installed by the next call.
stamp=$(cat pyproject.toml scripts/setup.sh | sha256sum)
if [[ ! -x .venv/bin/provision || "$(cat .venv/.stamp 2>/dev/null)" != "$stamp" ]]; then
  echo "Installing the command and its Python packages in .venv" >&2
  "${PYTHON:-python3}" -m venv .venv
  .venv/bin/pip install --quiet --quiet --editable '.[lab,dev]'
  echo "$stamp" >.venv/.stamp
fi
