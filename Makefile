# make demo: install, watch an MLP walk on the digits by GD and by SGD, write a report.   make test: all checks.
# make browser: the headless Chromium that the tests of the report use.                   Everything else: README.md.

PYTHON ?= $(shell for name in python3 python3.11 python3.12 python3.13 python3.14; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO := --hidden 64 32 --batch-size 50 --learning-rate 2 --curvature-every 5 --out runs/demo --resume

.PHONY: demo test browser
.NOTPARALLEL:

demo: .venv/with-paper
	@echo "Training on the digits by full-batch gradient descent, then by SGD, watching every update."
	@$(BIN)/sgdwalk run $(DEMO) --algorithm gd --epochs 40 --name gd >/dev/null
	@$(BIN)/sgdwalk run $(DEMO) --algorithm sgd --epochs 3 --name sgd >/dev/null
	@$(BIN)/sgdwalk report runs/demo/gd runs/demo/sgd --out runs/demo/report.html

test: .venv/with-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

browser:
	@if command -v chromium >/dev/null || command -v chromium-browser >/dev/null; then \
		echo "Chromium is there."; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		{ apt-get -qq update && apt-get -qq install --yes --no-install-recommends chromium >/dev/null; } \
			|| echo "Chromium could not be installed: the tests that need it will be skipped."; \
	else \
		echo "Chromium is not there, and there is no apt-get or no right to use it: the tests that need it will be skipped."; \
	fi

.venv/bin/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python of version 3.11 or later was found: install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; \
	fi
	$(PYTHON) -m venv .venv

.venv/with-paper: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing the pinned dependencies into .venv (once; about a minute, by far the most for torch)."
	@$(PIP_INSTALL) --editable ".[paper]"
	@touch $@

.venv/with-dev: .venv/with-paper
	@$(PIP_INSTALL) --editable ".[dev]"
	@touch $@
