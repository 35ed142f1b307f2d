# The commands of the README. Everything is installed into .venv; remove it to start afresh.
PYTHON ?= python3
# The torch to install where none is there yet. On a machine without a GPU you may want the smaller CPU build:
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find csrc build_tools -type f -not -name '*.pyc')

.PHONY: demo test lint bench gpu-check clean

demo: $(VENV)/.demo
	$(BIN)/flexkern demo

test: $(VENV)/.test
	$(BIN)/pytest -m "not slow and not gpu"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
	$(BIN)/mypy

# Writes a results file into benchmarks/results, then the table of this page and docs/results/benchmarks from it.
bench: $(VENV)/.test
	$(BIN)/flexkern bench
	$(BIN)/python -m flexkern.benchmarks.publish

# On a machine with an NVIDIA GPU, with the torch that is there and no network: see scripts/gpu_check.py.
gpu-check:
	$(PYTHON) scripts/gpu_check.py

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --upgrade --quiet pip
	$(BIN)/pip install $(TORCH) numpy
	touch $@

# Editable, so that a change of a Python file needs no new installation; a change of csrc/ builds again.
$(VENV)/.demo: $(VENV)/.torch $(SOURCES)
	$(BIN)/pip install --editable '.[cli,vit]'
	touch $@

$(VENV)/.test: $(VENV)/.torch $(SOURCES)
	$(BIN)/pip install --editable '.[test]'
	touch $@ $(VENV)/.demo

$(VENV)/.dev: $(VENV)/.test
	$(BIN)/pip install --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build out *.egg-info flexkern/lib flexkern/_core*.so
