PYTHON ?= python3.11
BIN := .venv/bin
PINS := -c requirements.lock
# Two processes of one thread each: short tests keep two cores busier than threads would. A file's tests stay together.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile

.PHONY: install train test lint check slow

install: .venv/installed

.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PINS) -e ".[smollm2,retrieval,test,bench,lint]"
	touch $@

train: install
	$(BIN)/hrpo train --config recipes/quickstart.yaml $(ARGS)

test: install
	$(PYTEST)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

check: lint
	$(PYTEST)

slow: install
	$(BIN)/pytest -q -m "slow or sampled"
