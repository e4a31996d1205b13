# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Each makes .venv, installs the pinned environment into it and runs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

export HF_HUB_OFFLINE ?= 1

# Where `make gpu` writes its results; copy them to benchmarks/results/<device>/.
OUT ?= benchmarks/results/cuda

.PHONY: demo test check format gpu clean

demo: $(STAMP)
	$(BIN)/fastmaml train digits

# One thread: the tests' tensors are small, and a second one would only wait for the first.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# On a machine with a GPU, with the Python that has its torch: the tests marked gpu, then timings.
gpu:
	mkdir -p $(OUT)
	PYTHONPATH=. $(PYTHON) -m pytest tests/test_gpu.py
	PYTHONPATH=. $(PYTHON) benchmarks/memory_growth.py --device cuda --json $(OUT)/memory_growth.json --png $(OUT)/memory_growth.png
	PYTHONPATH=. $(PYTHON) benchmarks/meta_step.py --device cuda --json $(OUT)/meta_step.json

# torch goes first and pinned: an unpinned one may pull gigabytes of CUDA libraries.
$(STAMP): constraints.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch setuptools wheel ninja pybind11
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e '.[vision,plot,triton,test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
