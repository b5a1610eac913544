# Everything is installed into .venv; nothing outside this folder is touched.
# What has been done leaves a stamp, so a second call is instant while the sources are unchanged.

PYTHON := .venv/bin/python
STAMPS := .venv/stamps
SOURCES := setup.py pyproject.toml \
	$(shell find evonorm* configs tools tests -type f ! -name '*.pyc' 2>/dev/null)
# The tests check these too.
PAGES := README.md mkdocs.yml $(shell find docs -type f 2>/dev/null)

.PHONY: help setup demo test lint docs bench

help:
	@echo "make setup   install everything into .venv"
	@echo "make demo    train Mask R-CNN and BigGAN-deep on handwritten digits, search for layers"
	@echo "make test    run all tests"
	@echo "make docs    build the documentation's pages in site/"
	@echo "make bench   time the layers on this machine"
	@echo "make lint    check style, formatting and type hints"

setup: $(STAMPS)/setup
	@echo "setup: done; .venv/bin/python has everything"

demo: $(STAMPS)/demo
	@echo "demo: done; 'rm $(STAMPS)/demo' and 'make demo' to repeat it"

test: $(STAMPS)/test
	@echo "test: passed; 'rm $(STAMPS)/test' and 'make test' to repeat it"

lint: $(STAMPS)/lint
	@echo "lint: passed"

docs: $(STAMPS)/setup
	.venv/bin/zensical build --strict
	@echo "docs: open site/index.html"

bench: $(STAMPS)/setup
	$(PYTHON) tools/benchmark_layers.py

$(STAMPS)/setup: setup.py constraints.txt tools/install_detectron2.py $(wildcard evonorm/ops/*.cpp evonorm/ops/*.h)
	python3 -m venv .venv
	$(PYTHON) -m pip install --quiet -c constraints.txt torch setuptools wheel
	$(PYTHON) -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[detection,gan,repro,ray,dev]"
	PIP_CONSTRAINT=constraints.txt $(PYTHON) tools/install_detectron2.py
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/demo: $(STAMPS)/setup $(SOURCES)
	$(PYTHON) tools/demo.py
	@touch $@

$(STAMPS)/test: $(STAMPS)/setup $(SOURCES) $(PAGES)
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile
	@touch $@

$(STAMPS)/lint: $(STAMPS)/setup $(SOURCES)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	@touch $@
