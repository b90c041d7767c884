# PRESET=smoke (or another folder of presets/) makes repro, report, sweep, ablate, ladder, lab and verify work on that one's results.
SHELL := bash
PRESET ?= emoji
ROOT := $(if $(filter emoji,$(PRESET)),.,presets/$(PRESET))
ifeq ($(wildcard $(ROOT)/params.yaml),)
$(error no preset $(PRESET); known are emoji $(notdir $(patsubst %/,%,$(wildcard presets/*/))))
endif
PYTHON ?= python3
VENV := .venv
RUN := papermill --engine clean -k python3 --no-progress-bar --log-output
READY := $(VENV)/ready
# Commands are called by their names and found here, whatever the name of this folder holds that a shell would take apart.
export PATH := $(CURDIR)/$(VENV)/bin:$(value PATH)
# Of a hook that calls make: they name another folder's repository.
unexport GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
# glibc keeps the memory that tensors leave for the next ones: attacks take a tenth less time.
export MALLOC_MMAP_THRESHOLD_ := 1073741824
export MALLOC_TRIM_THRESHOLD_ := 4294967296

.PHONY: no-git help repro report test slow bench lint sweep ablate ladder lab verify lock clean

# What can be made, and what each of it is: this list.
help:
	@awk '/^# /{said = said " " substr($$0, 3); next} /^[a-z]+:/{sub(/:.*/, ""); printf "make %-7s%s\n", $$0, said} {said = ""}' Makefile
	@echo
	@echo 'PRESET=NAME, for repro, report, sweep, ablate, ladder, lab and verify: one of $(notdir $(patsubst %/,%,$(wildcard presets/*/)))'

# Presets have the pipeline as copies: DVC compares commits, and follows no link in one.

# The environment, then every result; it goes on where it was stopped.
repro: no-git
	@for copy in presets/*/dvc.yaml; do test ! -e "$$copy" || cmp -s dvc.yaml "$$copy" || cp dvc.yaml "$$copy"; done
	@cd $(ROOT) && dvc repro
	@hierclip readme
	@echo "results: $(ROOT)/data/results/table.md, figures beside it; make report$(if $(filter-out .,$(ROOT)), PRESET=$(PRESET)) puts all on a page"

# One page of all results, data/results/report.html: notebook 70 on what `make repro` left; it says what is missing.
report: $(READY)
	@mkdir -p $(ROOT)/data/executed
	@cd $(ROOT) && $(filter-out --log-output,$(RUN)) -p page True notebooks/70_report.ipynb data/executed/70_report-page.ipynb
	@cd $(ROOT) && jupyter nbconvert --config notebooks/nbconvert_config.py --output-dir data/results \
	  --output report.html data/executed/70_report-page.ipynb

# The environment, then the tests.
test: no-git
	@pytest

# What takes an hour: our suite against pyautoattack's, on the model that `make repro` trained.
slow: $(READY)
	@pytest -m slow -s

# Speed, memory and cost beside the peers' and the limit: one table, some 20 minutes, and benchmarks/results.md.
# It trains the default's base and TeCoA where they are missing. PARTS="pgd-10 matrix" measures some parts alone.
bench: no-git
	@dvc repro finetune@tecoa-0
	@python -m benchmarks $(PARTS)

# Style, types, and notebooks without outputs.
lint: $(READY)
	ruff check .
	ruff format --check .
	basedpyright
	nbstripout --verify notebooks/*.ipynb

# JupyterLab on the notebooks, which it saves without outputs: looking at one changes nothing. LAB= passes options on.
lab: $(READY)
	@HIERCLIP_ROOT="$$PWD/$(ROOT)" jupyter lab --notebook-dir=notebooks --config=notebooks/jupyter_server_config.py $(LAB)

# Learning rate and logit scale of every method, on validation images; the choice goes into params.yaml by hand.
sweep: no-git
	@cd $(ROOT) && dvc repro pretrain
	@cd $(ROOT) && $(RUN) notebooks/35_sweep.ipynb data/executed/35_sweep.ipynb

# What each part brings, three seeds each; then the report, which shows it.
ablate: no-git
	@cd $(ROOT) && dvc repro pretrain
	@cd $(ROOT) && $(RUN) notebooks/80_ablate.ipynb data/executed/80_ablate.ipynb
	@cd $(ROOT) && dvc repro
	@hierclip readme

# From TeCoA to the hierarchical loss, one change at a time, and its other knobs; then the report, which shows it.
ladder: no-git
	@cd $(ROOT) && dvc repro pretrain
	@cd $(ROOT) && $(RUN) -p name ladder -y 'tables: [ladder, knobs]' notebooks/80_ablate.ipynb data/executed/80_ladder.ipynb
	@cd $(ROOT) && dvc repro
	@hierclip readme

# What git does where it knows this folder, for one that it does not know, such as a downloaded archive's: DVC is told,
# and the records that came with the folder are kept for `make verify` before a run replaces them.
no-git: $(READY)
	@if test "$$(git ls-files dvc.yaml 2>/dev/null)"; then \
	  rm -rf data/committed presets/*/data/committed; \
	  ! grep -qs no_scm .dvc/config.local || dvc config --local --unset core.no_scm; \
	else \
	  grep -qs no_scm .dvc/config.local || dvc config --local core.no_scm true; \
	  for data in data presets/*/data; do \
	    if test -e "$$data/results/records" -a ! -e "$$data/committed" -a ! -e "$$data/attacks"; then \
	      rm -rf "$$data/.committed" && cp -R "$$data/results/records" "$$data/.committed" && mv "$$data/.committed" "$$data/committed"; \
	    fi; \
	  done; \
	fi

# The records just made against the committed ones.
verify: $(READY)
	@cd $(ROOT) && hierclip verify

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
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("Python 3.11, 3.12 or 3.13 is needed; this is %d.%d. Try make PYTHON=python3.11" % v); v > (3, 13) and sys.stderr.write("Python %d.%d is newer than 3.11 to 3.13, which are supported; should a package not install, try make PYTHON=python3.13\n" % v)'
	@$(PYTHON) -c 'import os, sys; bad = set(os.getcwd()) & set(":{}\"\\`$$\n"); bad and sys.exit("the path of this folder holds %s, which its environment or DVC cannot have; rename or move it: %r" % (" ".join(map(repr, sorted(bad))), os.getcwd()))'
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned packages into $(VENV): some minutes, a line for each"
	@set -o pipefail; $(VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar off -r requirements.lock \
	  | while read -r doing what rest; do \
	      case $$doing in Collecting|Processing) echo "$$doing $$what";; Installing) echo "unpacking them: some minutes without a word";; esac; \
	    done
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-peers.lock
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)
