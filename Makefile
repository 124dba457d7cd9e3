# make demo: the most common use, on SQLite.   make test: the tests, on real databases too.
# make test LONG=1: also those that take long, as .ci/run does.
# make test ALL=1: also where a test repeats another on a further database or transport, an hour on two cores.
# make test-vitess VITESS_VERSION=v0.22.1: the tests that depend on the version of Vitess.
# make bench: all benchmarks, in twenty minutes; make bench QUICK=1: in two.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Keep compiled modules: the tests start many processes, each of which would compile them again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-vitess test-upgrade soak bench docs package lint format proto clean

demo: $(VENV)/.cli
	$(BIN)/sqla-vitess-messages demo

# Several tests at once keep the machine so busy that a lease may end before its time: what fails
# runs again alone, where a fault fails again.
RUN_TESTS = $(PYTEST) --cache-clear --dist loadgroup $(1) || \
	{ [ $$? = 1 ] && $(PYTEST) --last-failed --last-failed-no-failures none $(2); }
SELECTED = $(if $(ALL),-m "not soak",$(if $(LONG),-m "not soak and not matrix"))

test: $(VENV)/.dev
	$(call RUN_TESTS,-n 8 $(SELECTED),$(SELECTED))

test-vitess: $(VENV)/.dev
	$(call RUN_TESTS,-n 4 -m vitess,-m vitess)

test-upgrade: $(VENV)/.dev
	$(PYTEST) -m soak tests/soak/test_upgrade.py -rP

soak: $(VENV)/.dev
	$(PYTEST) -n 2 -m soak tests/soak/test_soak.py tests/soak/test_ordered.py -rP

bench: $(VENV)/.bench
	QUICK=$(QUICK) $(BIN)/python -m benchmarks

docs: $(VENV)/.dev
	$(BIN)/sphinx-build -q -W -E -b html docs docs/_build/html

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

package: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(VENV)/.dev
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. sqla_vitess_messages/vitess/grpc/vtgate.proto

clean:
	rm -rf $(VENV)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.cli: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[cli]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[dev]'
	touch $@ $(VENV)/.cli

$(VENV)/.bench: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[bench]'
	touch $@ $(VENV)/.dev $(VENV)/.cli
