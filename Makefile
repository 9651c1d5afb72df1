# Two cores and no GPU are enough for every target. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
STAMP := $(VENV)/.installed

.PHONY: demo test test-fast check docs bench bench-truth bench-mutations bench-economy bench-validity bench-monitor bench-report setup models clean

setup: $(STAMP)

# The torch named first is a CPU build where one can be had; else the default build for this platform is taken.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" || $(BIN)/pip install --quiet --disable-pip-version-check torch
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[local,tasks,train,notebook,docs,dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/opdscope demo

test: $(STAMP)
	$(BIN)/python -m pytest

test-fast: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/python scripts/cli_page.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --site-dir dist/site

# Writes the command line's page from the commands' own help, and builds the site.
docs: $(STAMP)
	$(BIN)/python scripts/cli_page.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --site-dir dist/site

bench: $(STAMP)
	$(BIN)/python bench/sampler.py

# Every estimator against worlds where the answer is known; writes docs/truth.md. Two processes, a thread each.
bench-truth: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python bench/truth

# Each formula made wrong in turn: a test must notice; writes docs/mutations.md.
bench-mutations: $(STAMP)
	$(BIN)/python bench/mutations

# What a token buys: ranking, per-node numbers, each technique; writes docs/economy.md. PARTS="techniques allocator" runs some of it.
bench-economy: $(STAMP)
	$(BIN)/python bench/economy $(PARTS)

# Short real trainings in many configurations, beside what was predicted of them; writes docs/validity.md. Hours; goes on where it was killed.
bench-validity: $(STAMP)
	$(BIN)/python bench/validity

# What watching a training run costs, as a share of its steps.
bench-monitor: $(STAMP)
	$(BIN)/python bench/monitor.py

# The report of 500 questions in headless Chromium: size, first paint, interactions. Needs the demo's run and a Chromium.
bench-report: demo
	$(BIN)/python bench/report.py

# Trains the embedded models again, from their seeds (minutes on two cores).
models: $(STAMP)
	$(BIN)/python scripts/train_embedded.py

clean:
	rm -rf $(VENV) dist runs bench/results
