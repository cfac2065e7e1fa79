# make run · make demo · make test · make check · make clients · make bench…: each sets up what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CODE := gateway tests benchmarks

# Real clients against the gateway, in an environment of their own: .venv-clients and tests/clients/node_modules.
CLIENTS := .venv-clients

# What needs schemathesis, in an environment of its own: it brings twenty packages.
FUZZ := .venv-fuzz
PROPERTIES := tests/wire tests/config tests/api tests/dialects tests/faults tests/test_log.py

# Other gateways, to be measured beside ours; in an environment of their own.
PEERS := .venv-peers

.PHONY: run demo test check coverage simulate clients clients-slow clients-ready fuzz fuzz-quick fuzz-frontdoor lint bench bench-peers bench-stalls bench-start \
	bench-instructions bench-parts bench-line bench-policy bench-overload soak bench-cancellations bench-rolling compatibility format schema clean

run: $(VENV)/.core
	$(BIN)/ollama-gateway serve $(ARGS)

demo: $(VENV)/.core
	$(BIN)/ollama-gateway demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

check: lint test

# Every branch of two rooms, or status 2. Only tests that do the same each time: what others cover is luck.
coverage: $(VENV)/.dev
	$(BIN)/python -m coverage run -m pytest -q -m "not hypothesis and not drawn" tests/instances tests/upstream $(ARGS)
	$(BIN)/python -m coverage report

# Whole calls in virtual time: SCHEDULES of them, drawn anew each time, or the one of SEED, move by move.
SCHEDULES ?= 10000
simulate: $(VENV)/.dev
	$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--schedules $(SCHEDULES)) $(ARGS)

clients: clients-ready
	$(CLIENTS)/bin/python -m pytest tests/clients --confcutdir=tests/clients -m "not slow" $(ARGS)

clients-slow: clients-ready
	$(CLIENTS)/bin/python -m pytest tests/clients --confcutdir=tests/clients -m slow $(ARGS)

clients-ready: $(CLIENTS)/.ready tests/clients/node_modules/.ready

# Everything that is tried with made-up input, twenty times as long (half an hour); the public surface alone, for a minute.
fuzz: $(FUZZ)/.ready
	$(FUZZ)/bin/python -m pytest --hypothesis-profile=long tests/fuzz $(PROPERTIES) $(ARGS)

fuzz-quick: $(FUZZ)/.ready
	$(FUZZ)/bin/python -m pytest tests/fuzz $(ARGS)

# Nine thousand raw messages, read by us, h11, httptools and nginx (in the PATH or $$NGINX_PROGRAM); ARGS="40000 7" for more, other ones.
fuzz-frontdoor: $(VENV)/.dev
	$(BIN)/python -m tests.frontdoor.differences $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

# What a call and a frame cost, beside nginx (in the PATH or $$NGINX_PROGRAM): 5 minutes. ARGS="--only streams-200 --rounds 3"
# for some of it; ARGS=--help tells what there is.
bench: $(VENV)/.core
	$(BIN)/python -m benchmarks.hotpath $(ARGS)

# Instructions of a call and a frame, held to those recorded (valgrind): half a minute.
bench-instructions: $(VENV)/.core
	$(BIN)/python -m benchmarks.hotpath.instructions $(ARGS)

# For how long the event loop is held by a scrape, a reload, a 20 MB body, 10,000 waiting calls...: a minute.
bench-stalls: $(VENV)/.core
	$(BIN)/python -m benchmarks.hotpath.stalls $(ARGS)

# From the start to the first call served, and the memory then: a quarter of a minute.
bench-start: $(VENV)/.core
	$(BIN)/python -m benchmarks.hotpath.start $(ARGS)

# The pure parts by themselves: microseconds, and that ten times as much takes no more than fifteen times as long.
bench-parts: $(VENV)/.dev
	$(BIN)/python -m pytest benchmarks/parts.py --benchmark-columns=min,median,iqr --benchmark-sort=name $(ARGS)

# The same for LiteLLM, from PyPI, and for others: ARGS='--peer "name=program --port {port} --upstream {url}"'. 2 minutes.
bench-peers: $(VENV)/.core $(PEERS)/.ready
	$(BIN)/python -m benchmarks.hotpath.peers --litellm $(PEERS)/bin/litellm $(ARGS)

# The line: what a decision costs, its order against others (4 minutes; ARGS=--write for docs/line.md), ten times too many
# calls for a minute.
bench-line: $(VENV)/.core
	$(BIN)/python -m benchmarks.decisions

bench-policy: $(VENV)/.core
	$(BIN)/python -m benchmarks.policy $(ARGS)

bench-overload: $(VENV)/.core
	$(BIN)/python -m benchmarks.overload

# Endurance (docs/reliability.md): mixed traffic and troubles for MINUTES, COUNT clients that hang up in every window (9
# minutes), RESTARTS of three gateways behind HAProxy under load (9 minutes).
soak: $(VENV)/.core
	MINUTES=$(MINUTES) $(BIN)/python -m benchmarks.soak

bench-cancellations: $(VENV)/.core
	COUNT=$(COUNT) NOTICED_MS=$(NOTICED_MS) $(BIN)/python -m benchmarks.cancellations

bench-rolling: $(VENV)/.core
	RESTARTS=$(RESTARTS) $(BIN)/python -m benchmarks.rolling

compatibility: $(VENV)/.dev
	$(BIN)/python -m tests.conformance.page

format: $(VENV)/.dev
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

schema: $(VENV)/.dev
	$(BIN)/python -c "import json; from gateway.config import json_schema; print(json.dumps(json_schema(), indent=2))" > gateway/routes.schema.json

clean:
	rm -rf $(VENV) $(CLIENTS) $(FUZZ) $(PEERS) tests/clients/node_modules

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'Python 3.11 or newer is needed, this is ' + sys.version.split()[0] + '. Try: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.core

$(CLIENTS)/.ready: pyproject.toml
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[clients]'
	@touch $@

$(FUZZ)/.ready: pyproject.toml
	$(PYTHON) -m venv $(FUZZ)
	$(FUZZ)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@touch $@

$(PEERS)/.ready:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check 'litellm[proxy]'
	@touch $@

tests/clients/node_modules/.ready: tests/clients/package-lock.json
	npm ci --prefix tests/clients --silent --no-audit --no-fund
	@touch $@
