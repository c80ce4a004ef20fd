# Two commands do all the set-up: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test test-avx2 lint docs clean
run: $(STAMP)
	$(BIN)/mixwell run

test: $(STAMP)
	$(BIN)/python -m pytest -n 2

# What computes, on this CPU as on one that has AVX2 alone: no AVX512, no bf16 or int8 instructions.
test-avx2: $(STAMP)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
	  $(BIN)/python -m pytest -n 2 tests/core tests/kernels tests/precision tests/sequence tests/lm

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site, into site/; its builder is fetched the first time, nothing is fetched while it builds.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "open site/index.html; its search box asks for a server: $(BIN)/python -m http.server -d site"

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mixwell needs Python 3.11 or later; $$($(PYTHON) --version) came. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@# torch goes first and by minor version, so that a local or CPU build is taken where one is offered.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'torch==2.13.*' || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check 'torch>=2.11,<2.14'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

clean:
	rm -rf $(VENV) site
