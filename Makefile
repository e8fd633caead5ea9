# Two commands set everything up on a fresh machine: `make demo` runs the main job, `make test` passes the tests.
# The environment is made in VENV with PYTHON (3.11 or newer); uv, installed inside it, does the downloading, of the newest
# versions or of those that the file LOCK names.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST = $(BIN)/python -m pytest
LOCK ?=

.PHONY: demo test slow lint types format lock benchmark cuda-check cuda-tests cuda-rows clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"pyrovae needs Python 3.11 or newer, got {v.major}.{v.minor}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --editable '.[dev]' $(if $(LOCK),--constraint $(LOCK))
	touch $@

# The lowest versions that pyproject.toml allows, and what its tests need
LOWEST_PYTHON ?= python3.11
$(VENV)-lowest/installed: $(VENV)/installed
	$(BIN)/uv venv --quiet --clear --python $(LOWEST_PYTHON) $(VENV)-lowest
	VIRTUAL_ENV=$(VENV)-lowest $(BIN)/uv pip install --quiet --resolution lowest-direct --editable . 'pytest>=8.3' 'pytest-xdist>=3.6' \
		'hypothesis>=6.100'
	touch $@

demo: $(VENV)/installed
	$(BIN)/pyrovae compare --config examples/digits.yaml --overwrite true

test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(PYTEST) -m 'not slow and not long' -n 2 --doctest-modules tests pyrovae

slow: $(VENV)/installed
	$(PYTEST) -m slow

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python .ci/words.py

types: $(VENV)/installed
	rm -rf build/types && mkdir -p build/types
	VIRTUAL_ENV=$(VENV) $(BIN)/uv build --quiet --wheel --out-dir build/types .
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --target build/types/site build/types/*.whl
	cd build/types/site && MYPYPATH=. ../../../$(BIN)/mypy --config-file ../../../pyproject.toml -p pyrovae

# Every peer in turn; Pythae in an environment of its own. PYROVAE_DATA names the folder of MNIST.
benchmark: $(VENV)/installed $(VENV)-pythae/installed
	$(BIN)/python -W ignore benchmarks/speed.py --pythae $(VENV)-pythae/bin/python
	$(BIN)/python -W ignore benchmarks/parts.py
	$(BIN)/python -W ignore benchmarks/precision.py

$(VENV)-pythae/installed: $(VENV)/installed
	$(BIN)/uv venv --quiet --python $(BIN)/python $(VENV)-pythae
	VIRTUAL_ENV=$(VENV)-pythae $(BIN)/uv pip install --quiet pythae torch torchvision
	touch $@

# On a machine with a CUDA device, with the interpreter that is there (torch, pyro-ppl, pytest, ...): the
# tests marked gpu, and the rows docs/speed-cuda.*. For instance: make cuda-check CUDA_TESTS="-n 6" CUDA_ROWS="--cases iaf"
CUDA_PYTHON ?= python3
CUDA_TESTS ?=
CUDA_ROWS ?=
CUDA = PYTHONPATH=.:$$PYTHONPATH $(CUDA_PYTHON)
cuda-check: cuda-tests cuda-rows

cuda-tests:
	OMP_NUM_THREADS=2 $(CUDA) -m pytest -p no:benchmark -m gpu --durations=10 $(CUDA_TESTS) tests

cuda-rows:
	$(CUDA) -W ignore benchmarks/speed.py --quick --rounds 1 $(CUDA_ROWS)

# The versions that the gate installs (LOCK=.ci/requirements.txt), renewed
lock: $(VENV)/installed
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --upgrade \
		--custom-compile-command 'make lock' --output-file .ci/requirements.txt pyproject.toml

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build runs
