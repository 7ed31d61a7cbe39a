# Everything a newcomer or a CI job runs. `make help` lists the targets.

# The interpreter for .venv is looked for on PATH; `make setup PYTHON=/path/to/python3.12` names one.
BIN = .venv/bin
STAMP = .venv/.installed
SUPPORTED = import sys, pip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

.PHONY: help setup demo test lint format typecheck imports test-slow test-matrix fuzz coverage wheel clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | awk -F'|' '{ printf "  make %-11s %s\n", $$1, $$2 }'

setup: $(STAMP) ## create .venv and install pruneopt into it

# Stamped, so that it happens once, and again when the dependencies change. A half-made .venv is first
# completed and, where that does not help, made anew.
$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -c '$(SUPPORTED)' >/dev/null 2>&1; then \
	  candidates='$(PYTHON)'; python=; \
	  for name in $${candidates:-python3.11 python3.12 python3.13 python3 python}; do \
	    if "$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then \
	      python=$$name; break; \
	    fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "pruneopt needs Python 3.11, 3.12 or 3.13, and none was found" \
	         "(tried: $${candidates:-python3.11 python3.12 python3.13 python3 python})." >&2; \
	    echo "Install one, or name it: make setup PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	  fi; \
	  echo "Creating .venv with $$("$$python" --version)"; \
	  "$$python" -m venv .venv >/dev/null 2>&1 && $(BIN)/python -c '$(SUPPORTED)' >/dev/null 2>&1 \
	    || "$$python" -m venv --clear .venv \
	    || { echo "$$python cannot create virtual environments; on Debian and Ubuntu install python3-venv." >&2; exit 1; }; \
	fi
	@echo "Installing pruneopt and its dependencies into .venv (minutes the first time: PyTorch is large)"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,timm,search,tensorboard]'
	@touch $(STAMP)

demo: $(STAMP) ## prune a small network and show every step
	$(BIN)/python -m pruneopt.tools.demo

test: lint typecheck imports ## all checks and the fast tests
	$(BIN)/python -m pytest -n 2 --dist worksteal --timeout 300

lint: $(STAMP) ## style, layout and common mistakes (ruff), docstrings that say what is done
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python benchmarks/house.py --check

format: $(STAMP) ## write every file in the layout that lint asks for, imports sorted
	$(BIN)/python -m ruff check --select I --fix .
	$(BIN)/python -m ruff format .

typecheck: $(STAMP) ## types (mypy, strict)
	$(BIN)/python -m mypy

imports: $(STAMP) ## who may import whom (import-linter)
	$(BIN)/lint-imports --no-logo

test-slow: $(STAMP) ## the tests that take minutes
	$(BIN)/python -m pytest -m 'slow and not gpu'

test-matrix: $(STAMP) ## what reads PyTorch's internals, with MATRIX="3.12:2.11 ..." or every version (hours)
	$(BIN)/python tests/matrix.py $(MATRIX) $(if $(KEEP),--keep)

fuzz: $(STAMP) ## prune FUZZ_N random networks from number FUZZ_SEED on; goes on after failures
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m randomnets

coverage: $(STAMP) ## which networks compile, and how far they can be pruned
	$(BIN)/python benchmarks/coverage.py

wheel: $(STAMP) ## the source archive and the wheel, in dist/
	$(BIN)/python -m build

clean: ## remove what was built; .venv stays
	rm -rf build dist *.egg-info src/*.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .matrix
	find benchmarks ir kernels models passes src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
