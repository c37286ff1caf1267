# Two commands set everything up on a fresh machine:
#   make demo    install into .venv, then: render clips, train, stop, resume, probe, export (7 to 13 minutes on 2 cores)
#   make test    install into .venv, then run the tests on both supported majors of transformers
# A third one needs root on Linux, takes four minutes, and installs sshd and pdsh where they are missing:
#   make test-multinode      two hosts in network namespaces train together, lose a rank, the network, a checkpoint
# Two more want a GPU and the environment of the Dockerfile, and take under ten minutes each (docs/gpu.md):
#   make gpu-check   does the GPU compute what the CPU computes?
#   make gpu-bench   how fast does it train?

PYTHON ?= python3
GPU_PYTHON ?= python
VENV := .venv
RUN := . $(VENV)/bin/activate &&
# transformers 4.57 beside 5.x: only what differs, found through PYTHONPATH before the environment's own.
TF4 := .cache/transformers4
TF4_PACKAGES := "transformers==4.57.6" "huggingface-hub<1" "tokenizers>=0.22,<0.23" requests urllib3 charset-normalizer certifi

# A core each. Tests of several ranks start up to four processes besides.
TEST_PROCESSES ?= 2

.PHONY: demo test test-hf4 test-multinode test-multinode-all bench lint install schema clean gpu-check gpu-bench

demo: $(VENV)/installed
	$(RUN) python -m tools.demo --output output/demo

test: $(VENV)/installed test-hf4
	$(RUN) OMP_NUM_THREADS=1 python -m pytest --disable-warnings --durations=8 -n $(TEST_PROCESSES) --dist loadfile

test-hf4: $(TF4)/installed
	$(RUN) OMP_NUM_THREADS=1 PYTHONPATH=$(TF4) python -m pytest --disable-warnings tests/onevision_encoder

# What does not run here is skipped, with the reason.
MULTINODE := OMP_NUM_THREADS=1 python -m pytest tests/multinode --disable-warnings -rs --durations=0 --durations-min=1

test-multinode: $(VENV)/installed
	$(RUN) python -m tests.multinode.hosts packages
	$(RUN) $(MULTINODE) -m "multinode and not slow"

# Every row of benchmarks/faults.md, anew: half an hour on two cores that have nothing else to do.
test-multinode-all: $(VENV)/installed
	$(RUN) python -m tests.multinode.hosts packages
	$(RUN) $(MULTINODE) -m multinode --fault-table benchmarks/faults.md

# Clips and pictures against the usual loaders, the concept bank against the reference's algorithm: each with its opponents in one run,
# about ten minutes by the sum of its parts. Needs about 15 GB and the machine to itself. Peers that are not installed are named and left out:
# pip install decord2 torchcodec nvidia-dali-cuda130. Other tables have commands of their own, on their pages under benchmarks/.
bench: $(VENV)/installed
	$(RUN) python -m benchmarks.data
	$(RUN) python -m benchmarks.images
	$(RUN) python -m benchmarks.concept_bank

lint: $(VENV)/installed
	$(RUN) ruff check . && ruff format --check . && mypy megatron_ovenc onevision_encoder codec launch eval tools benchmarks

schema: $(VENV)/installed
	$(RUN) python -m megatron_ovenc.config.schema > configs/schema.json

install: $(VENV)/installed

# torch first and alone, so that the constraint's CPU build is taken where the index offers one.
$(VENV)/installed: pyproject.toml constraints.txt setup.py $(wildcard codec/native/* codec/*/src/*)
	$(PYTHON) -m venv $(VENV)
	$(RUN) python -m pip install -q --upgrade pip setuptools wheel
	$(RUN) python -m pip install -q -c constraints.txt torch
	$(RUN) python -m pip install -q -c constraints.txt -e ".[bank,demo,dev]"
	touch $@

$(TF4)/installed: $(VENV)/installed
	$(RUN) python -m pip install -q --no-deps --upgrade --target $(TF4) $(TF4_PACKAGES)
	touch $@

# In the environment at hand, not in .venv: that one is made for a CPU.
gpu-check:
	$(GPU_PYTHON) -m benchmarks.gpu_check

gpu-bench:
	$(GPU_PYTHON) -m benchmarks.gpu_bench

clean:
	rm -rf $(VENV) .cache output build codec/*.so codec/*/*.so
