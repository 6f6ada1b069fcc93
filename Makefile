# `make demo` and `make test` set everything up by themselves; the environment is in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all lint bench docs release-check clean

demo: $(STAMP)
	$(BIN)/pyro-sps demo --out demo

# A process a core with one thread each: on small networks more threads do not pay.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal -m 'not slow'

# With the slow ones.
test-all: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# About half an hour on two quiet cores. Results go to benchmarks/results.
bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	for name in step whole scaling quality; do $(BIN)/python benchmarks/$$name.py --out benchmarks/results || exit 1; done

# Writes docs/_build/html/index.html. The notebooks are shown as they are committed; a warning is an error.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html

# Builds wheel and sdist and tries them in a clean environment: the README's first example, and `pyro-sps demo`.
release-check: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'build>=1.2'
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python tests/release_check.py dist

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) demo docs/_build docs/tutorials docs/study .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
