# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Each makes .venv, installs the pinned environment into it and runs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

export HF_HUB_OFFLINE ?= 1

.PHONY: demo test check format clean

demo: $(STAMP)
	$(BIN)/fastmaml train digits

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch goes first and pinned: an unpinned one may pull gigabytes of CUDA libraries.
$(STAMP): constraints.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch setuptools wheel
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e '.[vision,plot,test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
