# make run    a fresh clone to a model trained by RHEL on real data
# make test   the tests; `make test-fast` leaves out the slow ones, `make test-all` takes in those that take minutes
# make data   fetches and processes SelfRegulationSCP1, without which a few of the tests are skipped;
#             `make data-long` Fashion-MNIST as pixel sequences, 5,000 digits and PigCVP
# make faults seeds faults in a copy of the code, and shows that the tests see each
# make gpu-counts   compiles training steps for an H100, without a GPU, and holds kernels, bytes and memory to bounds;
#             FLAGS=--record records the bounds
# make lint   ruff; `make types` basedpyright
# make wheel-test   installs the package `rhel` into an empty environment and uses it;
#             CONSTRAINTS=requirements-lowest.txt takes the oldest versions

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Workers of the tests: one per core.
WORKERS ?= auto
# The versions that the wheel is tried with.
CONSTRAINTS ?= requirements.txt
# A file stays with one worker, so that what its tests share is made once. tests/conftest.py puts the long files first.
TESTS := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# The tests compile without most optimisations (tests/conftest.py), but for these: they compile as users do.
OPTIMISED := tests/models/test_float32.py tests/models/test_reference.py tests/training/test_training_bits.py
define tested
	$(TESTS) -m "$(1)" $(OPTIMISED:%=--ignore=%)
	XLA_FLAGS= $(TESTS:loadfile=load) -m "$(1)" $(OPTIMISED)
endef

# XLA's compiler for CUDA, 182 MB: the wheels of the version of jax, beside the environment and not in it.
PLUGIN := .cuda_plugin
JAX = $(shell sed -n 's/^jax==//p' requirements.txt)

.PHONY: run test test-all test-fast faults data data-long gpu-counts lint types wheel-test clean

run: $(VENV)/.installed
	$(BIN)/python run_experiment.py --dataset_name BasicMotions

test: $(VENV)/.installed-dev
	$(call tested,not long)

test-all: $(VENV)/.installed-dev
	$(call tested,long or not long)

test-fast: $(VENV)/.installed-dev
	$(TESTS) -m "not slow and not long"

faults: $(VENV)/.installed-dev
	$(BIN)/python tests/faults.py

data: $(VENV)/.installed
	$(BIN)/python data_dir/download_uea.py --datasets SelfRegulationSCP1
	$(BIN)/python data_dir/process_uea.py --datasets SelfRegulationSCP1

data-long: $(VENV)/.installed
	$(BIN)/python data_dir/process_sequential.py

gpu-counts: $(VENV)/.installed $(PLUGIN)/.fetched
	$(BIN)/python benchmarks/accelerator.py --check --plugin $(PLUGIN) --output_dir outputs/gpu_counts $(FLAGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/basedpyright --pythonpath $(BIN)/python

wheel-test: | $(BIN)/python
	.ci/wheel $(BIN)/python $(CONSTRAINTS)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-cluster.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	@touch $@

$(PLUGIN)/.fetched: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(PLUGIN) \
		jax-cuda12-plugin==$(JAX) jax-cuda12-pjrt==$(JAX)
	@touch $@

clean:
	rm -rf $(VENV) $(PLUGIN)
