# Each command sets up what it needs first: `make evolve` and `make test` work on a fresh clone.
PYTHON ?= python3
ARGS ?=
# Test processes; each runs one thread.
JOBS ?= 2

BIN := .venv/bin
READY := .venv/.installed

.PHONY: evolve test bench lint

evolve: $(READY)
	$(BIN)/python -m torchmpo.evolve $(ARGS)

test: $(READY)
	OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 \
		$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

bench: $(READY)
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

# The stamp is younger than what it was made from, so a second call installs nothing.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: Python 3.11 or newer is needed, $(PYTHON) is not; say which: make PYTHON=python3.12" >&2; \
		exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[evolve,dev]'
	@touch $@
