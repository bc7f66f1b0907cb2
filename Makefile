# Everything a fresh machine needs is Python >= 3.10, a C++ compiler and make: each target sets itself up in .venv, once.
#   make pretrain ARGS="--epochs 5"    make test ARGS="-k data"    PYTHON=python3.12 VENV=/tmp/venv make test
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

# Threads that wait should sleep: spinning makes small operations several times slower when other programs are running.
export OMP_WAIT_POLICY ?= PASSIVE

BIN := $(VENV)/bin
INSTALLED_FROM := pyproject.toml setup.py

.PHONY: pretrain test test-all sanitize bench bench-check bench-noise gpu-check page lint compile-report roofline docs clean

pretrain: $(VENV)/.installed-train
	$(BIN)/dogo-fast pretrain $(ARGS)

# The quick form of the tests, some minutes: each says what it leaves out. test-all leaves nothing out: every kernel is
# compiled in every configuration for every GPU, a run is killed 50 times, Hypothesis tries three times as much.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile
test: $(VENV)/.installed-test
	$(PYTEST) $(ARGS)

test-all: $(VENV)/.installed-test
	$(PYTEST) --whole $(ARGS)

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

# The benchmarks run with threads that spin, as they do by default. A run that is ended leaves what it had measured in
# RECORD with "-incomplete" in its name. Only the whole short grid becomes the record that the page is made from.
#   make bench ARGS="--only dogo_loss"    make bench ARGS="--minutes 9"    make bench GRID=check RECORD=few.json
GRID ?= short
DEVICE := $(if $(shell command -v nvidia-smi),gpu,cpu)
RECORD ?= $(if $(strip $(ARGS)$(filter-out short,$(GRID))),build,bench/results)/benchmark-$(DEVICE).json
bench: $(VENV)/.installed-test
	mkdir -p $(dir $(RECORD))
	env -u OMP_WAIT_POLICY $(BIN)/dogo-fast benchmark --grid $(GRID) --out $(RECORD) $(ARGS)

# Did a change make something slower? bench-noise, at the commit before it, makes repeated runs of the same code in
# build/; bench-check, on the same machine, whether ratios (others' times over ours) are still within what those gave.
RUNS ?= 1 2 3 4 5 6 7
bench-check: $(VENV)/.installed-test
	mkdir -p build
	env -u OMP_WAIT_POLICY $(BIN)/dogo-fast benchmark --grid check --out build/check.json
	$(BIN)/python -m dogo_fast.bench.reports.check build/check.json $(wildcard build/check-[0-9]*.json)

bench-noise: $(VENV)/.installed-test
	mkdir -p build
	rm -f build/check-[0-9]*.json
	for run in $(RUNS); do \
	  env -u OMP_WAIT_POLICY $(BIN)/dogo-fast benchmark --grid check --out build/check-$$run.json || exit 1; \
	done

# What a machine with a GPU is asked first, in slices of nine minutes: again until it says that all is done.
gpu-check: $(VENV)/.installed-test
	$(BIN)/python -m dogo_fast.bench.reports.gpu_check $(ARGS)

# docs/performance.md, docs/plots/ and the figures of README.md, from the records.
page: $(VENV)/.installed-test
	$(BIN)/python -m dogo_fast.bench.reports.page $(ARGS)

compile-report: $(VENV)/.installed-train
	$(BIN)/python -m dogo_fast.bench.reports.compile_report $(ARGS)

# What limits each kernel, from its machine code; some minutes.
roofline: $(VENV)/.installed-train
	$(BIN)/python -m dogo_fast.bench.reports.roofline --out bench/results/roofline-sm_90.json $(ARGS)

# The documentation as a site: build/site/index.html.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m mkdocs build --strict $(ARGS)

clean:
	rm -rf build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
	test ! -e .venv || rm -rf .venv

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: $(INSTALLED_FROM) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@
