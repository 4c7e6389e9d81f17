# The commands of developers and of the CI. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The tests generate a client of the HTTP API. The generator needs another typer than the command: it has its own environment.
GENERATOR := $(VENV)/openapi-python-client
# Options of pip when it makes an environment: make dev PIP_OPTIONS=--no-compile
PIP_OPTIONS ?=
# Arguments for a target that runs the program: make run ARGS="--port 9000"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help env dev run demo check docs audit format test bench test-docker acceptance clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Framefit needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python's venv module is missing (Debian: apt install python3-venv)"; exit 1; }

# constraints.txt pins versions, but not torch's build. pip chooses that: CUDA on Linux, unless an index with CPU builds is set.
$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q $(PIP_OPTIONS) -c constraints.txt -e .
	@touch $@

$(VENV)/.generator: | $(BIN)/python
	$(BIN)/python -m venv $(GENERATOR)
	$(GENERATOR)/bin/python -m pip install -q $(PIP_OPTIONS) openapi-python-client==0.29.1
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q $(PIP_OPTIONS) -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.run

env: $(VENV)/.run ## create the virtual environment
dev: $(VENV)/.dev $(VENV)/.generator ## create the virtual environment with the development tools

run: $(VENV)/.run ## start the service on 127.0.0.1:8000
	$(BIN)/framefit serve $(ARGS)

demo: $(VENV)/.run ## make a video, out.mp4, from a bundled photo
	$(BIN)/framefit generate app/assets/demo.jpg "the camera pans slowly to the right" -o out.mp4 $(ARGS)

check: $(VENV)/.dev docs ## run ruff, mypy --strict, the import rules and pip check, build the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pip check

# mkdocs-material prints an advertisement for its successor unless the variable is set.
docs: $(VENV)/.dev ## build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict -f .mkdocs.yml

audit: $(VENV)/.dev ## look for known vulnerabilities of the installed packages (PyPI's advisories)
	$(BIN)/python -m pip install -q pip-audit
	$(BIN)/pip-audit --skip-editable --progress-spinner off $(ARGS)

format: $(VENV)/.dev ## fix and format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Three test files at a time on two cores, one thread each: real decodes use a core, and tests of the whole service mostly wait.
test: $(VENV)/.dev $(VENV)/.generator ## run every test that needs neither a GPU nor a container engine
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

test-docker: $(VENV)/.dev ## build the image and test it in a container engine
	$(BIN)/python -m pytest tests/docker $(ARGS)

bench: $(VENV)/.dev ## compare decoding with diffusers' own settings; writes tests/bench/results/
	$(BIN)/python tests/bench/decode.py $(ARGS)

acceptance: $(VENV)/.dev ## run 200 jobs under injected faults (kills, locks, a full disk) and 200 on pretended cards, and look at every state of the page; writes tests/bench/results/ and build/page-states/
	$(BIN)/python tests/bench/faults.py $(ARGS)
	$(BIN)/python tests/bench/service_on_cards.py
	$(BIN)/python tests/acceptance/page_states.py

clean: ## remove the environment and caches, keep data/
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
