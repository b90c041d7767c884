# PRESET=smoke (or another folder of presets/) makes repro, report, sweep, ablate, ladder, lab and verify work on that one's results.
SHELL := bash
PRESET ?= emoji
ROOT := $(if $(filter emoji,$(PRESET)),.,presets/$(PRESET))
ifeq ($(wildcard $(ROOT)/params.yaml),)
$(error no preset $(PRESET); known are emoji $(notdir $(patsubst %/,%,$(wildcard presets/*/))))
endif
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
RUN := $(BIN)/papermill --engine clean -k python3 --no-progress-bar --log-output
READY := $(VENV)/ready
# The commands of dvc.yaml are found here.
export PATH := $(BIN):$(PATH)
# glibc keeps the memory that tensors leave for the next ones: attacks take a tenth less time.
export MALLOC_MMAP_THRESHOLD_ := 1073741824
export MALLOC_TRIM_THRESHOLD_ := 4294967296

.PHONY: help repro report test slow bench lint sweep ablate ladder lab verify lock clean

# What can be made, and what each of it is: this list.
help:
	@awk '/^# /{said = said " " substr($$0, 3); next} /^[a-z]+:/{sub(/:.*/, ""); printf "make %-7s%s\n", $$0, said} {said = ""}' Makefile
	@echo
	@echo 'PRESET=NAME, for repro, report, sweep, ablate, ladder, lab and verify: one of $(notdir $(patsubst %/,%,$(wildcard presets/*/)))'

# The environment, then every result; it goes on where it was stopped.
repro: $(READY) $(wildcard presets/*/dvc.yaml)
	@cd $(ROOT) && $(BIN)/dvc repro
	@$(BIN)/hierclip readme
	@echo "results: $(ROOT)/data/results/table.md, figures beside it; make report$(if $(filter-out .,$(ROOT)), PRESET=$(PRESET)) puts all on a page"

# Presets have the pipeline as copies: DVC compares commits, and follows no link in one.
presets/%/dvc.yaml: dvc.yaml
	@cp $< $@

# One page of all results, data/results/report.html: notebook 70 on what `make repro` left; it says what is missing.
report: $(READY)
	@mkdir -p $(ROOT)/data/executed
	@cd $(ROOT) && $(filter-out --log-output,$(RUN)) -p page True notebooks/70_report.ipynb data/executed/70_report-page.ipynb
	@cd $(ROOT) && $(BIN)/jupyter nbconvert --config notebooks/nbconvert_config.py --output-dir data/results \
	  --output report.html data/executed/70_report-page.ipynb

# The environment, then the tests.
test: $(READY)
	@$(BIN)/pytest

# What takes an hour: our suite against pyautoattack's, on the model that `make repro` trained.
slow: $(READY)
	@$(BIN)/pytest -m slow -s

# Speed, memory and cost beside the peers' and the limit: one table, some 20 minutes, and benchmarks/results.md.
# It trains the default's base and TeCoA where they are missing. PARTS="pgd-10 matrix" measures some parts alone.
bench: $(READY)
	@$(BIN)/dvc repro finetune@tecoa-0
	@$(BIN)/python -m benchmarks $(PARTS)

# Style, types, and notebooks without outputs.
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/nbstripout --verify notebooks/*.ipynb

# JupyterLab on the notebooks, which it saves without outputs: looking at one changes nothing. LAB= passes options on.
lab: $(READY)
	@HIERCLIP_ROOT=$(CURDIR)/$(ROOT) $(BIN)/jupyter lab --notebook-dir=notebooks --config=notebooks/jupyter_server_config.py $(LAB)

# Learning rate and logit scale of every method, on validation images; the choice goes into params.yaml by hand.
sweep: $(READY)
	@cd $(ROOT) && $(BIN)/dvc repro pretrain
	@cd $(ROOT) && $(RUN) notebooks/35_sweep.ipynb data/executed/35_sweep.ipynb

# What each part brings, three seeds each; then the report, which shows it.
ablate: $(READY)
	@cd $(ROOT) && $(BIN)/dvc repro pretrain
	@cd $(ROOT) && $(RUN) notebooks/80_ablate.ipynb data/executed/80_ablate.ipynb
	@cd $(ROOT) && $(BIN)/dvc repro
	@$(BIN)/hierclip readme

# From TeCoA to the hierarchical loss, one change at a time, and its other knobs; then the report, which shows it.
ladder: $(READY)
	@cd $(ROOT) && $(BIN)/dvc repro pretrain
	@cd $(ROOT) && $(RUN) -p name ladder -y 'tables: [ladder, knobs]' notebooks/80_ablate.ipynb data/executed/80_ladder.ipynb
	@cd $(ROOT) && $(BIN)/dvc repro
	@$(BIN)/hierclip readme

# The records just made against the committed ones.
verify: $(READY)
	@cd $(ROOT) && $(BIN)/hierclip verify

# Pins anew; needs uv.
lock:
	uv pip compile -q --universal --python-version 3.11 --no-annotate --no-header --all-extras --no-emit-package torchattacks \
	  --overrides <(echo requests) -o requirements.lock pyproject.toml

# Takes away all that was made, but for results.
clean:
	rm -rf $(VENV) .dvc/cache .dvc/tmp
	for root in . presets/*; do (cd $$root/data && rm -rf attacks checkpoints executed margins models prepared times trees zero_shot); done
	rm -rf .pytest_cache .ruff_cache .hypothesis lib/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock requirements-peers.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python >= 3.11 is needed; this is %d.%d. Try make PYTHON=python3.11" % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned packages into $(VENV): some minutes, a line for each"
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -r requirements.lock \
	  | awk '/^(Collecting|Processing) /{print $$1, $$2; fflush()} /^Installing coll/{print "unpacking them: some minutes without a word"; fflush()}'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-peers.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)
