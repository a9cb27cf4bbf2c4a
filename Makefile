PYTHON ?= python3.11
BIN := .venv/bin
PINS := -c requirements.lock

.PHONY: install train test check slow

install: .venv/installed

.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PINS) -e ".[smollm2,retrieval,test,bench,lint]"
	touch $@

train: install
	$(BIN)/hrpo train --config recipes/quickstart.yaml $(ARGS)

test: install
	$(BIN)/pytest -q

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q

slow: install
	$(BIN)/pytest -q -m slow
