# Two commands for a newcomer: `make run` and `make test`. Both do all their own set-up, here and in .venv and .services.

VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# Every gateway and server that a test starts would be compiled anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test check format services bench soak clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:
	@echo "make run     set up, then show the gateway working on simulated machines (Ctrl-C stops it)"
	@echo "make test    set up, then lint, types, import rule and every test (make test ARGS='-k kafka')"
	@echo "make check   lint, types and import rule only"
	@echo "make format  let ruff put the code in shape"
	@echo "make bench   run every benchmarks/bench_*.py, each figure beside its reference"
	@echo "make soak    run every benchmarks/soak_*.py, five to twelve minutes each (make soak ARGS='--seconds 90')"
	@echo "make clean   remove .venv, .services and what the tools left"

run: $(VENV)/.for-run
	@exec $(BIN)/gateway demo $(ARGS)

# Three workers, also for two cores: tests mostly wait. ARGS='-n 0' for none. The services come while the checks run.
test: $(VENV)/.for-test
	@$(MAKE) --no-print-directory services & services=$$!; \
	$(MAKE) --no-print-directory check; checked=$$?; \
	wait $$services && exit $$checked
	$(BIN)/python -m pytest -n 3 $(ARGS)

check: $(VENV)/.for-test
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.for-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The real servers that tests and benchmarks talk to; quick when they are there already.
services: $(VENV)/.for-test
	@$(BIN)/python -m tests.services.install

bench: $(VENV)/.for-test services
	@failed=; \
	for file in benchmarks/bench_*.py; do \
	  [ -e "$$file" ] || { echo "make bench: there is no benchmarks/bench_*.py yet"; break; }; \
	  name=$$(basename "$$file" .py); \
	  echo "== $$name"; \
	  $(BIN)/python -m "benchmarks.$$name" $(ARGS) || failed="$$failed $$name"; \
	done; \
	[ -z "$$failed" ] || { echo "make bench: failed:$$failed" >&2; exit 1; }

soak: $(VENV)/.for-test services
	@failed=; \
	for file in benchmarks/soak_*.py; do \
	  name=$$(basename "$$file" .py); \
	  echo "== $$name"; \
	  $(BIN)/python -m "benchmarks.$$name" $(ARGS) || failed="$$failed $$name"; \
	done; \
	[ -z "$$failed" ] || { echo "make soak: failed:$$failed" >&2; exit 1; }

clean:
	rm -rf $(VENV) .services .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build

# Stamps: a folder made half is made again, a finished one is made again only when pyproject.toml changes.
$(VENV)/.for-run: $(VENV)/.made pyproject.toml
	@echo "Installing the gateway into $(VENV) (about a minute the first time)"
	@$(BIN)/python -m pip install --quiet --editable '.[broker]'
	@touch $@

$(VENV)/.for-test: $(VENV)/.made pyproject.toml
	@echo "Installing the gateway and its test tools into $(VENV) (about a minute the first time)"
	@$(BIN)/python -m pip install --quiet --editable '.[broker,test]'
	@touch $@ $(VENV)/.for-run

$(VENV)/.made:
	@found=; \
	for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14; do \
	  if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "Missing: Python 3.11 or newer (if it has an unusual name: make PYTHON=/path/to/python3.11 ...)" >&2; exit 1; \
	fi; \
	if ! $$found -c 'import venv, ensurepip' >/dev/null 2>&1; then \
	  echo "Missing: the venv module of $$found (Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; \
	fi; \
	$$found -m venv --clear $(VENV)
	@touch $@
