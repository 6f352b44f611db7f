#!/usr/bin/env bash
# The fleet tests. Those that share two hosts that serve run beside all others, since most of their time is waiting; then,
# alone, the one file that compares the whole machine before and after. The longest stories are told only with --all.
set -euo pipefail
cd "$(dirname "$0")/.."
set -m # so that the tests beside get a Ctrl-C handed on, and take their fleets down

tests=(.venv/bin/pytest -v -p no:cacheprovider --durations=15)
serving=(tests/fleet/test_first_light.py tests/fleet/test_survival.py)
long=(tests/fleet/test_driver.py tests/fleet/test_gateway.py tests/fleet/test_groups.py tests/fleet/test_host_knobs.py tests/fleet/test_topologies.py)
alone=tests/fleet/test_lab.py
elsewhere=("${serving[@]}" "$alone")
[[ "${1:-}" == --all ]] || elsewhere+=("${long[@]}")
mapfile -t others < <(printf '%s\n' tests/fleet/test_*.py | grep -vxFf <(printf '%s\n' "${elsewhere[@]}"))

status=0
mkdir -p build
"${tests[@]}" "${others[@]}" >build/fleet-others.log 2>&1 &
beside=$!
trap 'kill -INT -- "-$beside" 2>/dev/null || true; wait "$beside" || true; exit 130' INT TERM
"${tests[@]}" "${serving[@]}" || status=$?
wait "$beside" || status=$?
cat build/fleet-others.log
"${tests[@]}" "$alone" || status=$?
exit "$status"
