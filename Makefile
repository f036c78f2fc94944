# Everything runs in .venv, made on first use; touching pyproject.toml or constraints.txt renews it.
PYTHON ?= python3
VENV := .venv
WORKERS ?= 2
PYTEST := $(VENV)/bin/python -m pytest

# What Python compiled it keeps: otherwise every process of the tests compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-four-bits browser screenshots check docs reference format clean

help:  ## show this list
	@echo "make TARGET [PYTHON=python3.11]"
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(VENV)/.package  ## align the embedded model and write a report (ARGS=--overwrite)
	$(VENV)/bin/nablaflow demo $(ARGS)

test: $(VENV)/.test  ## all tests but the slow ones, on WORKERS=2 processes
	$(PYTEST) -n $(WORKERS) --dist worksteal

test-slow: $(VENV)/.test  ## the tests that take minutes each
	$(PYTEST) -m slow --timeout 3600

test-four-bits: $(VENV)/.four-bits  ## what needs bitsandbytes, which every other start would load for a second
	PYTHONPATH=$(VENV)/four-bits $(PYTEST) -n $(WORKERS) tests/models/test_four_bits.py \
	    tests/models/test_quantized.py tests/runs/test_quantized_base.py

browser: $(VENV)/.browser  ## what the tests in a real browser need besides Chromium itself

screenshots: $(VENV)/.browser  ## walk through the studio with a scripted rater; docs/images/studio
	$(VENV)/bin/python benchmarks/studio_demo.py --folder runs/studio --screenshots docs/images/studio

check: $(VENV)/.dev  ## style, types, and which room imports which
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/lint-imports

docs: $(VENV)/.docs  ## build the documentation's site into build/docs; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

reference: $(VENV)/.package  ## write docs/settings.md and docs/cli.md from the code
	$(VENV)/bin/python docs/generate.py

format: $(VENV)/.dev  ## put the code into the project's style
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

clean:  ## remove the virtual environment and the tools' caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# A set of extras contains the ones before it, so its installation renews their stamps as well.
INPUTS := pyproject.toml constraints.txt
install = $(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt

$(VENV)/.package: $(INPUTS) | $(VENV)/bin/pip
	$(install) -e .
	@touch $@

$(VENV)/.test: $(INPUTS) | $(VENV)/bin/pip
	$(install) -e '.[test]'
	@touch $(VENV)/.package $@

$(VENV)/.four-bits: $(INPUTS) | $(VENV)/.test
	$(install) --no-deps --upgrade --target $(VENV)/four-bits bitsandbytes
	@touch $@

$(VENV)/.browser: $(INPUTS) | $(VENV)/bin/pip
	$(install) -e '.[test-browser]'
	@touch $(VENV)/.package $(VENV)/.test $@

$(VENV)/.dev: $(INPUTS) | $(VENV)/bin/pip
	$(install) -e '.[dev]'
	@touch $(VENV)/.package $(VENV)/.test $@

$(VENV)/.docs: $(INPUTS) | $(VENV)/bin/pip
	$(install) -e '.[docs]'
	@touch $(VENV)/.package $@

# What is wrong with PYTHON, in one line; nothing if it will do. Any Python can run these lines.
complaint = $(shell $(PYTHON) -c 'import sys; \
v = sys.version_info; \
print("" if (3, 10) <= v[:2] <= (3, 13) else "is Python %d.%d" % v[:2])' 2>/dev/null \
|| echo "does not run")
no_venv = $(shell $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || echo no)

$(VENV)/bin/pip:
	$(if $(complaint),$(error nablaflow needs Python 3.10 to 3.13, and $(PYTHON) $(complaint): \
choose another, such as make PYTHON=python3.11))
	$(if $(no_venv),$(error $(PYTHON) cannot make a virtual environment: on Debian, \
apt install python3-venv))
	$(PYTHON) -m venv $(VENV)
