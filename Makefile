PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt
# The real data sets, where they lie beside the checkout; tests that need them skip elsewhere.
PRUNUS_DATA ?= $(realpath ../shared/data)
export PRUNUS_DATA

.PHONY: demo test test-slow mutants lint bench docs clean

demo: $(VENV)/.run
	$(BIN)/prunus demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow --timeout=3600

# Plants known bugs, one at a time, and says which the tests notice: hours on one core; AREA="dpp" for a part.
mutants: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python tools/mutants.py $(if $(AREA),--area "$(AREA)") --jobs 2 --out benchmarks/results/mutants.json

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.bench
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

# PRUNUS_GALLERY=0 shows the examples without running them: half a minute instead of several.
docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e '.[demo]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e '.[dev]'
	touch $@ $(VENV)/.run

$(VENV)/.bench: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e '.[dev,bench]'
	touch $@ $(VENV)/.dev $(VENV)/.run

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e '.[docs]'
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) dist build demo-report out docs/_build docs/gallery
