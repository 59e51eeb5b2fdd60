# make run    start the gateway on this machine, with nothing to configure
# make test   the whole suite; SYSTEMMANAGER_TEST_REQUIRE=ssh,docker,mcp makes a skip a failure
# make attacks  the hostile catalogue, and its table      make score-logs  faults made live, and what is said of their logs
# make check  format, lint and types       make bench   speed, as ratios      make tokens   sizes of schemas and answers
# make install, rollback, uninstall   the gateway as a system service of this machine; PREFIX=/opt/systemmanager
# make docs   renew the README's tables      make lock    renew requirements.lock      make clean   remove the environment

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
PREFIX ?= /opt/systemmanager
COMPILE = $(VENV)/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --no-header --no-annotate

.PHONY: run test attacks score-logs check bench tokens docs lock clean install rollback uninstall

run: $(READY)
	@exec $(BIN)/systemmanager serve --announce

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope

attacks: $(READY)
	$(BIN)/python -m tests.attacks

score-logs: $(READY)
	$(BIN)/python -m tests.real.faults

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m tests.benchmarks

tokens: $(READY)
	$(BIN)/python -m tests.benchmarks.tokens

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "SystemManager needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "No venv here; on Debian: apt install python3-venv"; exit 1; }
	@echo "Installing the locked versions into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

docs: $(READY)
	$(BIN)/python -m tests.documentation

lock: $(READY)
	$(BIN)/python -m venv $(VENV)/lock && $(VENV)/lock/bin/pip install --quiet uv
	$(COMPILE) --upgrade --all-extras pyproject.toml -o requirements.lock
	$(COMPILE) -c requirements.lock pyproject.toml -o $(VENV)/lock/runtime
	$(BIN)/python nix/lock.py requirements.lock $(VENV)/lock/runtime

install rollback uninstall:
	@PYTHON=$(PYTHON) ./install.sh $@ $(PREFIX)

clean:
	rm -rf $(VENV)
