# Everything a fresh machine needs is Python >= 3.10, a C++ compiler and make: each target sets itself up in .venv, once.
#   make pretrain ARGS="--epochs 5"    make test ARGS="-k data"    PYTHON=python3.12 VENV=/tmp/venv make test
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

# Threads that wait should sleep: spinning makes small operations several times slower when other programs are running.
export OMP_WAIT_POLICY ?= PASSIVE

BIN := $(VENV)/bin
INSTALLED_FROM := pyproject.toml setup.py

.PHONY: pretrain test sanitize bench-cpu bench-train lint compile-report roofline docs clean

pretrain: $(VENV)/.installed-train
	$(BIN)/dogo-fast pretrain $(ARGS)

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

# The tests of the C++ kernels with AddressSanitizer and UndefinedBehaviorSanitizer in them. The runtimes must come before
# Python; libstdc++ with them, or they miss its exceptions. --capture=sys lets a report out of a process that dies.
RUNTIMES = $(foreach library,libasan.so libubsan.so libstdc++.so,$(shell g++ -print-file-name=$(library)))
sanitize: $(VENV)/.installed-test
	env LD_PRELOAD="$(RUNTIMES)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  DOGO_FAST_SANITIZE=address,undefined DOGO_FAST_CACHE=$(abspath $(VENV))/sanitized OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -n auto --dist loadfile --capture=sys -k "cpp or tiled" $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Writes RESULT.json and RESULT.txt; some minutes. Threads spin here, as they do by default.
RESULT ?= bench/results/tiled-cpu
bench-cpu: $(VENV)/.installed-test
	env -u OMP_WAIT_POLICY $(BIN)/python -m pytest bench/test_tiled.py --benchmark-json=$(RESULT).json \
	  --benchmark-columns=median,iqr,rounds $(ARGS)
	$(BIN)/python bench/table.py $(RESULT).json | tee $(RESULT).txt

# Views and training steps; writes TRAINING.json and TRAINING.txt. On a machine with a GPU, of both.
TRAINING ?= bench/results/train-cpu
bench-train: $(VENV)/.installed-test
	env -u OMP_WAIT_POLICY $(BIN)/python -m pytest bench/test_augment.py bench/test_step.py \
	  --benchmark-json=$(TRAINING).json --benchmark-columns=median,iqr,rounds $(ARGS)
	$(BIN)/python bench/table.py $(TRAINING).json | tee $(TRAINING).txt

compile-report: $(VENV)/.installed-train
	$(BIN)/python -m dogo_fast.compile_report $(ARGS)

.PHONY: pretrain test sanitize bench-cpu bench-train lint compile-report roofline docs clean

clean:
	rm -rf build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
	test ! -e .venv || rm -rf .venv

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: $(INSTALLED_FROM) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@
