# `make` prints the targets below.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/demo
# LOCKED=1: install the versions in requirements.lock instead of the newest allowed ones.
# Modules are compiled when they are first imported: all 25,000 would take two minutes.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check \
	$(if $(LOCKED),--constraint requirements.lock)
TEST_WORKERS ?= 2
GOLDEN_ELSEWHERE := $(wildcard ../shared/golden)

export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup setup-test lock demo test soak bench parity lint format clean

help: ## print this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed ## create .venv and install the suite (LOCKED=1: tested versions)

setup-test: $(VENV)/.installed-test ## the same, with everything that tests and linters need

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "installing (a minute or two on a fresh machine) ..."
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP_INSTALL) -e '.[test]'
	$(PIP_INSTALL) --no-deps 'trackio>=0.40,<1'
	@touch $@

lock: setup-test ## write the versions in .venv to requirements.lock
	sed '/^#/!d' requirements.lock > requirements.lock.new
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' >> requirements.lock.new
	mv requirements.lock.new requirements.lock

demo: setup ## train the default job, evaluate it, print the results (under 5 minutes on 2 cores)
	$(BIN)/python train.py out=$(OUT) resume=auto
	$(BIN)/python eval.py checkpoint=$(OUT) split=test

test: setup-test ## run all tests in TEST_WORKERS processes (about 20 minutes on 2 cores)
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder
ifneq ($(GOLDEN_ELSEWHERE),)
	diff -rq -x README.md tests/golden $(GOLDEN_ELSEWHERE) || \
		$(BIN)/python -m pytest tests/parity --golden $(GOLDEN_ELSEWHERE)
endif

soak: setup-test ## hours of kills, full disks and damaged files (ITR_CLIPART=DIR: also on real images)
	$(BIN)/python -m pytest tests -m soak

# Each times both sides in turn in one run, ours and the literal or usual code.
BENCHMARKS := data_reading rank_speed rerank_speed answer_speed clip_step
BENCH_OUT ?= build/bench

bench: setup-test ## time everything again: BENCH_OUT/steps.md, and one file for each other benchmark
	mkdir -p $(BENCH_OUT)
	$(BIN)/python -m benchmarks.step_times --clock cpu --out $(BENCH_OUT)/steps.md
	for name in $(BENCHMARKS); do \
		echo "$$name ..." && \
		$(BIN)/python -m benchmarks.$$name > $(BENCH_OUT)/$$name.txt || exit 1; \
	done

parity: setup-test ## run only the comparison with the authors' numbers
	$(BIN)/python -m pytest tests/parity

lint: setup-test ## check with ruff (lint and format) and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: setup-test ## fix lint errors and format the code
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean: ## delete build and cache files (never runs/ or data/)
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
