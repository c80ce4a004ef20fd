# Two commands do all the set-up: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar on

.PHONY: run test test-avx2 lint docs clean
run: $(STAMP)
	$(BIN)/mixwell run

# Neighbours stay with one worker, which share what they make; whoever is done first takes from the other's end.
# What is compiled is kept, whatever the environment says, for all the processes that the tests start.
test: $(STAMP)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal

# What computes, on this CPU as on one that has AVX2 alone: no AVX512, no bf16 or int8 instructions.
test-avx2: $(STAMP)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
	  $(BIN)/python -m pytest -n 2 --dist worksteal tests/core tests/kernels tests/precision tests/sequence tests/lm

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site, into site/; its builder is fetched the first time, nothing is fetched while it builds.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "open site/index.html; its search box asks for a server: $(BIN)/python -m http.server -d site"

$(VENV)/.docs: $(STAMP)
	@$(PIP) -e '.[docs]'
	@touch $@

# pip shows what it downloads and how far it is; the lines before each step say what it is for.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mixwell needs Python 3.11 or later; $$($(PYTHON) --version) came. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "1 of 3: a virtual environment in $(VENV), once"
	@$(PYTHON) -m venv $(VENV)
	@# torch goes first and by minor version, so that a local or CPU build is taken where one is offered.
	@echo "2 of 3: torch, by far the largest download"
	@$(PIP) 'torch==2.13.*' || { echo "torch 2.13 is not to be had here; an earlier one will do"; $(PIP) 'torch>=2.11,<2.14'; }
	@echo "3 of 3: mixwell and what its tests need"
	@$(PIP) -e '.[dev]'
	@touch $(STAMP)
	@echo "ready"

clean:
	rm -rf $(VENV) site
