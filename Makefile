# edgemail: `make run` shows it at work, `make test` tests it. Nothing here needs root.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# A path file instead of an import hook: the hook costs every process 0.9 MiB.
EDITABLE := --config-settings editable_mode=compat

# What is measured is what a Debian box has: its Postfix, and its Python too, where it is new enough.
BENCH_PYTHON = $(or $(shell /usr/bin/python3 -c 'import ensurepip, sys, venv; sys.version_info >= (3, 11) and print(sys.executable)' 2>/dev/null),$(PYTHON))

.DEFAULT_GOAL := help
.PHONY: help install run test check crash fuzz matrix fmt bench benched image image-test image-crash relock clean

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1	\2/p' Makefile | expand -t 18

install: $(VENV)/.installed ## the environment in .venv, with edgemail and the compatible commands in .venv/bin
	@:

run: install ## the relay in the foreground, with a demonstration; CONFIG=my.toml runs your own configuration
ifdef CONFIG
	@exec $(BIN)/edgemail run --config "$(CONFIG)"
else
	@exec $(BIN)/edgemail demo
endif

test: $(VENV)/.tests ## everything that is tested; ARGS="-k name" for a part
	@if [ -f tests/peers/__main__.py ]; then $(BIN)/python -m tests.peers install; fi
	@$(BIN)/python -m pytest --ignore tests/image $(ARGS)

check: $(VENV)/.tests ## formatting, linters, types and unit tests: a minute or two, no network
	@$(BIN)/ruff check -q
	@$(BIN)/ruff format -q --check
	@$(BIN)/mypy
	@$(BIN)/python -m pytest tests/unit --ignore tests/unit/test_linters.py $(ARGS)

crash: $(VENV)/.tests ## cut the power in ten thousand ways, kill the process, let the medium fail; look at what is left (three hours)
	@EDGEMAIL_CRASH_STATES=10000 EDGEMAIL_KILL_ROUNDS=500 EDGEMAIL_FAIL_ALL=1 $(BIN)/python -m pytest tests/crash -s $(ARGS)

fuzz: $(VENV)/.fuzz ## coverage-guided fuzzing, ten minutes for each target; SECONDS=60 TARGETS="dialog http" for less
	@$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),600) $(TARGETS)

matrix: ## unit tests with the libraries of Debian 13 and with the newest ones; PYTHON=python3.13 for another Python
	@for each in debian13 newest; do \
	    $(PYTHON) -m venv --clear .cache/matrix/$$each && \
	    .cache/matrix/$$each/bin/python -m pip install -q --disable-pip-version-check --upgrade --upgrade-strategy eager \
	        -c tests/$$each.txt $(EDITABLE) -e '.[test]' && \
	    echo "--- $$each, $$($(PYTHON) --version)" && \
	    .cache/matrix/$$each/bin/python -m pytest tests/unit --ignore tests/unit/test_linters.py $(ARGS) || exit 1; done

fmt: $(VENV)/.tests ## format the code and write the generated parts of docs/ anew
	@$(BIN)/ruff check -q --fix-only
	@$(BIN)/ruff format -q
	@$(BIN)/python -m tests.reference

bench: ## the same work for edgemail and Postfix, as ratios (root); ARGS="--only relay --rounds 5"
	@$(MAKE) --no-print-directory VENV=.cache/bench PYTHON="$(BENCH_PYTHON)" benched

benched: $(VENV)/.tests
	@$(BIN)/python -m tests.peers install postfix
	@$(BIN)/python -m bench $(ARGS)

image: install ## the system image for a card, in build/ (no root; fetches Debian packages into .cache)
	@$(BIN)/python -m image build

image-test: $(VENV)/.tests ## build the image and start it, update it, cut it and break it under QEMU; ARGS='-m "not long"' for CI's part
	@$(BIN)/python -m pytest tests/image -s $(ARGS)

image-crash: $(VENV)/.tests ## cut the power of the virtual card in 100,000 ways (root; an hour)
	@EDGEMAIL_IMAGE_CUTS=100000 $(BIN)/python -m pytest tests/image/test_power.py -s $(ARGS)

relock: install ## pin today's Debian packages in image/packages.lock
	@$(BIN)/python -m image relock

clean: ## remove what was made here, but for ./var, which may hold mail
	rm -rf $(VENV) .cache build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# Made again when pyproject.toml changes; otherwise no network is needed.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "edgemail needs Python 3.11 or newer; $(PYTHON) is older: make PYTHON=python3.13 install" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "python3-venv is missing: apt install python3-venv" >&2; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check $(EDITABLE) -e .
	@touch $@

$(VENV)/.tests: $(VENV)/.installed
	@$(BIN)/python -m pip install -q --disable-pip-version-check $(EDITABLE) -e '.[test]'
	@touch $@

$(VENV)/.fuzz: $(VENV)/.tests
	@$(BIN)/python -m pip install -q --disable-pip-version-check $(EDITABLE) -e '.[fuzz]' || \
	    { echo "atheris has wheels for CPython 3.11 to 3.13 on x86-64 Linux; elsewhere it is built from source and wants" \
	      "clang with libFuzzer (apt install clang): make CLANG_BIN=/usr/bin/clang fuzz" >&2; exit 1; }
	@touch $@
