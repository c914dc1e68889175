# All that CI does is one of these targets. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
PYTHON ?= python3
VENV := .venv
REQUIREMENTS := tests/e2e/requirements.txt
NODE_CLIENTS := tests/clients/js
GO_CLIENTS := tests/clients/go
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
# `make run RUN_ARGUMENTS="--dev --listen 127.0.0.1:9000"`
RUN_ARGUMENTS ?= --dev
# How long `make fuzz` tries each target; which ones: `make fuzz SECONDS=600 TARGET="bodies recovery"`.
SECONDS := 600
TARGET ?=
# More for pytest: `make e2e E2E_ARGUMENTS="-k kill"`.
E2E_ARGUMENTS ?=
# How many end-to-end tests run at once: most of their time they wait for brokers, engines and kills.
E2E_WORKERS ?= 3
# How long `make torture` takes, in seconds, and more for it.
BUDGET ?= 600
TORTURE_ARGUMENTS ?=
POWER_ARGUMENTS ?=
# More for the proofs of overload: `make overload-outage OVERLOAD_ARGUMENTS="--outage 60"`.
OVERLOAD_ARGUMENTS ?=
GRID_ARGUMENTS ?=
# What `make bench-replay` measures.
REPLAY_ARGUMENTS ?=

.PHONY: help run test unit e2e torture power grid incident whole-path demo-two-sinks demo-roles overload-outage overload-refusal overload-fleet bugs bugs-all fuzz fuzz-quick fuzz-minimise venv clients lint fmt clippy doc deny deny-install bench bench-criterion bench-e2e bench-replay dist image image-steps build-needs test-needs

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 18

# The quick profile: it is built in a fraction of a release's time and shared with `make test`.
run: build-needs ## Build and start `ingestd --dev` on this machine
	$(CARGO) build --workspace --locked --bins
	exec $(TARGET_DIR)/debug/ingestd $(RUN_ARGUMENTS)

test: unit e2e ## All tests: the workspace's own, then the real programs end to end

unit: build-needs venv ## The workspace's own tests
	CARGO=$(CARGO) scripts/unit.sh

e2e: build-needs venv clients ## The real programs, with other people's clients and readers
	$(CARGO) build --workspace --locked --bins
	$(CARGO) build -p tidegate-ingest --features faults --bin ingestd-faults --locked
	scripts/e2e.sh $(VENV)/bin/python -n $(E2E_WORKERS) --dist worksteal $(E2E_ARGUMENTS)

# More for it: `make torture BUDGET=60 TORTURE_ARGUMENTS="--only points,wire --jobs 4 --seed 7"`.
torture: build-needs venv ## Kill, pause and starve real servers for BUDGET seconds (600); says what was lost
	$(CARGO) build --workspace --locked --bins
	$(CARGO) build -p tidegate-ingest --features faults --bin ingestd-faults --locked
	cd tests && ../$(VENV)/bin/python -m torture --budget $(BUDGET) $(TORTURE_ARGUMENTS)

# More for it: `make power BUDGET=300 POWER_ARGUMENTS="--what power --jobs 2"`. Needs root and loop devices.
power: build-needs venv ## Cut the power of real file systems under real servers for BUDGET seconds (600)
	$(CARGO) build --workspace --locked --bins
	cd tests && ../$(VENV)/bin/python -m torture.power --budget $(BUDGET) $(POWER_ARGUMENTS)

# `make grid GRID_ARGUMENTS="--keep tallies.jsonl"` also keeps what was counted; `--from FILE…` only adds up.
grid: build-needs venv ## All tests and sweeps (BUDGET seconds, 600), then which fault was survived how often
	$(CARGO) build -p tidegate-ingest --features faults --bin ingestd-faults --locked
	KILLS=50 KILLS_BETWEEN_INTENT_AND_CURSOR=10 CLICKHOUSE_KILLS=30 ELASTICSEARCH_KILLS=25 ELASTICSEARCH_TURNS=4 KAFKA_SINK_KILLS=20 \
	KAFKA_SINK_TURNS=5 KAFKA_LOG_KILLS=8 S3_KILLS=20 KAFKA_ZOMBIES=3 JOINS_SECONDS=25 OUTAGE_FACTOR=60 LAKE_OUTAGE_SECONDS=30 $(VENV)/bin/python tests/torture/grid.py --budget $(BUDGET) $(GRID_ARGUMENTS)

demo-two-sinks: build-needs venv ## A healthy sink beside one that answers 503: two rows, asserted
	$(CARGO) build --workspace --locked --bins
	cd tests && ../$(VENV)/bin/python -m overload.two_sinks $(OVERLOAD_ARGUMENTS)

# `make demo-roles OVERLOAD_ARGUMENTS="--rounds 3 --only rolling --log kafka"`
demo-roles: build-needs venv ## Two edges, normalizers, writers restarted and killed under load: the figures
	$(CARGO) build --workspace --locked --bins
	cd tests && ../$(VENV)/bin/python -m roles.rolling $(OVERLOAD_ARGUMENTS)

whole-path: build-needs venv ## 200 MB of NDJSON through Kafka into ClickHouse and S3, compared value by value
	$(CARGO) build --workspace --locked --bins
	cd tests/e2e && WHOLE_PATH_MEGABYTES=200 ../../$(VENV)/bin/python -m pytest -s test_whole_path.py

incident: build-needs venv ## A wrong schema over ten million events, from the mended schema to promoted: the transcript
	$(CARGO) build --release --locked --bins
	cd tests/e2e && INCIDENT_EVENTS=10000000 TIDEGATE_BIN_DIR=$(abspath $(TARGET_DIR))/release ../../$(VENV)/bin/python -m pytest -s test_recipes.py -k whole_load

# With `--outage 300 --backlog 4GiB` and more, see its --help. Needs root for the cgroup.
overload-outage: build-needs venv ## No sink for 5 minutes at full load, in a cgroup of the budget and 20 %
	$(CARGO) build --release --locked --bins
	cd tests && TIDEGATE_BIN_DIR=$(abspath $(TARGET_DIR))/release ../$(VENV)/bin/python -m overload.outage $(OVERLOAD_ARGUMENTS)

overload-refusal: build-needs venv ## What a refusal costs in CPU: at most 20 µs
	$(CARGO) build --release --locked --bins
	cd tests && TIDEGATE_BIN_DIR=$(abspath $(TARGET_DIR))/release ../$(VENV)/bin/python -m overload.refusal $(OVERLOAD_ARGUMENTS)

overload-fleet: build-needs venv ## A quota over two edges: Redis there, Redis away
	scripts/need.sh redis
	$(CARGO) build --release --locked --bins
	cd tests && TIDEGATE_BIN_DIR=$(abspath $(TARGET_DIR))/release ../$(VENV)/bin/python -m overload.fleet $(OVERLOAD_ARGUMENTS)

bugs: build-needs venv ## Plant each known bug and run the test that must catch it
	$(VENV)/bin/python tests/torture/bugs.py --quick

bugs-all: build-needs venv ## Plant each known bug and run every layer of the tests against it: an hour or more
	$(VENV)/bin/python tests/torture/bugs.py

fuzz: build-needs ## Hostile input for every decoder: SECONDS=600 for each TARGET (all)
	scripts/fuzz.sh $(SECONDS) $(TARGET)

fuzz-quick: build-needs ## The same for a few seconds each, after the committed corpora
	scripts/fuzz.sh 6 $(TARGET)

fuzz-minimise: build-needs ## Take what fuzzing found into the committed corpora, no more than is needed
	scripts/fuzz.sh minimise $(TARGET)

venv: test-needs $(VENV)/.made ## Python's side of the tests, pinned, in .venv

clients: test-needs $(NODE_CLIENTS)/node_modules/.made $(GO_CLIENTS)/bin/.made ## Public clients in other languages that the tests send with, pinned

# As the lock file says, which `npm ci` would refuse for optional packages of other systems. No package runs a script of its own.
$(NODE_CLIENTS)/node_modules/.made: $(NODE_CLIENTS)/package-lock.json
	cd $(NODE_CLIENTS) && npm install --no-save --silent --ignore-scripts
	touch $@

# The OpenTelemetry Collector with what the tests need of it, and telemetrygen.
$(GO_CLIENTS)/bin/.made: $(GO_CLIENTS)/go.sum $(GO_CLIENTS)/collector/main.go
	cd $(GO_CLIENTS) && go build -o bin/ ./collector tool
	touch $@

$(VENV)/.made: $(REQUIREMENTS)
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --requirement $(REQUIREMENTS)
	touch $@

lint: fmt clippy doc deny ## Formatting, clippy, documentation, dependency policy

fmt:
	$(CARGO) fmt --all --check

clippy: build-needs
	$(CARGO) clippy --workspace --all-targets --locked -- --deny warnings

doc: build-needs
	RUSTDOCFLAGS="--deny warnings" $(CARGO) doc --workspace --no-deps --locked

deny: ## Licences, banned crates and sources of dependencies
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		$(CARGO) fetch --locked --quiet && $(CARGO) deny --offline check bans licenses sources; \
	else \
		echo "SKIPPED: make deny: cargo-deny is not installed (make deny-install)"; \
	fi

deny-install: build-needs ## Install cargo-deny, about four CPU minutes
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny@0.20.2

bench: bench-criterion bench-e2e ## The hot pieces, then the whole pipeline

bench-criterion: build-needs
	$(CARGO) bench --workspace --locked

bench-e2e: build-needs venv clients ## `ingestctl load` against a release `ingestd`
	$(CARGO) build --release --locked --bins
	$(VENV)/bin/python bench/run.py

# `make bench-replay REPLAY_ARGUMENTS="--gigabytes 10 --rounds 3"` wants the machine for itself and 30 GB of its disk.
bench-replay: build-needs venv ## How fast a window replays, beside how fast it came in
	$(CARGO) build --release --locked --bins
	$(VENV)/bin/python bench/replay.py $(REPLAY_ARGUMENTS)

dist: build-needs ## The release archive for this platform
	$(CARGO) build --release --locked --bins
	scripts/dist.sh

image: ## The container image, where an engine runs
	docker build --file deploy/Dockerfile --tag tidegate:$$(scripts/version.sh) .

image-steps: ## The Dockerfile's steps in a temporary folder, without an engine
	scripts/image-steps.sh

build-needs:
	@scripts/need.sh build

test-needs:
	@scripts/need.sh test
