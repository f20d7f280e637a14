# `make` lists what can be made. Every target but `help` installs .venv first when it is missing or its lock is newer.
PYTHON ?= python3
ARGS ?=

VENV := .venv/.installed
RUN := .venv/bin/python
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock"

.PHONY: help setup train consistency release test test-fast lint format lock clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV): requirements/dev.txt
	$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit(f"expected Python 3.11-3.13, found {sys.version.split()[0]}: name another with make PYTHON=...")'
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

setup: $(VENV) ## install everything into .venv, from the hash-locked requirements (5.4 GB, most of it torch)

train: $(VENV) ## train Model_1, Model_2, Model_3; report and verified ONNX in artifacts/ (ARGS="--seed 2" and so on)
	$(RUN) -m train $(ARGS)

consistency: $(VENV) ## train Model_3 with ten seeds and write docs/consistency.{md,json,png}
	$(RUN) -m train consistency --model Model_3 --seeds 10 $(ARGS) --out artifacts
	cp artifacts/consistency/consistency.* docs/

release: $(VENV) ## promote the verified export in artifacts/release to model/release
	$(RUN) -m train release $(ARGS)

test: $(VENV) ## run every test (ARGS="-k parity" and so on)
	$(RUN) -m pytest $(ARGS)

test-fast: $(VENV) ## run the tests that take seconds
	$(RUN) -m pytest -m "not slow" $(ARGS)

lint: $(VENV) ## check style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(VENV) ## format the code
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

lock: ## write requirements/*.txt anew from pyproject.toml (needs uv)
	$(COMPILE) --all-extras -o requirements/dev.txt pyproject.toml
	$(COMPILE) --extra train --extra sweep --constraint requirements/dev.txt -o requirements/train.txt pyproject.toml
	$(COMPILE) --extra serve --constraint requirements/dev.txt -o requirements/serve.txt pyproject.toml

clean: ## delete .venv and caches; artifacts stay
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache
