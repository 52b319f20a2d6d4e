# make demo    the main job on two real VMs: containers and a VM die and come back with their data
# make down    removes everything that make demo made
# make test    everything that CI runs
# make quick   lint, types, layers, and the tests that need neither Docker nor VMs
# make bench   figures, as a table
# make clean   also removes .cache and .venv
# make simulate SEEDS=0-99 [SCENARIO=mixed] [JOBS=2]   the real monitors and agents in a simulated world that goes wrong
# make simulate-mutants [JOBS=2]                       our own rules broken one by one: which seed finds which
#
# Each does all its own set-up: see tools/setup.sh.

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
SUDO := $(shell [ "$$(id -u)" -eq 0 ] || command -v sudo 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help demo down test quick lint caches fast docker servers processes vm bench clean
.PHONY: simulate simulate-mutants setup setup-python setup-test

help:
	@sed -n 's/^# //p' Makefile

setup:
	@tools/setup.sh vms

setup-test:
	@tools/setup.sh test

setup-python:
	@tools/setup.sh python

demo: setup
	@$(SUDO) $(PYTHON) -m healthmonitor.cli.demo

down:
	@if [ -x $(PYTHON) ] && [ -d .resurgam/demo ]; then \
		$(SUDO) $(PYTHON) -m healthmonitor.cli --dir .resurgam/demo down --yes --purge; \
	else echo "nothing was started by make demo"; fi
	@if [ -d .resurgam ]; then $(SUDO) rmdir --ignore-fail-on-non-empty .resurgam; fi

test: setup-test lint caches fast servers processes docker vm

quick: setup-python lint fast

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports

# Built before the tests, because a test has a deadline and a build on a loaded machine has none.
caches:
	$(SUDO) $(PYTHON) -m tests.support.caches

fast:
	tools/stage.sh $(PYTEST) -n 2 -m "not docker and not vm and not servers and not processes" --ignore=tests/bench

servers:
	$(SUDO) tools/stage.sh $(PYTEST) -m servers --ignore=tests/bench

processes:
	$(SUDO) tools/stage.sh $(PYTEST) -m processes --ignore=tests/bench

docker:
	$(SUDO) tools/stage.sh $(PYTEST) -m "docker and not vm" --ignore=tests/bench

vm:
	$(SUDO) tools/stage.sh $(PYTEST) -m vm --ignore=tests/bench

bench: setup
	$(SUDO) $(PYTHON) -m tests.bench

SEEDS := 0-19
SCENARIO := mixed
JOBS := 1

simulate: setup-python
	@$(PYTHON) -m tests.simulation --seeds $(SEEDS) --scenario $(SCENARIO) --jobs $(JOBS) --shrink

simulate-mutants: setup-python
	@$(PYTHON) -m tests.simulation.mutant_table --jobs $(JOBS)

clean: down
	$(SUDO) rm -rf .cache .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
