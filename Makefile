# make demo: set everything up and run the main job. make test: set everything up and run the tests.
PYTHON ?= python3
BIN := .venv/bin
PLUGINS := $(wildcard plugins/*/pyproject.toml)

.PHONY: setup demo test lint types docs bench clean

setup: .venv/ready

# Everything in one command: pip then sees all requirements, and the constraints hold for each.
.venv/ready: pyproject.toml constraints.txt $(PLUGINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "genmeasures needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[test]' $(foreach plugin,$(PLUGINS),--editable $(dir $(plugin)))
	touch $@

demo: setup
	$(BIN)/genmeasures run task.limit=64

# One thread a process: the tests run in as many processes as there are cores.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: setup
	$(BIN)/mypy

docs: setup
	$(BIN)/python -m sphinx -q docs build/docs

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

bench: setup
	$(BIN)/python -m benchmarks.run
