# `make demo` and `make test` create the environment they need; everything lands in .venv/ and out/.

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
ROVE := $(BIN)/rove
export ROVE_CACHE ?= $(CURDIR)/out/cache
export MALLOC_ARENA_MAX ?= 2

.PHONY: demo test test-slow check bench clean

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Rove needs Python 3.11 or later; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,pocket,text,translate,dev]'
	@touch $@

# Scores the shipped submission on the embedded suite and builds the site from the result.
demo: .venv/.installed
	@mkdir -p out
	cd out && run=$$($(ROVE) run tiny --suite demo-v1) && $(ROVE) bundle $$run --output demo-bundle --overwrite
	$(ROVE) site build out/demo-bundle --output out/site
	@echo "Open $(CURDIR)/out/site/index.html"

# What CI runs: lint, types, import rules, tests; a file's tests share what is dear to make, so they stay together.
test: .venv/.installed check
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The long tests: minutes each.
test-slow: .venv/.installed
	$(BIN)/python -m pytest -m slow

bench: .venv/.installed
	$(BIN)/python tests/benchmarks/bench_overhead.py

clean:
	rm -rf out .venv
