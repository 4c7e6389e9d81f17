# Everything a person or the CI does with this repository. `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
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

# torch alone is pinned by constraints.txt and chosen by pip: the CUDA build on Linux, unless an index with CPU builds is set.
$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.run

env: $(VENV)/.run ## make the environment
dev: $(VENV)/.dev ## make the environment with the development tools

run: $(VENV)/.run ## start the service on 127.0.0.1:8000
	$(BIN)/framefit serve $(ARGS)

demo: $(VENV)/.run ## the main job in one command: a bundled photo becomes out.mp4
	$(BIN)/framefit generate app/assets/demo.jpg "the camera pans slowly to the right" -o out.mp4 $(ARGS)

check: $(VENV)/.dev docs ## ruff, mypy --strict, import rules, requirements that agree, the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pip check

# The theme would print an advertisement for its successor; the variable keeps it quiet.
docs: $(VENV)/.dev ## build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict -f .mkdocs.yml

audit: $(VENV)/.dev ## known vulnerabilities of what is installed (asks PyPI's advisories)
	$(BIN)/python -m pip install -q pip-audit
	$(BIN)/pip-audit --skip-editable --progress-spinner off $(ARGS)

format: $(VENV)/.dev ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Two files at a time, one thread each: real decodes use a core, and whole-service tests mostly wait.
test: $(VENV)/.dev ## every test that needs no GPU and no container engine
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-docker: $(VENV)/.dev ## build the image and run it in a container engine
	$(BIN)/python -m pytest tests/docker $(ARGS)

bench: $(VENV)/.dev ## decode beside diffusers' own ways; writes tests/bench/results/
	$(BIN)/python tests/bench/decode.py $(ARGS)

acceptance: $(VENV)/.dev ## kill, lock and fill everything while 200 jobs run; writes tests/bench/results/faults.md
	$(BIN)/python tests/bench/faults.py $(ARGS)

clean: ## remove the environment and caches, keep data/
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
