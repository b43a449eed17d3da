# Everything runs in .venv. The system's Python only makes it; nothing is installed outside.
PYTHON ?= python3
#: Processes for the unit tests. Tests that start a farm always run one after the other.
WORKERS ?= 2

#: Farms that `make chaos` plays, and the seed of the first.
SEEDS ?= 10000
FROM ?= 0
#: Corpora of stills that `make stills-corpus` decodes.
CORPORA ?= 1

#: Seconds that `make bench-gpu` may take, on an H200.
BUDGET ?= 420
#: Seeds of `make chaos-real`, and faults of each.
SEED ?= 1
#: Requests of each kind that `make schemathesis` sends to each route.
EXAMPLES ?= 200
FAULTS ?= 60

VENV := .venv
BIN := $(VENV)/bin
DEMO := out/demo
DEMO_HOME := out/demo-home

# Stamps say what is installed; they go stale when pyproject.toml or constraints.txt change.
TOOLS := $(VENV)/.stamp-tools
BASE := $(VENV)/.stamp-base
DEV := $(VENV)/.stamp-dev

# uv does in seconds what takes pip a minute; it does not read PIP_FIND_LINKS by itself. Compiled, because a farm starts
# a dozen Python processes, and each would compile Ray anew where bytecode is not written: three times the start.
UV_INSTALL = UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" UV_PYTHON_DOWNLOADS=never \
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# `make -j test` must not start two farms at once.
.NOTPARALLEL:
.PHONY: help demo test unit integration slow lint chaos chaos-real corpus schemathesis stills-corpus bench bench-gpu install clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(BASE) ## Turn the eight example stills into clips, without a GPU and without weights
	CLIPMILL_HOME=$(DEMO_HOME) $(BIN)/clipmill render examples/catalog/catalog.csv --model camera --out $(DEMO)
	@echo
	@echo "Open $(CURDIR)/$(DEMO)/index.html in a browser. The farm's own state lies in $(DEMO_HOME)."

test: unit integration ## Run all tests

unit: $(DEV) ## Run the unit tests, in parallel
	$(BIN)/pytest -q tests/unit -n $(WORKERS) --dist worksteal

integration: $(DEV) ## Run the tests that open browsers and databases, and then those that start farms, one after the other
	$(BIN)/pytest -q tests/integration -m "not farm" -n $(WORKERS) --dist loadfile
	$(BIN)/pytest -q tests/integration tests/acceptance -m farm

slow: $(DEV) ## Run the unit tests that take long, some of which `make test` leaves out
	CLIPMILL_SLOW_TESTS=1 $(BIN)/pytest -q -n $(WORKERS) --dist worksteal \
		tests/unit/pipeline/models/hooks/test_compiling.py tests/unit/pipeline/models/test_whole_clip_on_a_card.py \
		tests/unit/cluster/store/test_table.py

lint: $(DEV) ## Check style, types and the walls between the three floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

chaos: $(DEV) ## Play SEEDS farms with faults in virtual time, from seed FROM on, and check what must hold
	OMP_NUM_THREADS=1 $(BIN)/python -m cluster.simulation --seed $(FROM) --count $(SEEDS) --processes $(WORKERS)

corpus: $(DEV) ## Give hostile pictures, manifests and requests, made from seed FROM on, to ingest and API
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.corpus $(FROM)

schemathesis: $(DEV) ## Send EXAMPLES requests of each kind to every route, made from the OpenAPI document by SEED, with every check
	OMP_NUM_THREADS=1 SEED=$(SEED) EXAMPLES=$(EXAMPLES) $(BIN)/python -m tests.schemathesis_run

stills-corpus: $(DEV) ## Decode CORPORA corpora of some 750 stills, from seed FROM on, and compare every pixel with libvips
	$(BIN)/python benchmarks/stills_corpus.py --seed $(FROM) --seeds $(CORPORA) --check
chaos-real: $(DEV) ## Do FAULTS real faults to a real farm by SEED, on SQLite and PostgreSQL, and check what must hold
	env --default-signal=INT $(BIN)/python -m tests.chaos --seed $(SEED) --faults $(FAULTS)

bench: $(DEV) ## Run the benchmarks; figures are printed with the machine they were measured on
	$(BIN)/python benchmarks/footprints.py --check
	$(BIN)/python benchmarks/decode.py --check
	$(BIN)/python benchmarks/farm.py
	$(BIN)/python benchmarks/forecast.py --rounds 3 --check
	$(BIN)/python benchmarks/from_draft.py --rounds 1
	$(BIN)/python benchmarks/oom_grid.py --check
	$(BIN)/python benchmarks/kernels.py --check
	$(BIN)/python benchmarks/store.py --check
	$(BIN)/python benchmarks/scale.py --check
	$(BIN)/python benchmarks/polling.py --check
	$(BIN)/python benchmarks/feeds.py --check
	$(BIN)/python benchmarks/results_zip.py --keep --check
	$(BIN)/python benchmarks/api_load.py --check
	$(BIN)/python benchmarks/page.py --check
	$(BIN)/python benchmarks/marks.py --check

bench-gpu: $(DEV) ## What needs an NVIDIA GPU, in seven minutes: ceilings, memory, steps, clips, decoding, resuming
	$(BIN)/python benchmarks/gpu.py --budget $(BUDGET) --out out/bench-gpu --check

install: $(DEV) ## Install everything for working on clipmill into .venv

clean: ## Remove .venv, the tools' caches and what `make demo` made
	rm -rf $(VENV) $(DEMO) $(DEMO_HOME) dist
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find pipeline cluster serve tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(TOOLS):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "clipmill needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
		       "Name another: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments: apt install python3-venv (as root), then try again." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@touch $@

$(BASE): $(TOOLS) pyproject.toml constraints.txt
	$(UV_INSTALL) -e .
	@touch $@

$(DEV): $(TOOLS) pyproject.toml constraints.txt
	$(UV_INSTALL) -e '.[render,deliver,fidelity,postgres,s3,dev]'
	@touch $(BASE) $@
