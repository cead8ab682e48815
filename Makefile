# make demo      everything from set-up to a published data set, on this machine
# make test      everything that is tested; the cluster's part where Slurm is installed. MINUTES=N: after that begin unit tests alone
# make test-api  what the REST API does with larger runs than the two of make test: 10 minutes more
# make cluster   a Slurm cluster of three nodes on this machine, to try profiles/slurm (as root; cluster-stop ends it)
# make profiles  link the profiles into your Snakemake configuration: snakemake --profile slurm
# make monitor   Panoptes, a web page that shows runs: on http://127.0.0.1:5000, until Ctrl-C. PORT=N: elsewhere
# make serve     the REST API (docs/api.md): on http://127.0.0.1:8571, until Ctrl-C; runs go on. PROFILE=local: on this machine
# They set up .venv first where they need it.
PYTHON ?= python3
PORT   ?= 5000
PROFILE ?= slurm
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LIMIT  := $(if $(MINUTES),--minutes $(MINUTES))
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-corpus test test-api cluster cluster-stop profiles monitor serve lint clean

help:
	@sed -n 's/^# //p' Makefile | head -7
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
	@echo "== tests; those of the cluster, which mostly wait for it, run beside all others and are shown after them"
	@log=$$(mktemp); $(BIN)/python -m pytest $(LIMIT) -m "not runs" tests/slurm >"$$log" 2>&1 & slurm=$$!; \
	$(BIN)/python -m pytest $(LIMIT) -m "not runs" tests/unit tests/hub tests/browser tests/workflow tests/kubernetes tests/api; status=$$?; \
	wait $$slurm || status=1; cat "$$log"; rm "$$log"; exit $$status

test-api: $(STAMP)
	@$(BIN)/python -m pytest -m runs tests/api tests/slurm/test_api.py

cluster: demo-corpus
	@$(BIN)/python tests/slurm/cluster.py start
	@echo "try it:"
	@echo "  export SPEECHMILL_SLURM_ACCOUNT=speech SPEECHMILL_SLURM_CPU_PARTITION=cpu SPEECHMILL_SLURM_GPU_PARTITION=gpu"
	@echo "  $(BIN)/speechmill run demo --config device=cpu outdir=results-slurm 'cluster={memory_per_worker: 3G}' -- --set-threads enhance=1 score=1 --slurm-init-seconds-before-status-checks 5"
	@echo "  squeue; $(BIN)/speechmill status results-slurm/demo"

cluster-stop:
	@$(PYTHON) tests/slurm/cluster.py stop

# The user's own profile of that name is never replaced.
profiles:
	@home="$${XDG_CONFIG_HOME:-$$HOME/.config}/snakemake"; mkdir -p "$$home"; for profile in profiles/*/; do \
	  name=$$(basename $$profile); link="$$home/$$name"; want="$$PWD/profiles/$$name"; \
	  if [ "$$(readlink "$$link")" = "$$want" ]; then continue; fi; \
	  if [ -e "$$link" ] || [ -L "$$link" ]; then echo "$$link is yours: not replaced; say --profile profiles/$$name" >&2; status=1; \
	  else ln -s "$$want" "$$link" && echo "$$link -> $$want"; fi; done; exit $${status:-0}

# It knows no passwords: nobody but this machine may reach it.
monitor: $(STAMP)
	@mkdir -p results
	@echo "== Panoptes on http://127.0.0.1:$(PORT), with its data base in results/panoptes.db. For runs to be shown there:"
	@echo "  export SPEECHMILL_PANOPTES=http://127.0.0.1:$(PORT)"
	@PANOPTES_DB_URL='sqlite:///results/panoptes.db?check_same_thread=False' exec $(BIN)/panoptes --ip 127.0.0.1 --port $(PORT)

# Without a token nobody is let in: the first one is made here, and shown this once.
serve: $(STAMP)
	@test -e "$${XDG_STATE_HOME:-$$HOME/.local/state}/speechmill/tokens" || \
	  { token=$$($(BIN)/speechmill serve --new-token me --scopes read,trigger) && echo "== your token, shown this once: $$token"; }
	@exec $(BIN)/speechmill serve --profile $(PROFILE)

lint: $(STAMP)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/snakefmt --check Snakefile rules && $(BIN)/mypy && $(BIN)/snakemake --lint

clean:
	rm -rf results demo/corpus demo/truth.tsv .snakemake
