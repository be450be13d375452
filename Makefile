# keepfit_nb: every target says what it does, works alone, and works again.
SHELL   := /bin/bash
PYTHON  ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN     := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
.DEFAULT_GOAL := help
.PHONY: help install run real test test-slow study docs lab clean export

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: .venv/.installed  ## make .venv with everything, the package editable, kernel python3, git hooks
.venv/.installed: settings.ini setup.py pyproject.toml
	@echo "== install: .venv from $(PYTHON), about 6 GB and three minutes the first time"
	@test -n "$(PYTHON)" || { echo "no Python found; install Python 3.11 or later" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e '.[dev]'
	$(BIN)/python -m ipykernel install --prefix .venv --name python3 --display-name python3 >/dev/null
	@if git rev-parse --git-dir >/dev/null 2>&1; then $(BIN)/nbdev-install-hooks >/dev/null && $(BIN)/pre-commit install >/dev/null \
	  && echo "git hooks: nbdev (clean notebooks, readable merges) and pre-commit"; fi
	@touch $@ && echo "installed"

run: install  ## train KeepFIT on simulated eyes and evaluate it (about 13 minutes on 2 cores); says where the report lies
	$(BIN)/keepfit-nb run --profile demo --run-dir runs/demo

real: install  ## the same chain on real images: $$KEEPFIT_REAL, or the sources of --set (see README)
	$(BIN)/keepfit-nb run --profile real --run-dir runs/real

test: install  ## every test a change must pass (≤ 25 minutes on 2 cores)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu" --durations=15

test-slow: install  ## the heavy tests: all chapters as one chain, killed processes, the wheel elsewhere, the docs
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow and not gpu" --durations=15

study: install  ## measurements that need more time than a demo; resumable; into benchmarks/results/study.json
	$(BIN)/python benchmarks/study.py

docs: install  ## README.md from nbs/index.ipynb, HTML of all chapters into _docs/
	$(BIN)/python nbs/make_docs.py

lab: install  ## JupyterLab at the first page
	$(BIN)/jupyter lab --ip=127.0.0.1 --notebook-dir=. $(if $(filter 0,$(shell id -u)),--allow-root) nbs/index.ipynb

export: install  ## notebooks to keepfit_nb/*.py, cleaned
	$(BIN)/nbdev-export && $(BIN)/nbdev-clean

clean:  ## remove what can be made again (not runs/)
	rm -rf _docs build dist *.egg-info .pytest_cache .benchmarks .hypothesis
