# The commands of this project. Each sets up what it needs, in .venv; nothing has to be activated.

PYTHON ?= python3
# The peers of the bench have wheels for CPython 3.11 and 3.12.
BENCH_PYTHON ?= $(shell python3.11 -c "print('python3.11')" 2>/dev/null || echo $(PYTHON))
BENCH ?=
MODEL ?=

BIN := .venv/bin

.PHONY: help machine services demo test fuzz soak chaos chaos-cluster check docs bench bench-bus bench-stages bench-long bench-http model clean

help:
	@echo "make machine     install what the tests and benches need besides Python (Debian, as root)"
	@echo "make services    install the servers that the connectors' tests talk to, and start each once (Debian, as root)"
	@echo "make demo        run examples/syslog.yaml, feed it 1,000 messages, show what comes out"
	@echo "make test        run the tests"
	@echo "make fuzz        5,000 random flows of each kind against the reference interpreter, and hostile frames; ten minutes"
	@echo "make soak        100,000 HTTP requests, dropped, failed and abandoned; nothing may be left behind"
	@echo "make chaos       kill -9 a flow with a durable queue a hundred times; nothing acknowledged may be lost"
	@echo "make chaos-cluster  200,000 events through three stages while workers, servers, links and a disk fail; twenty minutes"
	@echo "make check       ruff, mypy and import-linter"
	@echo "make docs        write docs/modules.md, check the links of all pages, and run their code"
	@echo "make bench       compare furcula with loops by hand and with other libraries (BENCH='--rows loop' for some)"
	@echo "make bench-bus   the part of it about the bus and the transports"
	@echo "make bench-stages  routes between processes, over 0mq and over JetStream, against nats-py and a queue in one process"
	@echo "make bench-long  the same, and 20 million events to see that memory does not grow"
	@echo "make bench-http  compare http.listen with a bare ASGI application, Starlette and FastAPI; needs wrk"
	@echo "make model       what 1 to 256 workers of a stage would do: measured, predicted, and how far that is off"
	@echo "make clean       remove what these commands have made"

machine:
	@scripts/machine.sh

services: .venv/.with-test
	@scripts/services
	@scripts/services check

demo: .venv/.with-all
	@$(BIN)/python scripts/demo.py

test: .venv/.with-test
	$(BIN)/python -m pytest -n 2 $(PYTEST)

fuzz: .venv/.with-test
	FURCULA_EXAMPLES=5000 $(BIN)/python -m pytest -n 2 --timeout 3600 tests/engine/test_random_flows.py \
	  tests/transports/test_zmq_hub.py tests/bus/test_messages.py
	FURCULA_EXAMPLES=300 $(BIN)/python -m pytest -n 2 --timeout 3600 tests/workers/test_stages.py

soak: .venv/.with-test
	FURCULA_REQUESTS=100000 $(BIN)/python -m pytest --timeout 1800 tests/modules/http/test_life.py

chaos: .venv/.with-test
	FURCULA_KILLS=100 $(BIN)/python -m pytest -n 2 --timeout 1800 tests/engine/test_durable_kill.py

chaos-cluster: .venv/.with-test
	FURCULA_CHAOS=$${FURCULA_CHAOS:-200000} $(BIN)/python -m pytest -s --timeout 1800 tests/cluster/test_chaos.py

check: .venv/.with-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.with-test
	$(BIN)/python scripts/modules_page.py
	$(BIN)/python scripts/links.py
	$(BIN)/python -m pytest tests/test_documents.py

bench: .venv-bench/.with-bench
	.venv-bench/bin/python -m bench $(BENCH)
	$(if $(BENCH),,.venv-bench/bin/python -m bench.bus)

bench-bus: .venv-bench/.with-bench
	.venv-bench/bin/python -m bench.bus $(BENCH)

bench-stages: .venv-bench/.with-bench
	.venv-bench/bin/python -m bench.stages $(BENCH)

bench-long: .venv-bench/.with-bench
	.venv-bench/bin/python -m bench --long $(BENCH)

bench-http: .venv-bench/.with-bench
	.venv-bench/bin/python -m bench.http $(BENCH)

model: .venv-bench/.with-bench
	.venv-bench/bin/python -m bench.model $(MODEL)

clean:
	rm -rf .venv .venv-bench out dist build .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# .venv/.with-test: an environment in .venv has furcula and its extra `test`, as pyproject.toml says now.
.venv/.with-%: pyproject.toml
	@$(call need_3_11,$(PYTHON))
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing furcula[$*] into .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

# The bench has an environment of its own: what the peers need is no business of ours.
.venv-bench/.with-bench: pyproject.toml
	@$(call need_3_11,$(BENCH_PYTHON))
	@test -x .venv-bench/bin/python || $(BENCH_PYTHON) -m venv .venv-bench
	@echo "installing furcula[bench] into .venv-bench"
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

need_3_11 = $(1) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "furcula needs Python 3.11 or later, and $(1) is $$($(1) --version 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; \
	exit 1; }
