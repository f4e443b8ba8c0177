# make demo | test | lint | types | docs | bench | wheel | clean. Each needs only Python 3.11 or newer, make and gcc; .venv is made once.
#
# TORCH=2.12.1 make test    another version of torch (the environment is brought to it)
# PYTHON=python3.12 make demo    another Python, when .venv is made

PYTHON ?= python3
TORCH ?= 2.13.0
THREADS ?= 1
REF ?= HEAD

VENV := .venv
BIN := $(VENV)/bin
# Quiet twice: errors only.
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check
CONSTRAINTS := $(VENV)/constraints.txt

# A stamp in $(VENV)/stamps says that a step of the installation is done, for this version of torch.
STAMPS := $(VENV)/stamps
TORCH_READY := $(STAMPS)/torch-$(TORCH)
DEMO_READY := $(STAMPS)/demo-$(TORCH)
TOOLS_READY := $(STAMPS)/tools-$(TORCH)
BASELINES_READY := $(STAMPS)/baselines-$(TORCH)
SCATTER_READY := $(STAMPS)/scatter-$(TORCH)
BUILD_READY := $(STAMPS)/build

.PHONY: help demo test lint types docs wheel clean bench bench-growth bench-full bench-smoke bench-compare baselines
.DELETE_ON_ERROR:

help:
	@echo "make demo    train MEA and its baselines on the embedded data, print the table (minutes)"
	@echo "make test    lint, types and all tests; the first run builds torch-scatter (about three minutes)"
	@echo "make lint    ruff"
	@echo "make types   mypy"
	@echo "make docs    the site, in docs/_build/html"
	@echo "make bench   times of ops, layers and models beside their baselines (ten minutes); THREADS=2 for two threads"
	@echo "make bench-compare REF=main   this tree's times beside those of a git ref"
	@echo "make wheel   wheel and sdist, in dist/"
	@echo "make clean   remove what the above made, except .venv"

demo: $(DEMO_READY)
	$(BIN)/mea-graph demo

# Two at a time, with one thread each: more would fight over the cores. The site comes before the tests, which read it.
test: lint $(SCATTER_READY)
	$(MAKE) --jobs 2 docs types bench-smoke
	OMP_NUM_THREADS=1 MEA_GRAPH_REQUIRE_SCATTER=1 $(BIN)/python -m pytest -n 2 --dist loadscope --doctest-modules mea_graph tests

lint: $(TOOLS_READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(TOOLS_READY)
	$(BIN)/mypy

# Warnings are errors. No network is used.
docs: $(TOOLS_READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html

BENCH = OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest benchmarks/bench_ops.py benchmarks/bench_layers.py \
	benchmarks/bench_model.py benchmarks/bench_data.py --quiet -p no:cacheprovider
# The processor time of one thread leaves out what other programs take; several threads are timed by the clock on the wall.
CLOCK = $(if $(filter 1,$(THREADS)),--benchmark-timer=time.process_time)
BENCH_FILE = benchmarks/results/$(1)-$(THREADS)-thread-$(shell date -u +%Y-%m-%d).json

# Both write JSON, then make docs/performance.md of it. With `make baselines` before, the field's own models are timed too.
bench: $(TOOLS_READY)
	@mkdir -p benchmarks/results
	$(BENCH) $(CLOCK) --quick --benchmark-json=$(call BENCH_FILE,quick)
	$(BIN)/python -m benchmarks.report

# What takes longer: batches of up to 128, sequences of up to 4000 steps (over windows 100,000), and the model compiled and in ONNX Runtime.
bench-growth: $(TOOLS_READY)
	@mkdir -p benchmarks/results
	$(BENCH) $(CLOCK) -k "growth or exported" --benchmark-json=$(call BENCH_FILE,growth)
	$(BIN)/python -m benchmarks.report

bench-full: $(TOOLS_READY)
	@mkdir -p benchmarks/results
	$(BENCH) $(CLOCK) --benchmark-json=$(call BENCH_FILE,full)
	$(BIN)/python -m benchmarks.report

# Each case once, checked against float64, on little input; no time is taken.
bench-smoke: THREADS = 1
bench-smoke: $(TOOLS_READY)
	$(BENCH) --benchmark-disable

bench-compare: $(TOOLS_READY)
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m benchmarks.compare $(REF)

baselines: $(BASELINES_READY)

$(BASELINES_READY): $(TOOLS_READY) benchmarks/baselines-requirements.txt
	$(PIP) install --constraint $(CONSTRAINTS) --requirement benchmarks/baselines-requirements.txt
	$(PIP) install --no-deps "linmult==1.8.1"
	@touch $@

wheel: $(BUILD_READY)
	$(BIN)/python -m build

clean:
	rm -rf dist build demo docs/_build docs/api .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mea-graph needs Python 3.11 or newer: PYTHON=python3.11 make ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone, and a constraint keeps it: no later step may replace it.
$(TORCH_READY): | $(BIN)/python
	@echo "Installing torch $(TORCH) into $(VENV) (once)"
	rm -rf $(STAMPS)
	$(PIP) install "torch==$(TORCH)"
	echo "torch==$(TORCH)" > $(CONSTRAINTS)
	@mkdir -p $(STAMPS) && touch $@

$(DEMO_READY): $(TORCH_READY) pyproject.toml
	$(PIP) install --constraint $(CONSTRAINTS) --editable ".[train,viz]"
	@touch $@

$(TOOLS_READY): $(TORCH_READY) pyproject.toml
	$(PIP) install --constraint $(CONSTRAINTS) --editable ".[all,test,docs]"
	@touch $@

# pip's cache does not know which torch a torch-scatter was built for, hence --no-cache-dir. Its four extension modules are compiled two at
# a time, which only a configuration file can ask for, and without debugging symbols.
$(SCATTER_READY): | $(TOOLS_READY)
	@echo "Building torch-scatter for torch $(TORCH) (once, about three minutes on two cores)"
	$(PIP) install setuptools wheel
	printf '[build_ext]\nparallel = 2\n' > $(VENV)/parallel.cfg
	DIST_EXTRA_CONFIG=$(CURDIR)/$(VENV)/parallel.cfg CFLAGS=-g0 FORCE_ONLY_CPU=1 \
		$(PIP) install --no-cache-dir --no-build-isolation --no-deps --force-reinstall "torch-scatter>=2.1.2"
	@touch $@

$(BUILD_READY): | $(BIN)/python
	$(PIP) install "build>=1.2"
	@mkdir -p $(STAMPS) && touch $@
