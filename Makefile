# make demo       sets everything up and fits the digits
# make test       sets everything up and runs the tests
# make test-fast  the same without the slow ones, in a fifth of the time
# make test-torch VERSION=2.11.0   the tests of what depends on torch's version, with that version in an environment of its own
# make lint       ruff and mypy
# make docs       sets everything up and builds the documentation, docs/_build/html
# make pictures   makes the pictures of the README and of the gallery again
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
DOCS_READY := $(VENV)/ready-docs

.PHONY: demo test test-fast test-torch lint docs pictures setup

demo: setup
	$(BIN)/pyrovae fit digits

# Neighbouring tests stay in one process, where they share fits.
TEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test: setup
	$(TEST)

test-fast: setup
	$(TEST) -m "not slow"

# What TorchInductor and the tracer make of a step, what is differentiated and exported, and whether examples and benchmarks run.
OF_TORCH := tests/engine tests/objectives tests/pair tests/training tests/fitted tests/test_examples.py

test-torch:
	test -n '$(VERSION)' || { echo 'say which: make test-torch VERSION=2.11.0'; exit 2; }
	test -x .venv-torch-$(VERSION)/bin/python || $(PYTHON) -m venv .venv-torch-$(VERSION)
	.venv-torch-$(VERSION)/bin/python -m pip install --quiet --disable-pip-version-check 'torch==$(VERSION)' --editable '.[dev]'
	.venv-torch-$(VERSION)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(OF_TORCH)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Notebooks run as the site is built, and again only when one has changed; a warning is an error.
docs: $(DOCS_READY)
	$(BIN)/python -m sphinx -W --keep-going -j 2 -b html -d docs/_build/doctrees docs docs/_build/html

# Those of docs/results.md are drawn by the commands that stand there, from data that are not in the checkout.
pictures: setup
	$(BIN)/python docs/make_pictures.py
	$(BIN)/python docs/make_gallery.py

setup: $(READY)

# Made again only when what is to be installed has changed.
$(READY): setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pyrovae needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,docs]'
	touch $(DOCS_READY)
