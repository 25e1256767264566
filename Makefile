# Every target but `help` sets itself up: the first one run installs requirements.txt and this package into .venv.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
MODEL ?=
IMAGE ?=
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
# The interpreter uses one core a process, and a GPU is shared between them. More threads would wait for each other.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

.PHONY: help run test lab bench lint

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' Makefile

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	@touch $@

run: .venv/installed ## classify images with our kernels, compare every layer with Hugging Face (MODEL=... IMAGE=...)
	@$(BIN)/python -m vitcourse run $(if $(MODEL),--model "$(MODEL)") $(if $(IMAGE),--image "$(IMAGE)")

test: lint ## lint, and tests/ with every notebook, on the GPU or in Triton's interpreter (WORKERS=2)
	$(PYTEST) --dist worksteal tests

lab: .venv/installed ## open JupyterLab at the first lesson
	$(BIN)/jupyter lab $(firstword $(NOTEBOOKS))

bench: .venv/installed ## measure the model beside its peers and record it in benchmarks/ (CUDA; else prints the record)
	@$(BIN)/python -c "import torch, sys; sys.exit(not torch.cuda.is_available())" \
		&& $(BIN)/pip install --quiet --disable-pip-version-check timm==1.0.29 || true
	@$(BIN)/python -m vitcourse bench

lint: .venv/installed ## ruff, over Python files and notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
