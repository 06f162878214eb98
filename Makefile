# The front door. `make` alone prints this help.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/demo
GOLDEN_ELSEWHERE := $(wildcard ../shared/golden)

.DEFAULT_GOAL := help
.PHONY: help setup setup-test demo test soak parity lint format clean

help: ## print this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed ## make .venv and install the suite in it
setup-test: $(VENV)/.installed-test

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "installing (a minute or two on a fresh machine) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

demo: setup ## train the default job, evaluate it, print the results (under 5 minutes on 2 cores)
	$(BIN)/python train.py out=$(OUT) resume=auto
	$(BIN)/python eval.py checkpoint=$(OUT) split=test

test: setup-test ## run all tests (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest
ifneq ($(GOLDEN_ELSEWHERE),)
	$(BIN)/python -m pytest tests/parity --golden $(GOLDEN_ELSEWHERE)
endif

soak: setup-test ## kill, hang, interrupt, resume for an hour; ITR_CLIPART=DIR: real pictures, too
	$(BIN)/python -m pytest tests -m soak

parity: setup-test ## only the proof against the authors' numbers
	$(BIN)/python -m pytest tests/parity

lint: setup-test ## ruff (lint and format) and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: setup-test ## put the code into shape
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean: ## remove what tools left behind (never runs/ or data/)
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
