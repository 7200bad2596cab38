# make demo: sets everything up and runs the main job. make test: sets everything up and runs the tests.
PYTHON ?= python3
BIN := .venv/bin
PLUGINS := $(wildcard plugins/*/pyproject.toml)

.PHONY: setup demo test lint types docs bench release clean

setup: .venv/ready

# One command, so that pip sees all requirements and the constraints hold for each of them.
.venv/ready: pyproject.toml constraints.txt $(PLUGINS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "genmeasures needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[test]' $(foreach plugin,$(PLUGINS),--editable $(dir $(plugin)))
	touch $@

demo: setup
	$(BIN)/genmeasures run task.limit=64

# One process per core, one thread per process. Work is stolen, not dealt out, so that most tests of a module, which
# share its fixtures, run in one process.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal -m "not slow"

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

# Checks and builds the distributions of a version; uploads nothing.
release: setup
	@test -n "$(VERSION)" || { echo "usage: make release VERSION=x.y.z"; exit 2; }
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[release]'
	$(BIN)/python -m tools.release $(VERSION)
