# make demo    the main job on two real VMs: containers and a VM die and come back with their data
# make down    removes everything that make demo made
# make test    everything that CI runs
# make quick   lint, types, layers, and the tests that need neither Docker nor VMs
# make bench   figures, as a table
# make clean   also removes .cache and .venv
#
# Each does all its own set-up: see tools/setup.sh.

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
SUDO := $(shell [ "$$(id -u)" -eq 0 ] || command -v sudo 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help demo down test quick lint fast docker servers vm bench clean setup setup-python setup-test

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

test: setup-test lint fast servers docker vm

quick: setup-python lint fast

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports

fast:
	$(PYTEST) -n 2 -m "not docker and not vm and not servers" --ignore=tests/bench

servers:
	$(SUDO) $(PYTEST) -m servers --ignore=tests/bench

docker:
	$(SUDO) $(PYTEST) -m "docker and not vm" --ignore=tests/bench

vm:
	$(SUDO) $(PYTEST) -m vm --ignore=tests/bench

bench: setup
	$(SUDO) $(PYTHON) -m tests.bench

clean: down
	$(SUDO) rm -rf .cache .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
