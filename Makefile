# The habits of the project, one command each. Every one makes .venv itself when it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test proofs notebooks check clean

demo: $(READY)  ## learn to pronounce English in five minutes, score it, pronounce words that are in no dictionary
	$(BIN)/python examples/pronunciation.py --run-dir runs/demo

test: $(READY)  ## all tests but the minutes-long proofs
	$(BIN)/python -m pytest

proofs: $(READY)  ## the proofs that take minutes
	$(BIN)/python -m pytest -m proof

notebooks: $(READY)  ## execute all notebooks, write their outputs, and what was measured into the ledger
	$(BIN)/python notebooks/build.py

check: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:  ## remove what was installed; runs stay
	rm -rf $(VENV)

# constraints.txt pins what was tested; the project's own dependencies are ranges.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)
