# make demo   everything from set-up to a published data set, on this machine
# make test   everything that is tested
# Both set up .venv first and are done at once where nothing is new.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-corpus test lint clean

help:
	@sed -n 's/^# //p' Makefile | head -3
	@echo "make demo-corpus | lint | clean"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "speechmill needs Python 3.11 or newer; set PYTHON=python3.11")'
	@echo "== set up $(VENV): about 6 GB of packages, a few minutes the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	@touch $@

demo-corpus: $(STAMP)
	@echo "== demo corpus: real speech, mixed, re-encoded and damaged"
	@$(BIN)/python demo/build.py

demo: demo-corpus
	@echo "== workflow: snakemake --profile profiles/local --config dataset=demo"
	@$(BIN)/snakemake --profile profiles/local --config dataset=demo
	@$(BIN)/speechmill summary results/demo

test: demo-corpus
	@echo "== tests"
	@$(BIN)/python -m pytest

lint: $(STAMP)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/snakefmt --check Snakefile rules && $(BIN)/mypy && $(BIN)/snakemake --lint

clean:
	rm -rf results demo/corpus demo/truth.tsv .snakemake
