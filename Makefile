# make train EXP=hippocampus PRESET=cpu ARGS="key=value ..." runs a stage of medaug in its own environment.

EXP =
PRESET =
DATA =
STUDY = few_labels
ARGS =
PYTHON = python3
JOBS = 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

experiment = $(if $(EXP),experiment=$(EXP))
preset = $(if $(PRESET),preset=$(PRESET))
data = $(if $(DATA),data=$(DATA))

.DEFAULT_GOAL := help
.PHONY: setup demo ingest train generate predict export bundle gallery audit benchmark study status verify viewer test test-fast fuzz lint format notebooks docs docs-site dist wheelhouse dependencies clean help

setup: $(STAMP) ## create the environment in .venv (updates it when requirements change)

# Use the first of these names that is Python 3.11 or newer and can create environments.
$(STAMP): pyproject.toml constraints.txt
	@set -e; found=; \
	for python in $(PYTHON) python3.13 python3.12 python3.11; do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "setup: needs Python 3.11 or newer with its venv module; install it, or name one: make setup PYTHON=/path/to/python3" >&2; exit 2; \
	fi; \
	if ! $(BIN)/python -c '' 2>/dev/null; then \
	  echo "setup: making $(VENV) with $$("$$found" --version)"; "$$found" -m venv --clear $(VENV); \
	fi; \
	echo "setup: installing the packages of constraints.txt (some minutes the first time)"; \
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"; \
	touch $@; \
	echo "setup: ready"

demo: $(STAMP) ## run the whole loop on phantoms: train, generate, audit, benchmark
	@$(BIN)/python -m medaug.train experiment=demo $(preset) $(ARGS)
	@$(BIN)/python -m medaug.generate experiment=demo
	@$(BIN)/python -m medaug.audit experiment=demo
	@$(BIN)/python -m medaug.benchmark experiment=demo

ingest: $(STAMP) ## turn files into a checked manifest: ARGS="root=DIR out=FILE.json"
	@$(BIN)/python -m medaug.ingest $(ARGS)

train: $(STAMP) ## learn p(image | mask): EXP=name [PRESET=cpu] [DATA=phantom] [ARGS="key=value"]
	@$(BIN)/python -m medaug.train $(experiment) $(preset) $(data) $(ARGS)

generate: $(STAMP) ## write synthetic image-mask pairs: EXP=name [ARGS="num=200"]
	@$(BIN)/python -m medaug.generate $(experiment) $(preset) $(ARGS)

predict: $(STAMP) ## apply a model to real scans: EXP=name [ARGS="split=test"]
	@$(BIN)/python -m medaug.predict $(experiment) $(preset) $(ARGS)

export: $(STAMP) ## write the pairs in another tool's layout: EXP=name ARGS="format=msd out=DIR"
	@$(BIN)/python -m medaug.export $(experiment) $(preset) $(ARGS)

bundle: $(STAMP) ## write the generator as a MONAI bundle: EXP=name ARGS="out=DIR"
	@$(BIN)/python -m medaug.bundle $(experiment) $(preset) $(ARGS)

gallery: $(STAMP) ## write pages to look at the pairs in a browser: EXP=name ARGS="out=DIR"
	@$(BIN)/python -m medaug.gallery $(experiment) $(preset) $(ARGS)

audit: $(STAMP) ## measure whether the images match their masks: EXP=name
	@$(BIN)/python -m medaug.audit $(experiment) $(preset) $(ARGS)

benchmark: $(STAMP) ## measure whether the pairs help on held-out subjects: EXP=name
	@$(BIN)/python -m medaug.benchmark $(experiment) $(preset) $(ARGS)

study: $(STAMP) ## run or continue a study over several draws of labels: STUDY=few_labels
	@$(BIN)/python benchmarks/study.py $(STUDY) $(ARGS)

status: $(STAMP) ## say how far the experiments are: [ARGS="runs=DIR"]
	@$(BIN)/python -m medaug.status $(ARGS)

verify: $(STAMP) ## say whether files are synthetic and unchanged: ARGS=DIR
	@$(BIN)/python -m medaug.verify $(ARGS)

viewer: $(STAMP) ## get the viewer of the gallery (NiiVue, with npm); a wheel that is built then carries it
	@$(BIN)/python -m medaug.viewing.viewer

# All tests of a file run in one process because they share fixtures, and so do the files that share a run of all stages;
# files with slow tests come first (tests/conftest.py).
# One thread per process, so that processes do not compete.
pytest = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test: $(STAMP) ## run all tests in JOBS processes: [JOBS=2] [ARGS="-k name"]
	@$(pytest) $(ARGS)

test-fast: $(STAMP) ## run only the quick tests
	@$(pytest) -m "not slow" $(ARGS)

fuzz: $(STAMP) ## read 2,000 damaged files of every kind: [ARGS="--count 200"]
	@$(BIN)/python tests/fuzz_all.py $(ARGS)

lint: $(STAMP) ## run ruff, mypy and the check of the import order
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache

format: $(STAMP) ## format the code
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

notebooks: $(STAMP) ## run the notebooks and store their output
	@set -e; books=$$(find notebooks -maxdepth 1 -name '*.ipynb' 2>/dev/null | sort); \
	if [ -z "$$books" ]; then echo "notebooks: none yet"; exit 0; fi; \
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[notebooks]"; \
	$(BIN)/python -m nbconvert --to notebook --execute --inplace $$books

docs: $(STAMP) ## write docs/reference/configuration.md from the declarations of the options
	@$(BIN)/python -m medaug.reference > docs/reference/configuration.md

docs-site: $(STAMP) ## build the documentation site in build/site and check its links (formulas need node and npm)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@$(BIN)/python website/check_links.py build/site
	@echo "docs-site: open build/site/index.html"

dist: $(STAMP) ## build wheel and sdist in dist/ and check them, and the recipe of the container
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[packaging]"
	@rm -rf dist && $(BIN)/python -m build --outdir dist . >/dev/null
	@$(BIN)/twine check --strict dist/*
	@$(BIN)/check-wheel-contents dist/*.whl
	@$(BIN)/hadolint container/Dockerfile

wheelhouse: dist ## collect medaug and all that it needs in wheelhouse/, for installation without a network
	@rm -rf wheelhouse && $(BIN)/python -m pip wheel -q --disable-pip-version-check -c constraints.txt -w wheelhouse dist/*.whl

dependencies: $(STAMP) ## list the tested versions (CycloneDX, build/sbom.json) and look for known vulnerabilities
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[packaging]"
	@mkdir -p build && $(BIN)/cyclonedx-py requirements constraints.txt --output-reproducible -o build/sbom.json
	@$(BIN)/pip-audit -r constraints.txt --no-deps --disable-pip

clean: ## remove caches and builds, but not runs, data or .venv
	@rm -rf build dist wheelhouse .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find medaug tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

help: ## show this list
	@echo 'make TARGET [EXP=name] [PRESET=name] [DATA=name] [ARGS="key=value ..."]'; echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)$$/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'\t' '{ printf "  %-10s %s\n", $$1, $$2 }'
	@echo; echo 'medaug STAGE --help (in .venv/bin) lists the keys for ARGS.'
