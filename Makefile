# Two commands on a fresh machine: `make demo` does the main job, `make test` passes the tests.
# Both make their own .venv; running them again is quick.

PYTHON ?= python3
# The torch requirement; a build for your GPU works as well: make demo TORCH="torch==2.13.0+cu128"
TORCH ?= torch==2.13.0
TENSORFLOW ?= tensorflow-cpu>=2.15
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
PYTEST := $(BIN)/python -m pytest
# Each worker has whole files, and servers of its own.
WORKERS ?= $(shell nproc 2>/dev/null | awk '{print $$1 < 4 ? $$1 : 4}' || echo 2)
SPREAD := -n $(WORKERS) --dist loadfile

.PHONY: demo test check unit torch-tests tensorflow-tests bench clean help

help:
	@echo "make demo    the main job on embedded defaults: train, add, find the best, download, load"
	@echo "make test    lint, types, import contracts and every test"
	@echo "make check   the quick part: lint, types, import contracts, fast tests"
	@echo "make bench   benchmarks beside peers, 20 minutes (BENCH=\"cold load\" for some of them, BENCH=--help)"
	@echo "make clean   remove what these made"

.venv/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cas needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/demo: .venv/pip pyproject.toml
	$(PIP) install '$(TORCH)' numpy
	$(PIP) install -e '.[demo]'
	@touch $@

.venv/dev: .venv/demo pyproject.toml requirements-dev.txt
	$(PIP) install -e '.[demo,s3]' -r requirements-dev.txt
	@touch $@

.venv/tensorflow: .venv/dev
	$(PIP) install '$(TENSORFLOW)'
	@touch $@

demo: .venv/demo
	$(BIN)/python demo/demo.py

check: .venv/dev
	$(BIN)/ruff format --check cas tests bench demo
	$(BIN)/ruff check cas tests bench demo
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) $(SPREAD) -q -m "not slow and not torch and not tensorflow and not s3"

# The vendor's own client, for one comparison: 400 MB, fetched once; with no network its test skips, and says so.
.venv-vendor/done:
	$(PYTHON) -m venv .venv-vendor
	.venv-vendor/bin/python -m pip --disable-pip-version-check -q install determined==0.38.1 \
	  && touch $@ || { rm -rf .venv-vendor; echo "cannot fetch the vendor's client: its test skips"; }

test: .venv/dev .venv/tensorflow .venv-s3fs/done .venv-azurite/done .venv-vendor/done
	$(BIN)/ruff format --check cas tests bench demo
	$(BIN)/ruff check cas tests bench demo
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) $(SPREAD) -m "not torch and not tensorflow"
	$(PYTEST) $(SPREAD) -m torch
	$(PYTEST) -m tensorflow
	if [ -d .venv-s3fs/s3fs ]; then PYTHONPATH=.venv-s3fs $(PYTEST) -q tests/test_anyfs.py -k S3fs; fi

# s3fs wants a botocore of its own, so it lies beside; where it cannot be had, its tests skip.
.venv-s3fs/done: .venv/dev
	$(PIP) install --target .venv-s3fs 's3fs>=2024.2' || mkdir -p .venv-s3fs
	@touch $@

# Azure's blob server, from npm; without npm its tests skip.
.venv-azurite/done:
	mkdir -p .venv-azurite
	! command -v npm >/dev/null || npm install --silent --no-audit --no-fund --prefix .venv-azurite azurite@3 >/dev/null || true
	@touch $@

# Peers live in an environment of their own: they must not decide what we are measured with.
.venv-peers/done: bench/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip --disable-pip-version-check -q install -r bench/peers.txt || echo "not all peers can be fetched: the tables say which"
	@touch $@

bench: .venv/dev .venv-peers/done
	$(BIN)/python -m bench $(BENCH)

clean:
	rm -rf .venv .venv-* demo/run .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
