# make demo      everything from set-up to a published data set, on this machine
# make test      everyday tests: all unit tests, and one story each through the workflow, the Hub, the API and a browser
# make test-all  all tests, also on Slurm if it is installed. DRAWS=N: N draws of each random kill; PATIENCE=N: N times the timeouts; MINUTES=N: after N minutes, start only unit tests
# make coverage  lines and branches of the package that tests/unit and tests/workflow reach
# make cluster   a Slurm cluster of three nodes on this machine, to try profiles/slurm (as root; stop it with cluster-stop)
# make profiles  link the profiles into your Snakemake configuration: snakemake --profile slurm
# make monitor   Panoptes, a web page that shows runs: on http://127.0.0.1:5000, until Ctrl-C. PORT=N: another port
# make serve     the REST API (docs/api.md): on http://127.0.0.1:8571, until Ctrl-C; runs continue. PROFILE=local: run on this machine
# All of them set up .venv first if they need it.
PYTHON ?= python3
PORT   ?= 5000
PROFILE ?= slurm
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LIMIT  := $(if $(MINUTES),--minutes $(MINUTES))
# The tests of a file share fixtures that take minutes. The slowest folders start first, to balance the processes.
PYTEST := $(BIN)/python -m pytest $(LIMIT) -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
LARGE  := tests/kubernetes tests/hub tests/workflow tests/api tests/browser
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-corpus test test-all coverage cluster cluster-stop profiles monitor serve lint clean

help:
	@sed -n '/^PYTHON/q; s/^# //p' Makefile
	@echo "make demo-corpus | lint | clean"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "speechmill needs Python 3.11 or newer; set PYTHON=python3.11")'
	@echo "== set up $(VENV): about 6 GB of packages, a few minutes the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[api]'
	@touch $@

# An extra of pyproject.toml, such as test.
$(STAMP)-%: $(STAMP)
	@echo "== set up $(VENV): packages for $*"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

demo-corpus: $(STAMP)
	@echo "== demo corpus: real speech, mixed, re-encoded and damaged"
	@$(BIN)/python demo/build.py

demo: demo-corpus
	@echo "== workflow: snakemake --profile profiles/local --config dataset=demo"
	@$(BIN)/snakemake --profile profiles/local --config dataset=demo
	@$(BIN)/speechmill summary results/demo

test: demo-corpus $(STAMP)-test
	@$(PYTEST) -m everyday $(LARGE) tests/unit

test-all: demo-corpus $(STAMP)-test
	@echo "== all tests; those of Slurm, which mostly wait, run in parallel and are printed last"
	@log=$$(mktemp); $(BIN)/python -m pytest $(LIMIT) tests/slurm >"$$log" 2>&1 & slurm=$$!; \
	$(PYTEST) $(LARGE) tests/unit; status=$$?; \
	wait $$slurm || status=1; cat "$$log"; rm "$$log"; exit $$status

coverage: demo-corpus $(STAMP)-test
	@$(PYTEST) --cov --cov-report=term:skip-covered tests/workflow tests/unit

cluster: demo-corpus
	@$(BIN)/python -m tests.slurm.cluster start
	@echo "try it:"
	@echo "  export SPEECHMILL_SLURM_ACCOUNT=speech SPEECHMILL_SLURM_CPU_PARTITION=cpu SPEECHMILL_SLURM_GPU_PARTITION=gpu"
	@echo "  $(BIN)/speechmill run demo --config device=cpu outdir=results-slurm 'cluster={memory_per_worker: 3G}' -- --set-threads enhance=1 score=1 --slurm-init-seconds-before-status-checks 5"
	@echo "  squeue; $(BIN)/speechmill status results-slurm/demo"

cluster-stop:
	@$(PYTHON) -m tests.slurm.cluster stop

# Never replaces a profile of the user.
profiles:
	@home="$${XDG_CONFIG_HOME:-$$HOME/.config}/snakemake"; mkdir -p "$$home"; for profile in profiles/*/; do \
	  name=$$(basename $$profile); link="$$home/$$name"; want="$$PWD/profiles/$$name"; \
	  if [ "$$(readlink "$$link")" = "$$want" ]; then continue; fi; \
	  if [ -e "$$link" ] || [ -L "$$link" ]; then echo "$$link is your own profile: not replaced; use --profile profiles/$$name" >&2; status=1; \
	  else ln -s "$$want" "$$link" && echo "$$link -> $$want"; fi; done; exit $${status:-0}

# Panoptes has no authentication, so it listens only on this machine.
monitor: $(STAMP)-monitor
	@mkdir -p results
	@echo "== Panoptes on http://127.0.0.1:$(PORT), with its data base in results/panoptes.db. To show runs there:"
	@echo "  export SPEECHMILL_PANOPTES=http://127.0.0.1:$(PORT)"
	@PANOPTES_DB_URL='sqlite:///results/panoptes.db?check_same_thread=False' exec $(BIN)/panoptes --ip 127.0.0.1 --port $(PORT)

# The API accepts no request without a token, so the first start creates one and prints it once.
serve: $(STAMP)
	@test -e "$${XDG_STATE_HOME:-$$HOME/.local/state}/speechmill/tokens" || \
	  { token=$$($(BIN)/speechmill serve --new-token me --scopes read,trigger) && echo "== your token, printed only once: $$token"; }
	@exec $(BIN)/speechmill serve --profile $(PROFILE)

lint: $(STAMP)-lint
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/snakefmt --check Snakefile rules && $(BIN)/mypy && $(BIN)/lint-imports --no-cache && $(BIN)/snakemake --lint

clean:
	rm -rf results demo/corpus demo/truth.tsv .snakemake
