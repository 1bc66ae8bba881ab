# Each command sets up what it needs first: `make evolve` and `make test` work on a fresh clone.
PYTHON ?= python3
ARGS ?=
# Test processes; each runs one thread.
JOBS ?= 2

BIN := .venv/bin
READY := .venv/.installed
ORACLE := .venv-oracle
ALPACA := .venv-alpaca

.PHONY: evolve finetune test bench lint docs

evolve: $(READY)
	$(BIN)/python -m torchmpo.evolve $(ARGS)

finetune: $(READY)
	$(BIN)/python -m torchmpo.finetune $(ARGS)

test: $(READY)
	OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 \
		$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# The losses against TRL's own, in an environment that has nothing else.
.PHONY: test-oracle
test-oracle: $(ORACLE)/.installed
	OMP_NUM_THREADS=1 $(ORACLE)/bin/python -m pytest tests/oracle $(ARGS)

# Win rates against alpaca_eval's own, in an environment that has nothing else.
.PHONY: test-alpaca
test-alpaca: $(ALPACA)/.installed
	OMP_NUM_THREADS=1 $(ALPACA)/bin/python -m pytest tests/oracle_alpaca $(ARGS)

# The physics back end for GPUs against MuJoCo's own; on a CPU it first compiles for half a minute.
.PHONY: test-warp
test-warp: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[warp]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_warp.py $(ARGS)

bench: $(READY)
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

# A clip of the original and the target agent on the three-legged ant: runs/video/tla.gif.
.PHONY: video
video: $(READY)
	$(BIN)/python experiments/make_video.py $(ARGS)

# docs/losses.md and its pictures, from the losses.
docs: $(READY)
	$(BIN)/python docs/make_losses.py

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
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[evolve,llm,dev]'
	@touch $@

$(ORACLE)/.installed: tests/oracle/requirements.txt
	$(ORACLE)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(ORACLE)
	$(ORACLE)/bin/python -m pip install --disable-pip-version-check -r $<
	@touch $@

$(ALPACA)/.installed: tests/oracle_alpaca/requirements.txt
	$(ALPACA)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(ALPACA)
	$(ALPACA)/bin/python -m pip install --disable-pip-version-check -r $<
	@touch $@
