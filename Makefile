# `make demo` and `make test` create the environment they need; everything lands in .venv/, .venv-docs/ and out/.

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
ROVE := $(BIN)/rove
export ROVE_CACHE ?= $(CURDIR)/out/cache
export MALLOC_ARENA_MAX ?= 2

.PHONY: demo test test-slow check docs wheel-check bench clean

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

# What CI runs: lint, types, import rules, tests; a file's tests share what is dear to make, so they stay together until
# a process has nothing left to do.
test: .venv/.installed check
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

check: .venv/.installed docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation site; docs/requirements.txt says why it has an environment of its own.
.venv-docs/.installed: docs/requirements.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --requirement docs/requirements.txt
	@touch $@

docs: .venv-docs/.installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict

# The wheel by itself, as a release has it: outside the checkout, in an empty environment, with an empty cache.
wheel-check: .venv/.installed
	rm -rf build out/dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir out/dist .
	git ls-files bench shifts submissions leaderboard | grep -v '^leaderboard/results/' | $(BIN)/python -c 'import glob, sys, zipfile; \
	  held = zipfile.ZipFile(glob.glob("out/dist/*.whl")[0]).namelist(); \
	  lost = set(sys.stdin.read().split()) - set(held); \
	  sys.exit(f"the wheel lacks {sorted(lost)}; see package-data in pyproject.toml" if lost else 0)'
	set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; export ROVE_CACHE="$$folder/cache"; \
	  wheel=$$(echo $(CURDIR)/out/dist/*.whl); \
	  $(PYTHON) -m venv "$$folder/venv"; \
	  "$$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
	    --constraint constraints.txt "$$wheel[cpu,pocket,text,translate]"; \
	  cd "$$folder"; \
	  run=$$(venv/bin/rove run tiny --suite demo-v1 --offline); \
	  venv/bin/rove score "$$run"; \
	  venv/bin/rove bundle "$$run" --output demo-bundle; \
	  venv/bin/rove validate demo-bundle; \
	  venv/bin/rove site build demo-bundle --output site; \
	  test -s site/index.html; \
	  echo "$$wheel holds."

# The long tests: minutes each.
test-slow: .venv/.installed
	$(BIN)/python -m pytest -m slow

bench: .venv/.installed
	$(BIN)/python tests/benchmarks/bench_overhead.py

clean:
	rm -rf out .venv .venv-docs
