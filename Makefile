# rondel's commands. `make help` lists them; each needs only Rust, Python 3.11 to 3.14 with venv, a C
# compiler and the package registries. Python packages go into .venv; a second run does only what
# changed, since scripts/setup_env.py keeps account of it.

PYTHON ?= python3
URLS ?=
STEPS ?=
ARGS ?=
QUICK ?=
PYTHONS ?=
# Through the environment and unexpanded, so that no character of a URL means anything to the shell or
# to make.
override URLS := $(value URLS)
export URLS PYTHONS

.DEFAULT_GOAL := help
.PHONY: help run test lint fmt bench build docs wheels pgo clean preflight

help:
	@echo 'make run                  download from an embedded server by aiohttp on both loops, rondel.http, rondel get'
	@echo 'make run URLS="U1 U2"     download these into downloads/'
	@echo 'make test                 everything: formatting, lints, types, unit tests, pytest, CPython'"'"'s suites'
	@echo 'make test STEPS="pytest"  only these steps of it (packages rustfmt clippy ruff mypy cargo-test build'
	@echo '                          stubtest system pytest conformance), and what they need'
	@echo 'make test PYTHONS="3.13"  the tests on these interpreters as well; CI=true takes all supported ones'
	@echo 'make lint                 formatting, lints and types only'
	@echo 'make fmt                  put the formatting right'
	@echo 'make build                build the release extension into .venv'
	@echo 'make bench                measure rondel beside the other loops; QUICK=1 for a first look'
	@echo 'make docs                 build the documentation into site/'
	@echo 'make wheels               build a manylinux wheel for each Python at hand, and try each'
	@echo 'make pgo                  record anew the profile that builds are guided by (takes llvm-profdata)'
	@echo 'make clean                remove what was built and installed; downloads and results stay'
	@echo
	@echo 'PYTHON=python3.13         on any of them: the interpreter to use instead of python3'

preflight:
	@sh scripts/preflight.sh "$(PYTHON)"

build: preflight
	@"$(PYTHON)" scripts/setup_env.py .venv --requirements run --build

run: build
	@set -f; .venv/bin/python examples/run_downloads.py $$URLS

test: preflight
	@"$(PYTHON)" scripts/check.py $(STEPS)

lint: preflight
	@"$(PYTHON)" scripts/check.py rustfmt clippy ruff mypy

fmt: preflight
	@"$(PYTHON)" scripts/setup_env.py .venv --requirements lint
	cargo fmt --all
	.venv/bin/python -m ruff check --fix-only .
	.venv/bin/python -m ruff format .

bench: preflight
	@"$(PYTHON)" benches/run.py $(if $(QUICK),--quick) $(ARGS)

docs: build
	@"$(PYTHON)" scripts/setup_env.py .venv --requirements docs
	@.venv/bin/python -m mkdocs build --quiet
	@echo 'The documentation is in site/index.html.'

wheels: preflight
	@"$(PYTHON)" scripts/wheels.py $(PYTHONS)

pgo: preflight
	@"$(PYTHON)" scripts/pgo.py

clean:
	rm -rf target benches/loadgen/target .venv .venvs .pythons build dist
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	rm -f python/rondel/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
