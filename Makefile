# Needs Python >= 3.11 and make; everything else is installed into .venv* folders from pinned versions.
PYTHON ?= python3
UV_VERSION := 0.13.8
DEMO := demo
export UV_LINK_MODE ?= copy

.PHONY: help demo test lint types proto pytest lock clean

help: ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: .venv-demo/.ready ## Synthetic camera gallery, server, bulk index, search: one ranked table and a picture.
	.venv-demo/bin/python benchmarks/demo.py --out $(DEMO)

test: lint types proto pytest ## All checks: what CI runs.

lint: .venv/.ready ## Style and common faults (ruff).
	.venv/bin/ruff check
	.venv/bin/ruff format --check

types: .venv/.ready ## Types (mypy, strict).
	.venv/bin/mypy

proto: .venv/.ready ## Lint the API (buf) and compare the committed stubs and the synchronous client with fresh ones.
	.venv/bin/python proto/generate.py --check
	.venv/bin/python clients/unasync.py --check

# In two processes: training and export load torch with its own threads, servers and clients need none of it.
pytest: .venv/.ready ## Tests.
	.venv/bin/python -m pytest tests --ignore=tests/export --ignore=tests/golden --ignore=tests/model
	.venv/bin/python -m pytest tests/export tests/golden tests/model

lock: .venv/.ready ## Resolve requirements.lock anew.
	.venv/bin/uv pip compile --universal --python-version 3.11 --all-extras --generate-hashes --no-annotate \
		--no-header --no-emit-index-url --upgrade --quiet pyproject.toml --output-file requirements.lock

# A fresh environment holds only what pyproject.toml names, at the versions of requirements.lock.
.venv/.ready: pyproject.toml requirements.lock
	$(call environment,.venv,dev)

.venv-demo/.ready: pyproject.toml requirements.lock
	$(call environment,.venv-demo,server)

define environment
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "passerby needs Python 3.11 or newer")'
	$(PYTHON) -m venv --clear $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(1)/bin/uv pip install --quiet --python $(1) --constraint requirements.lock --editable '.[$(2)]'
	touch $@
endef

clean: ## Remove environments, caches and what the demo wrote.
	rm -rf .venv .venv-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis $(DEMO)
