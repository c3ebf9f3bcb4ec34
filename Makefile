# make demo       set up and run the demonstration
# make test       set up and run the whole test suite
# make campaign   random attacks on data, arguments, folders and files: SEED=3 SIZE=1000
# make lint       formatting, lint and types

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test campaign lint format clean

demo: .venv/demo-installed
	$(BIN)/vivace demo --output vivace-demo

test: .venv/test-installed
	$(BIN)/python -m pytest

SEED ?= 0
SIZE ?= 100
campaign: .venv/test-installed
	PYTHONPATH=tests $(BIN)/python -m campaign --seed $(SEED) --size $(SIZE)

lint: .venv/test-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/test-installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vivace needs Python 3.11 or later; run make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/demo-installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[plot]'
	touch $@

.venv/test-installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[test]'
	touch $@

clean:
	rm -rf .venv vivace-demo
