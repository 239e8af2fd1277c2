# Two commands set everything up from a clean clone: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# tests mostly wait: as many run side by side, each file in one of them; each that needs a sandbox starts its own
WORKERS ?= 4
PYTEST = $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
LOCK   := requirements/dev.txt
# charts has a page only where a chart brings a README
FROM_CODE := docs/reference/fields $(patsubst %,docs/reference/%.md,metrics commands events conditions)
PAGES  := README.md CHANGELOG.md docs tests/README.md examples benchmarks charts

.DEFAULT_GOAL := help
.PHONY: help demo kind-demo test node-test e2e kind-e2e unit clients mutation check generate lock fmt clean
.SUFFIXES:
# without bytecode each worker and each process that a test starts would compile everything again
unexport PYTHONDONTWRITEBYTECODE

help: ## list the targets
	@grep -hE '^[a-z0-9%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/.installed: $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	@echo "==> Python packages into $(VENV) (hashes pinned in $(LOCK))"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.clients: requirements/clients.txt $(VENV)/.installed
	@echo "==> SDKs for tests/clients into $(VENV) (hashes pinned in $<)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

demo: $(VENV)/.installed ## start the sandbox, canary a good and a bad prompt change (KEEP=1 leaves it running)
	@$(BIN)/promptrollout demo $(if $(KEEP),--keep)
	@echo "The command is $(BIN)/promptrollout here; after \`. $(BIN)/activate\` it is promptrollout."

kind-demo: $(VENV)/.installed ## the same at full size: on a kind cluster, in containers (needs docker, kind, kubectl, helm)
	@examples/kind/kind-demo

test: check $(VENV)/.clients ## static checks, then all tests (in WORKERS=4 processes with a sandbox each)
	@$(PYTEST) $(ARGS)

node-test: $(VENV)/.installed ## chart and quickstart on a real node in namespaces of its own (Linux, root, apt; skips otherwise)
	@$(BIN)/pytest tests/node $(ARGS)

e2e: $(VENV)/.installed ## demo and contract on the cluster of KUBECONFIG, which has the operator (tests/README.md)
	@$(BIN)/pytest tests/e2e $(ARGS)

kind-e2e: $(VENV)/.installed ## the same on a kind cluster that it makes and deletes (needs docker, kind, helm; skips otherwise)
	@$(BIN)/pytest tests/e2e --kind $(ARGS)

unit: $(VENV)/.installed ## the tests without a cluster, in a few minutes
	@$(PYTEST) tests/properties tests/unit $(ARGS)

clients: $(VENV)/.clients ## real SDKs and schemathesis against a gateway on a port
	@$(PYTEST) tests/clients $(ARGS)

mutation: $(VENV)/.installed ## mutate a sample of the engine's code, report how much of it the unit tests notice (10 minutes)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/mutation.txt
	@$(BIN)/python -m tests.mutation $(ARGS)

generate: $(VENV)/.installed ## write crds/ (and the chart's copy) and the reference pages that come from code
	@$(BIN)/python -m promptrollout.api.crds
	@$(BIN)/python -m promptrollout.gateway.openapi
	@$(BIN)/python -m promptrollout.cli.reference
	@$(BIN)/mdformat $(FROM_CODE)

check: $(VENV)/.installed generate ## ruff, mdformat, mypy, import arrows, declared dependencies; fails if generated files differ from what is committed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mdformat --check $(PAGES)
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/deptry src
	@test -z "$$(git status --porcelain -- crds charts/promptrollout/templates/crds docs/reference/openapi.json $(FROM_CODE))" \
	  || { git status --short -- crds charts docs/reference; echo "generated files differ: commit the result of 'make generate'"; exit 1; }

bench-%: $(VENV)/.installed ## run benchmarks/NAME, print its table, write benchmarks/results/NAME.json
	@$(BIN)/python -m benchmarks.$(subst -,_,$*)

fmt: $(VENV)/.installed ## format and fix
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .
	@$(BIN)/mdformat $(PAGES)

lock: ## compile the lock files (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml -o requirements/runtime.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group build -c requirements/runtime.txt -o requirements/build.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml --extra sandbox --group dev -c requirements/runtime.txt -c requirements/build.txt -o requirements/dev.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group mutation -c requirements/dev.txt -o requirements/mutation.txt
	echo "litellm[proxy]==1.106.2" | uv pip compile -q --python-version 3.11 --generate-hashes --no-emit-index-url --no-header - -o requirements/litellm.txt
	printf 'granian==2.8.7\npyreqwest==0.15.1\naiohttp==3.14.5\nuvicorn==0.54.0\nuvloop==0.23.0\nhttptools\norjson\n' | uv pip compile -q --python-version 3.11 --generate-hashes --no-emit-index-url --no-header - -o requirements/stacks.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group clients -c requirements/dev.txt -o requirements/clients.txt

clean: ## remove the virtual environment (downloads and built binaries stay in the user's cache)
	rm -rf $(VENV) mutants
