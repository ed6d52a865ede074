# Two commands matter: `make serve` and `make test`. Both make their own environment in .venv.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
VENV := .venv
COMMA := ,
BIN := $(VENV)/bin
# Which build of PyTorch: empty takes what pip finds (on Linux the large CUDA build); cpu, cu126, ... or auto ask uv for
# that one.
TORCH ?=
# How long the comparison of ways to run members may take.
MINUTES ?= 240
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help serve test example lint types check benchmark uncertainty soak picture clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: models/digits/1 ## build the example if it is not there, and serve it on 127.0.0.1:8000
	@echo "==> serving http://$(HOST):$(PORT) (documentation at /docs; Ctrl-C stops)"
	@exec $(BIN)/ensembled serve --models models --host $(HOST) --port $(PORT)

test: $(VENV)/dev ## run the whole test suite
	@echo "==> running the tests"
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

example: models/digits/1 ## build the example only

models/digits/1: | $(VENV)/base
	@echo "==> training the example on scikit-learn's handwritten digits, and making 128 members"
	@$(BIN)/ensembled build docs/examples/digits.py:trained $@ --task classification --scale 0.1 --members 128

lint: $(VENV)/dev ## ruff, format included
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/dev ## mypy, strict
	@$(BIN)/mypy

check: lint types test ## all that CI runs

benchmark: $(VENV)/peers ## this library and this service beside others on the same work (hours; MINUTES=60 for less)
	@$(BIN)/python -m benchmarks.speed --minutes $(MINUTES)
	@$(BIN)/python -m benchmarks.speed.cost
	@$(BIN)/python -m benchmarks.load

uncertainty: $(VENV)/dev ## what members of one net are worth beside ten nets (half an hour; UCI=PATH for the UCI sets)
	@$(BIN)/python -m benchmarks.uncertainty $(if $(UCI),--uci $(UCI),--parts untuned classes)

soak: $(VENV)/dev ## five minutes of bad, slow and vanishing clients, reloads and a full queue
	@$(BIN)/python -m benchmarks.soak

picture: $(VENV)/dev models/digits/1 ## the figures and the picture of the README
	@$(BIN)/python docs/examples/uncertainty.py models/digits/1

clean: ## remove the environment, the example and caches
	rm -rf $(VENV) models/digits build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@echo "==> making the environment $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/torch: | $(VENV)/bin/python
	@$(if $(TORCH),$(PIP) uv && $(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend=$(TORCH) 'torch>=2.11$(COMMA)<2.14',true)
	@touch $@

$(VENV)/base: pyproject.toml | $(VENV)/torch
	@echo "==> installing (PyTorch is large: this takes a minute or a few)"
	@$(PIP) -e '.[examples,openvino,plot]'
	@touch $@

$(VENV)/dev: pyproject.toml | $(VENV)/base
	@echo "==> installing what the tests need"
	@$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/peers: pyproject.toml | $(VENV)/dev
	@echo "==> installing what the benchmark compares with"
	@$(PIP) -e '.[peers,hf,load]'
	@touch $@
