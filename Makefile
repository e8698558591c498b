# One command for each routine of the project. Each creates .venv if it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test proofs proofs-sample notebooks notebooks-fast claims docs check clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*##  *\(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS="	" read -r name text; do printf '%-15s %s\n' "$$name" "$$text"; done

install: $(READY)  ## install into .venv, and nothing else

demo: $(READY)  ## learn to pronounce English in five minutes, score the model, and pronounce invented words
	$(BIN)/python examples/pronunciation.py --run-dir runs/demo

test: $(READY)  ## all tests except the proofs; four minutes on two cores
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

proofs: $(READY)  ## all proofs: an hour or more; those that passed at this commit are skipped
	$(BIN)/python tests/proofs.py

proofs-sample: $(READY)  ## a quarter of an hour's sample of every proof, which depends on the commit
	$(BIN)/python tests/proofs.py --sample

notebooks: $(READY)  ## execute all notebooks, and write their outputs and the ledger of measured claims
	$(BIN)/python notebooks/build.py

notebooks-fast: $(READY)  ## execute all notebooks with their smallest experiments, and write nothing
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m proof tests/test_notebooks.py

claims: $(READY)  ## retest claims about training at another learning rate and for four times the steps: hours; resumes where it stopped
	$(BIN)/python -m transduce.learn.retraining

docs: $(READY)  ## the documentation site with the notebooks, in build/docs: links checked, pages looked at if there is a Chromium; needs npm
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python docs/site/build.py
	$(BIN)/python docs/site/check.py

check: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:  ## remove the installation; runs are kept
	rm -rf $(VENV)

# constraints.txt pins the tested versions; the project's own dependencies are ranges.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)
