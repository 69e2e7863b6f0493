# Two commands do all set-up on a machine with Python 3.11 or newer (no compiler needed):
#   make run     chat with the demo model          make test    run the tests
# Everything that set-up prints goes to standard error, so `echo "question" | make run` writes the
# answer, and nothing else, to standard output.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PYTEST_ARGS ?=
# The transformers oracle needs torch, whose newest default build may bring gigabytes of CUDA:
# one named build is installed first, then a range that it satisfies.
ORACLE_TORCH ?= torch==2.13.0

# No current directory on sys.path: kernels/ must never be importable next to hga.kernels.
export PYTHONSAFEPATH := 1

FOLDERS := kernels kvstore models runtime tools
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check --no-input install -qq --retries 5

# Every parser in turn, so many seconds each.
FUZZ_TARGETS := gguf safetensors config tokenizer index container head state template
FUZZ_S ?= 60

.PHONY: help docs setup setup-test setup-dev setup-oracle setup-fuzz setup-cluster run test test-faults \
        test-aarch64 fuzz check lint ruff mypy arrows types format bench clean

help:
	@echo 'make run [ARGS="-p TEXT"]  chat with the demo model (sets everything up the first time)'
	@echo 'make test                  run the tests that need no GPU and are not slow'
	@echo 'make test-faults           hostile files, faults, signals, limits, soak: a quarter of an hour'
	@echo 'make test-aarch64 [ROOM=DIR] kernels and a model on an emulated aarch64 (Debian, Ubuntu)'
	@echo 'make fuzz [FUZZ_S=60]      every parser by atheris, FUZZ_S seconds each (Linux)'
	@echo 'make check                 lint, types, import arrows and tests: what CI runs'
	@echo 'make lint | format         ruff, mypy and import-linter | rewrite with ruff'
	@echo 'make docs                  remake docs/guide.md, docs/troubleshooting.md and docs/hga.1'
	@echo 'make bench [ARGS=...]      prefill and decode speed of the demo model'
	@echo 'make setup-oracle          also install torch and transformers, for the oracle tests'
	@echo 'make setup-cluster         also install Ray, for the tests of hga batch --ray'
	@echo 'make setup | types | clean install only | link tree for type-checkers | remove all made here'
	@echo 'PYTHON=python3.12 picks the interpreter, VENV=DIR the virtual environment.'

# pip is the last file that venv writes: where it is missing, set-up never finished.
$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { \
	  echo 'hga: $(PYTHON) not found; install Python 3.11 or newer, or: make PYTHON=/path/to/python3' >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null 2>/dev/null || { \
	  found=$$($(PYTHON) -V 2>&1 | head -n 1); \
	  echo "hga: needs Python 3.11 or newer, $(PYTHON) is $$found; try make PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null </dev/null || { \
	  echo 'hga: $(PYTHON) lacks the venv module; install it (Debian, Ubuntu: apt install python3-venv)' >&2; \
	  exit 1; }
	@echo 'hga: setting up $(VENV) with $(PYTHON): about 100 MB to download, a minute or so' >&2
	@$(PYTHON) -m venv --clear $(VENV) </dev/null >&2

# One stamp per group of extras, remade when pyproject.toml changes.
$(VENV)/.setup-run: pyproject.toml | $(BIN)/pip
	@$(PIP_INSTALL) -e . </dev/null >&2
	@touch $@

$(VENV)/.setup-test: pyproject.toml | $(BIN)/pip
	@echo 'hga: installing with what the tests need' >&2
	@$(PIP_INSTALL) -e '.[test]' </dev/null >&2
	@touch $(VENV)/.setup-run $@

$(VENV)/.setup-dev: pyproject.toml | $(BIN)/pip
	@echo 'hga: installing with what tests and linters need' >&2
	@$(PIP_INSTALL) -e '.[test,dev]' </dev/null >&2
	@touch $(VENV)/.setup-run $(VENV)/.setup-test $@

$(VENV)/.setup-oracle: pyproject.toml | $(BIN)/pip
	@echo 'hga: installing torch and transformers for the oracle tests (about 200 MB)' >&2
	@$(PIP_INSTALL) '$(ORACLE_TORCH)' </dev/null >&2
	@$(PIP_INSTALL) -e '.[test,oracle]' </dev/null >&2
	@touch $(VENV)/.setup-run $(VENV)/.setup-test $@

$(VENV)/.setup-fuzz: pyproject.toml | $(BIN)/pip
	@echo 'hga: installing with what fuzzing needs' >&2
	@$(PIP_INSTALL) -e '.[test,fuzz]' </dev/null >&2
	@touch $(VENV)/.setup-run $(VENV)/.setup-test $@

$(VENV)/.setup-cluster: pyproject.toml | $(BIN)/pip
	@echo 'hga: installing Ray for the tests of clusters (80 MB)' >&2
	@$(PIP_INSTALL) -e '.[test,cluster]' </dev/null >&2
	@touch $(VENV)/.setup-run $(VENV)/.setup-test $@

setup: $(VENV)/.setup-run
	@:
setup-test: $(VENV)/.setup-test
	@:
setup-dev: $(VENV)/.setup-dev
	@:
setup-oracle: $(VENV)/.setup-oracle
	@:
setup-fuzz: $(VENV)/.setup-fuzz
	@:
setup-cluster: $(VENV)/.setup-cluster
	@:

run: $(VENV)/.setup-run
	@$(BIN)/hga run demo $(ARGS)

bench: $(VENV)/.setup-run
	@$(BIN)/hga bench demo $(ARGS)

# What is made from the help topics and the command line; a test compares.
docs: $(VENV)/.setup-run
	@$(BIN)/hga help --guide > docs/guide.md
	@$(BIN)/hga help --man > docs/hga.1
	@cp tools/topics/troubleshooting.md docs/troubleshooting.md

test: $(VENV)/.setup-test
	@$(BIN)/python -m pytest -m 'not gpu and not slow' $(PYTEST_ARGS)

# Slow ones too; each test has ten minutes, the first of them to compile the kernels as well, and
# all together have an hour, which is for a machine that does much else.
test-faults: $(VENV)/.setup-test
	@HGA_TEST_FUZZ_S=10 timeout 3600 $(BIN)/python -m pytest --timeout 600 tests/hostile tests/faults \
	  tests/fuzz tests/kvstore/test_store_faults.py tests/kvstore/test_store_damage.py \
	  tests/kvstore/test_store_process.py tests/kvstore/reader/test_reader_faults.py $(PYTEST_ARGS)

# Fetched through apt and pip into ROOM the first time.
ROOM ?= /tmp/hga-aarch64
test-aarch64: $(VENV)/.setup-test
	@$(BIN)/python bench/aarch64.py $(ROOM) $(ARGS)

fuzz: $(VENV)/.setup-fuzz
	@for target in $(FUZZ_TARGETS); do \
	  echo "== $$target"; \
	  $(BIN)/python tests/fuzz/fuzz.py $$target -max_total_time=$(FUZZ_S) -verbosity=0 || exit 1; \
	done

check: lint test

lint: ruff mypy arrows

ruff: $(VENV)/.setup-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.setup-dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

mypy: $(VENV)/.setup-dev types
	@for platform in linux darwin win32; do \
	  $(BIN)/mypy --platform $$platform --cache-dir .mypy_cache/$$platform $(FOLDERS:%=-p hga.%) \
	    || exit 1; \
	done

arrows: $(VENV)/.setup-dev
	@$(BIN)/lint-imports

# Type-checkers do not follow an editable install's import hook; they follow links.
types:
	@rm -rf .types
	@mkdir -p .types/hga
	@for folder in $(FOLDERS); do ln -s ../../$$folder .types/hga/$$folder; done

clean:
	@rm -rf .venv .types build dist *.egg-info \
	  .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
