#!/usr/bin/env bash
# Every static check, each run whatever the others say; fails if any failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
export PATH="$PWD/.venv/bin:$PATH" ANSIBLE_HOME="$PWD/.cache/ansible"
failed=0
check() { echo "· $1"; shift; "$@" || failed=1; }

check "ruff check" ruff check --quiet
check "ruff format" ruff format --check --quiet
check "yamllint" yamllint --strict .
check "shellcheck" shellcheck scripts/*.sh .ci/run
check "ansible-lint" ansible-lint --offline -q playbooks roles
check "role interfaces" python scripts/check_roles.py
exit $failed
