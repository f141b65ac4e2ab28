# make install | demo | test | lint | docs | release: each makes .venv first, where it is missing or out of date.

PYTHON ?= python3
# torch goes in first and pinned, by its plain name: whatever comes later finds it there and cannot pull in another build.
# The project runs on the CPU build. Where your package index offers a CUDA build under that name, and you do not want its
# gigabytes, name the file of a CPU build: make install TORCH=./torch-2.13.0+cpu.whl
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test lint docs release clean
.DELETE_ON_ERROR:

install: $(STAMP)
	@echo "sfumato is installed in $(VENV); next: make demo, or $(BIN)/sfumato --help"

# The stamp is touched last, so an interrupted installation is done again; pip then finds most of it there.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "make: $(PYTHON) is missing or older than Python 3.11: install 3.11 or 3.12, or name one, as in make install PYTHON=python3.12" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs,metrics]'
	$(BIN)/python -m pip install --quiet --no-deps torchattacks==3.5.1 # its dependencies but torchvision are in dev
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/sfumato demo

test: $(STAMP)
	$(BIN)/python -m pytest -q --numprocesses 2 --dist loadscope

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/pyright

# Source archive and wheel, the wheel built from the archive; the wheel is then installed and used by a test.
release: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m pytest -q tests/test_wheel.py

# The site, into site/. Strict: a broken link is an error. The variable silences an advertisement.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist site src/*.egg-info
