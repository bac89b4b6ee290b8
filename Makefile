# make setup        a virtual environment in .venv with all that is needed; the other targets call it
# make demo         the whole job on the embedded model and corpus, about six minutes on two CPU cores
# make test         everything that must hold
# make coverage     the tests, with the share of src that they run, which must be 90 % or more; takes longer
# make test-peers   tests against other programs, which are installed for it: Label Studio
# make docs         the generated pages, and the docs site in build/site
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PEERS ?= .venv-peers
export OMP_WAIT_POLICY ?= PASSIVE
# Where it is set, each of some hundred processes compiles spantune again, and each test process all tests.
unexport PYTHONDONTWRITEBYTECODE
APART := $(MAKE) --no-print-directory -j2
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not gpu and not peers"

.PHONY: setup demo test coverage test-peers lint style types layers pages compiled format docs clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt tools/setup_environment.py
	$(PYTHON) tools/setup_environment.py $(VENV)

demo: setup
	$(BIN)/spantune demo

lint: setup
	$(APART) types style layers pages

# mypy needs one core for the longest, so the rest goes beside it.
test: setup
	$(APART) types style layers pages compiled
	$(TESTS)

# Measuring coverage takes up to two thirds more processor time, so `make test` does without.
coverage: setup compiled
	$(TESTS) --cov --cov-report=term --cov-fail-under=90

types: setup
	$(BIN)/mypy

style: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

layers: setup
	$(BIN)/lint-imports

pages: setup
	$(BIN)/python docs/generate.py --check

# Collected once, the tests are compiled for all test processes.
compiled: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 --collect-only -q -m "not gpu and not peers" > /dev/null

# Label Studio has other dependencies than spantune, so it gets an environment of its own.
$(PEERS)/ready:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet label-studio==1.23.2
	touch $@

test-peers: setup $(PEERS)/ready
	SPANTUNE_LABEL_STUDIO=$(PEERS)/bin/label-studio OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m peers

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(PEERS) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
