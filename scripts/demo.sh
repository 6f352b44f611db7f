#!/usr/bin/env bash
# Two bare simulated hosts to a model that answers, and what to try next.
set -euo pipefail
cd "$(dirname "$0")/.."
provision=.venv/bin/provision
inventory=inventory/lab

run() { printf '\n\033[1m$ provision %s\033[0m\n' "$*"; "$provision" "$@"; }
[[ -t 1 && -z "${NO_COLOR:-}" ]] || run() { printf '\n$ provision %s\n' "$*"; "$provision" "$@"; }

run lab up $inventory
run bootstrap $inventory
run ask $inventory "What is a GPU?"
cat <<'NEXT'

The model is tiny and its weights are random, so it speaks nonsense; the chain that serves it is real. Next:
  .venv/bin/provision status inventory/lab
  .venv/bin/provision lab ssh inventory/lab node-2 -- sudo sysctl vm.swappiness=60     # break something,
  .venv/bin/provision bootstrap inventory/lab                                          # and have it repaired
  .venv/bin/provision lab break --help                                                 # worse things to try
  .venv/bin/provision lab down inventory/lab                                           # leaves nothing behind
NEXT
