# The commands of the README. Everything is installed into .venv; remove it to start afresh.
PYTHON ?= python3
# The torch to install where none is there yet. On a machine without a GPU you may want the smaller CPU build:
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
# Test processes, and which tests they run; each may take 2 GB of memory.
PROCESSES ?= 2
SELECT ?= not slow and not gpu
# Editable, so that a change of a Python file needs no new installation; a change of csrc/ builds again. pip would
# compile all in a new folder each time: with this one a second installation compiles only what has changed. -v
# shows how far it is, -q spares the files that setuptools copies.
BUILD := FLEXKERN_BUILD_DIR=$(CURDIR)/build/cmake $(BIN)/pip install -v --config-settings=--global-option=-q
SOURCES := pyproject.toml setup.py CMakeLists.txt $(shell find csrc build_tools flexkern/spec -type f -not -name '*.pyc')

# Containers often set it. Each process that a test or the demo starts would then compile all of flexkern anew:
# 3.5 s in place of 1.6 (processor time of an import).
unexport PYTHONDONTWRITEBYTECODE

# What a build is told: where that changes, it is made again.
OPTIONS := $(FLEXKERN_CUDA) $(FLEXKERN_CUDA_ARCHS) $(FLEXKERN_EXTENSION)

.PHONY: always demo test lint docs wheel bench fuzz asan reliability mutate gpu-check clean

demo: $(VENV)/.demo
	$(BIN)/flexkern demo --restart

test: $(VENV)/.test
	$(BIN)/pytest -n $(PROCESSES) --dist worksteal -m "$(SELECT)"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
	$(BIN)/mypy

# The site, into build/site. A warning is an error; so is a link that leads nowhere, and, where there is a
# Chromium, what is too wide for a phone: see scripts/check_site.py.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	$(BIN)/python scripts/check_site.py build/site

# The sdist, a wheel for CPUs and, where there is nvcc, one with CUDA kernels, into dist, each checked and tried:
# see scripts/wheel.py. `make wheel TRY=torch==2.14.1` tries them in a fresh environment with that torch.
wheel: $(VENV)/.torch
	$(BIN)/pip install --quiet --group wheel
	$(BIN)/python scripts/wheel.py $(if $(TRY),--torch $(TRY))

# Writes a results file into benchmarks/results, then the table of this page and docs/results/benchmarks from it.
bench: $(VENV)/.test
	$(BIN)/flexkern bench
	$(BIN)/python -m flexkern.benchmarks.publish

# A million random cases; their counts go to docs/results/reliability: see docs/reliability.md.
fuzz: $(VENV)/.test
	cd tests && ../$(BIN)/python -m fuzz --json ../docs/results/reliability/fuzz.json

# The compiled code under AddressSanitizer and UBSan, CUDA kernels too, on the host: see scripts/sanitize.py.
asan: $(VENV)/.test
	$(BIN)/python scripts/sanitize.py

# The fuzzers, a thousand kills, and streams of 10,000 items and 500 tasks, in full; the counts of docs/reliability.md
# are from the files that it writes.
reliability: fuzz
	$(BIN)/python scripts/reliability.py

# Breaks the code in some sixty ways, one at a time, and says which of them no test notices: see scripts/mutate.py.
# It takes an hour or two: by hand, or once a week. `make mutate ONLY=fields` tries those with that in their name.
mutate: $(VENV)/.test
	$(BIN)/python scripts/mutate.py $(ONLY)

# On a machine with an NVIDIA GPU, with the torch that is there and no network: see scripts/gpu_check.py.
gpu-check:
	$(PYTHON) scripts/gpu_check.py

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --upgrade --quiet pip
	$(BIN)/pip install $(TORCH) numpy
	touch $@

$(VENV)/.options: $(VENV)/.torch always
	@[ "$$(cat $@ 2>&1)" = '$(OPTIONS)' ] || echo '$(OPTIONS)' > $@

$(VENV)/.built: $(VENV)/.torch $(VENV)/.options $(SOURCES)
	$(BUILD) --no-deps --editable .
	touch $@

$(VENV)/.demo: $(VENV)/.built
	$(BIN)/pip install 'flexkern[cli,vit]'
	touch $@

# timm without what it depends on: that has no build for CPUs, and tests stand in for it.
$(VENV)/.test: $(VENV)/.built
	$(BIN)/pip install 'flexkern[test]'
	$(BIN)/pip install --no-deps timm
	touch $@ $(VENV)/.demo

# Has all that the other two have: one installation serves for them, too.
$(VENV)/.dev: $(VENV)/.built
	$(BIN)/pip install 'flexkern[dev]'
	$(BIN)/pip install --no-deps timm
	touch $@ $(VENV)/.test $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist out *.egg-info flexkern/lib flexkern/_core*.so
