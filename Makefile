# Each target sets itself up: the first one run installs requirements.txt into .venv.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
MODEL ?=
IMAGE ?=

.PHONY: help run test lab bench lint

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' Makefile

.venv/.installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

