# The habits of the project, one command each. Every one makes .venv itself when it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

WORKERS ?= 2

.PHONY: demo test proofs proofs-sample notebooks notebooks-fast claims docs check clean

demo: $(READY)  ## learn to pronounce English in five minutes, score it, pronounce words that are in no dictionary
	$(BIN)/python examples/pronunciation.py --run-dir runs/demo

test: $(READY)  ## all tests but the proofs, in four minutes on two cores
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

proofs: $(READY)  ## the proofs, whole: an hour and more; what passed at this commit is not run again
	$(BIN)/python tests/proofs.py

proofs-sample: $(READY)  ## of every proof as much as a quarter of an hour allows, drawn by the commit
	$(BIN)/python tests/proofs.py --sample

notebooks: $(READY)  ## execute all notebooks, write their outputs, and what was measured into the ledger
	$(BIN)/python notebooks/build.py

notebooks-fast: $(READY)  ## execute all notebooks with their smallest experiments; writes nothing
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m proof tests/test_notebooks.py

claims: $(READY)  ## claims about trainings at another rate and for four times the steps: hours; goes on where it stopped
	$(BIN)/python -m transduce.learn.retraining

docs: $(READY)  ## the documentation site with the notebooks, in build/docs: links checked, pages looked at if there is a Chromium; needs npm
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python docs/site/build.py
	$(BIN)/python docs/site/check.py

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
