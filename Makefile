# `make demo` and `make test` do all their set-up: a virtual environment in .venv, installed once
# and again only when pyproject.toml changes. Needs Python 3.11 or newer and make, nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test lint clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A stamp rather than .venv/bin/python, which an interrupted set-up leaves behind half done.
.venv/.created:
	$(PYTHON) -m venv .venv
	@touch $@

# The base package only: no torch, no development tools.
.venv/.base-installed: pyproject.toml | .venv/.created
	@echo "installing brainmap into .venv (once)"
	$(PIP) --editable .
	@touch $@

# pip knows --group since 25.1; the one that comes with Python 3.11 is older.
.venv/.dev-installed: pyproject.toml | .venv/.created
	@echo "installing brainmap and its development tools into .venv (once)"
	$(PIP) --upgrade "pip>=25.1"
	$(PIP) --editable . --group dev
	@touch $@ .venv/.base-installed

demo: .venv/.base-installed ## a phantom brain: detect, count, report, score against the known truth
	$(BIN)/brainmap demo --out demo

test: lint ## ruff, mypy and the test suite
	$(BIN)/python -m pytest

lint: .venv/.dev-installed ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove the virtual environment, caches and the demo's output
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build dist demo
