# `make` lists the targets. A target that uses a virtual environment first installs the environment, if the environment is
# missing or older than its file of requirements.
PYTHON ?= python3
SOURCE ?= unknown
ARGS ?=

CHECK_PYTHON = $(if $(filter Windows_NT,$(OS)),$(error expected Linux, macOS or WSL, found Windows: use Docker (docs/containers.md)))\
	$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 14) or sys.exit(f"expected Python 3.11-3.14, found {sys.version.split()[0]}: set another interpreter with make PYTHON=...")'
VENV := .venv/.installed
SERVE := .venv-serve/.installed
BENCH := .venv-bench/.installed
# LABELS: build arguments for the labels of the container images. SETTINGS: environment variables that run-serve passes to
# the container. GPUS: the option of `docker run` for GPUs, if Docker has NVIDIA's runtime.
LABELS = --build-arg VERSION=$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) \
	--build-arg REVISION=$(shell git rev-parse HEAD)$(if $(shell git status --porcelain),-dirty) \
	--build-arg SOURCE=$(SOURCE)
SETTINGS = API_KEY CORS_ORIGINS KEEP_ALIVE LOG_LEVEL MAX_BATCH MAX_BODY_BYTES MAX_PIXELS REQUEST_TIMEOUT \
	TRUSTED_PROXIES WEB_CONCURRENCY
GPUS = $(if $(shell docker info --format '{{.Runtimes.nvidia}}' 2>/dev/null | grep -v 'no value'),--gpus all)
RUN := .venv/bin/python
PYTEST := $(RUN) -m pytest
PARALLEL := -n 2 --dist loadgroup
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock"
# Packages that FastAPI and LitServe require but that the benchmarks do not use: for PyPy, development and websockets.
UNUSED := cffi pycparser python-dotenv pyyaml watchfiles websockets

.PHONY: help setup train serve pictures doubt bench images run-train run-serve test-images consistency frontier release test test-fast lint format lock clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV): requirements/dev.txt
	$(CHECK_PYTHON)
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r $<
	@touch $@

$(SERVE): requirements/serve.txt
	$(CHECK_PYTHON)
	$(PYTHON) -m venv --clear .venv-serve
	.venv-serve/bin/pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r $<
	@touch $@

setup: $(VENV) ## install all packages into .venv, at the versions and hashes in requirements/dev.txt (5.4 GB, mostly torch)

train: $(VENV) ## train Model_1, Model_2 and Model_3; write a report and a verified ONNX graph to artifacts/ (example: ARGS="--seed 2")
	$(RUN) -m train $(ARGS)

$(BENCH): requirements/serve.txt requirements/bench.txt
	$(CHECK_PYTHON)
	$(PYTHON) -m venv --clear .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --no-compile --require-hashes --no-deps $(^:%=-r %)
	@touch $@

serve: $(SERVE) ## start the service on port 8000 (example: MODEL_DIR=artifacts/release PORT=9000)
	@exec .venv-serve/bin/python -m serve

pictures: $(VENV) ## measure the accuracy on pictures that differ from MNIST's, and write docs/pictures.{md,json,png}
	$(RUN) -m benchmarks.pictures $(ARGS)

doubt: $(VENV) ## measure how many pictures of non-digits are doubtful, and write docs/doubt.{md,json,png}
	$(RUN) -m benchmarks.doubt $(ARGS)

bench: $(VENV) $(BENCH) ## compare the speed of training and serving with alternatives, and write docs/benchmarks.md (needs wrk)
	$(RUN) -m benchmarks.serve
	$(RUN) -m benchmarks.train

consistency: $(VENV) ## train Model_3 with twenty seeds, and write docs/consistency.{md,json,png}
	$(RUN) -m train consistency --model Model_3 --seeds 20 $(ARGS) --out artifacts
	cp artifacts/consistency/consistency.* docs/

frontier: $(VENV) ## train variants of Model_3 with six widths, and write docs/frontier.{md,json,png}
	$(RUN) -m train frontier $(ARGS) --out artifacts
	cp artifacts/frontier/frontier.* docs/

release: $(VENV) ## make the verified export in artifacts/release the released model, in model/release
	$(RUN) -m train release $(ARGS)

test: $(VENV) ## run all tests except those of the container images (example: ARGS="-k every_test_image")
	$(PYTEST) $(PARALLEL) -m "not images" $(ARGS)

test-fast: $(VENV) ## run the fast tests: no test of the container images, and no test marked slow
	$(PYTEST) $(PARALLEL) -m "not slow and not images" $(ARGS)

images: ## build the container images train, serve and serve-proxy
	docker build $(LABELS) -f Dockerfile.train -t train .
	docker build $(LABELS) -f Dockerfile.serve -t serve .
	docker build -t serve-proxy docker/nginx

run-train: ## train in a container into artifacts/, on a GPU if Docker has one (example: ARGS="--models Model_3")
	mkdir -p artifacts
	docker run --rm $(GPUS) -v "$(CURDIR)/artifacts:/artifacts" train $(ARGS)

run-serve: ## start the service in a container, on port 8000 (example: MODEL_DIR=artifacts/release PORT=9000)
	docker run --rm -p 127.0.0.1:$(or $(PORT),8000):8000 $(foreach name,$(SETTINGS),$(if $($(name)),-e $(name))) $(if $(MODEL_DIR),-v "$(abspath $(MODEL_DIR)):/model:ro" -e MODEL_DIR=/model) serve

test-images: images $(VENV) ## build the container images and test them
	$(PYTEST) -m images $(ARGS)

lint: $(VENV) ## check style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(VENV) ## format the code
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

lock: ## write requirements/*.txt from pyproject.toml (needs uv)
	$(COMPILE) --all-extras -o requirements/dev.txt pyproject.toml
	$(COMPILE) --extra train --extra sweep --constraint requirements/dev.txt -o requirements/train.txt pyproject.toml
	$(COMPILE) --group bench --constraint requirements/dev.txt $(UNUSED:%=--no-emit-package %) -o requirements/bench.txt
	$(COMPILE) --extra serve --constraint requirements/dev.txt -o requirements/serve.txt pyproject.toml

clean: ## delete the virtual environments and the caches, but not artifacts/
	rm -rf .venv .venv-serve .venv-bench .mypy_cache .pytest_cache .ruff_cache
