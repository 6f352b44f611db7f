# Each target does all of its own set-up. Run as root on Debian 12 or later: the simulated fleet boots real systemd hosts.
.PHONY: help setup demo test lint types unit unit-newest fleet test-fleet crash test-crash clean bench-first-light bench-converge bench-weights bench-serving picture test-vm
.DEFAULT_GOAL := help
BIN := .venv/bin

help: ## what there is to run
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 22

setup: ## everything that the project needs on this machine, and the command at .venv/bin/provision
	@scripts/setup.sh

demo: setup ## two bare simulated hosts to a model that answers
	@scripts/demo.sh

test: lint types unit unit-newest fleet crash ## all that CI runs

lint: setup ## ruff, ansible-lint (production), yamllint, shellcheck, role interfaces
	@scripts/lint.sh

types: setup ## mypy --strict
	$(BIN)/mypy

unit: setup ## unit tests: seconds, no root
	$(BIN)/pytest -q --numprocesses auto tests/unit

unit-newest: setup ## unit tests on the newest Python found, with the newest ansible-core
	@scripts/unit-newest.sh

fleet: setup ## the whole chain on the simulated fleet, from the built wheel
	@scripts/fleet.sh

test-fleet: setup ## the same, and the long stories: drivers, every knob, replicas behind a gateway under load; an hour and a half
	@scripts/fleet.sh --all

crash: setup ## a bounded part of the crash suite: changed stages, CRASH_BUDGET seconds (180), CRASH_SEED (7)
	CRASH_BUDGET=$${CRASH_BUDGET:-180} CRASH_SEED=$${CRASH_SEED:-7} $(BIN)/pytest -c tests/crash/pytest.ini -v tests/crash

test-crash: setup ## the whole crash suite: every point, fault and drift; an hour or two. CRASH_SEED, CRASH_STAGES
	CRASH_BUDGET=0 $(BIN)/pytest -c tests/crash/pytest.ini -v tests/crash

test-vm: ## two virtual machines with a kernel of their own: knobs, reboots, RDMA; half an hour
	@scripts/setup.sh e2fsprogs fdisk qemu-system-x86
	$(BIN)/pytest -c tests/vm/pytest.ini -v tests/vm

bench-first-light: setup ## fresh clone to first answer, second run; the last line is JSON
	$(BIN)/python benchmarks/first_light.py

bench-converge: setup ## re-runs, repair and drift beside stock Ansible and pyinfra; the last line is JSON
	@$(BIN)/python benchmarks/converge.py

bench-weights: setup ## weights on 2, 4 and 8 hosts behind shaped links, beside one host alone; the last line is JSON
	@$(BIN)/python benchmarks/weights.py

bench-serving: setup ## changes and failures of four replicas behind two gateways, as clients see them; the last line is JSON
	@$(BIN)/python benchmarks/serving.py

picture: setup ## draw the README's picture of a run again
	$(BIN)/python scripts/picture.py

clean: ## remove what setup made (caches stay)
	rm -rf .venv .venv-newest build dist
