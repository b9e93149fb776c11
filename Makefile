# `make demo` and `make test` do all their set-up: a virtual environment in .venv, installed once
# and again only when pyproject.toml changes. Needs Python 3.11 or newer and make, nothing else.
# `make test PYTHON=python3.13` has an environment of its own, .venv-python3.13.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv$(if $(filter command line,$(origin PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# One process for each core; the tests of a file share what they make, so they stay together. When one of the processes
# dies, pytest-xdist would wait for its tests for ever: the run ends, and says in which test that was.
PYTEST := $(BIN)/python -m pytest -n logical --dist loadfile --max-worker-restart 0

.PHONY: help demo test test-all test-files lint fuzz clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A stamp rather than .venv/bin/python, which an interrupted set-up leaves behind half done.
$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The base package only: no torch, no development tools.
$(VENV)/.base-installed: pyproject.toml | $(VENV)/.created
	@echo "installing brainmap into $(VENV) (once)"
	$(PIP) --editable .
	@touch $@

# pip knows --group since 25.1; the one that comes with Python 3.11 is older.
$(VENV)/.dev-installed: pyproject.toml | $(VENV)/.created
	@echo "installing brainmap and its development tools into $(VENV) (once)"
	$(PIP) --upgrade "pip>=25.1"
	$(PIP) --editable . --group dev
	@touch $@ $(VENV)/.base-installed

demo: $(VENV)/.base-installed ## a phantom brain: detect, count, report, score against the known truth
	$(BIN)/brainmap demo --out demo

test: lint ## ruff, mypy and the test suite but for its longest tests
	$(PYTEST) -m "not slow" --cov=brainmap --cov-report=term:skip-covered

test-all: lint ## ruff, mypy and the whole test suite
	$(PYTEST) --cov=brainmap --cov-report=term:skip-covered

# Without torch and the development tools: for a second Python, whose newest zarr is another one.
test-files: $(VENV)/.base-installed ## the tests of images, conversion, storage and tables alone
	$(PIP) pytest pytest-timeout pytest-xdist hypothesis
	$(PYTEST) tests/image tests/convert tests/points tests/export tests/test_*_folder.py tests/test_files.py

fuzz: $(VENV)/.dev-installed ## ten minutes of damaged files for every parser (the suite has a short form)
	BRAINMAP_FUZZ_EXAMPLES=$${BRAINMAP_FUZZ_EXAMPLES:-1000} $(PYTEST) tests/fuzz

lint: $(VENV)/.dev-installed ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove the virtual environment, caches and the demo's output
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache build dist demo
