# `make` alone lists what there is. `make demo` and `make test` first set up what they need, once: a Python
# environment in .venv and, on Debian and only where it needs no password, missing system packages.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input $(if $(CI),--quiet)

# CHROMIUM=/path names a browser for the tests of the page, CHROMIUM=none leaves those tests out.
BROWSER = $(or $(CHROMIUM),$(shell command -v chromium || command -v google-chrome || command -v google-chrome-stable))
NO_BROWSER := $(filter none,$(CHROMIUM))
# What those tests miss: a browser, and on Debian the library that playwright's driver links to.
MISSING = $(if $(NO_BROWSER),,$(if $(BROWSER),,chromium fonts-dejavu-core) $(shell \
	! command -v dpkg >/dev/null || dpkg -s libatomic1 >/dev/null 2>&1 || echo libatomic1))

# $(call apt_install,packages,what for): as root or through a sudo that asks nothing; fails in silence without either.
AS_ROOT = $(shell [ "$$(id -u)" = 0 ] && echo env || { sudo -n true 2>/dev/null && echo sudo -n env; })
apt_install = command -v apt-get >/dev/null && test -n "$(AS_ROOT)" && \
	echo "Installing the Debian packages $(1) ($(2)) ..." && $(AS_ROOT) DEBIAN_FRONTEND=noninteractive \
	sh -c 'apt-get -qq update; apt-get -qq install -y --no-install-recommends $(1)' </dev/null >/dev/null
fail = { echo "make: $(1)" >&2; exit 1; }

ifdef PORT
export GRADIO_SERVER_PORT := $(PORT)
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-slow lint check clean browser

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.stamp-demo ## Open the page on http://127.0.0.1:7860 (another port: make demo PORT=8000)
	@$(BIN)/python app.py

test: $(VENV)/.stamp-dev browser ## Run the tests, without the slow ones (PYTEST_ARGS=… adds options)
	@CHROMIUM="$(BROWSER)" $(BIN)/python -m pytest $(if $(NO_BROWSER),-m "not slow and not browser") $(PYTEST_ARGS)

test-slow: $(VENV)/.stamp-dev browser ## Run the slow tests alone
	@CHROMIUM="$(BROWSER)" $(BIN)/python -m pytest -m "slow$(if $(NO_BROWSER), and not browser)" $(PYTEST_ARGS)

lint: $(VENV)/.stamp-dev ## Check style, format (ruff) and types (pyright)
	@echo "Checking style and format with ruff ..."
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet --diff .
	@echo "Checking types with pyright ..."
	@$(BIN)/pyright --pythonpath $(BIN)/python

check: lint test ## lint, then test

clean: ## Remove .venv and every cache (not checkpoints, not out/)
	rm -rf .venv .pytest_cache .ruff_cache .gradio *.egg-info
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# The stamps lie inside the environment, so that they go when it goes. A stamp is written last: a set-up that was
# interrupted goes on where it stopped.
$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		$(call fail,needs Python 3.11 or newer; name one with PYTHON=/path/to/python3.11)
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ $(call apt_install,python3-venv,for the environment); } || \
		$(call fail,Python's venv module is missing; as root: apt-get install python3-venv)
	@echo "Making a Python environment in $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.stamp-demo: requirements.txt | $(VENV)/.stamp-venv
	@echo "Installing the packages of requirements.txt (about 6 GB with PyTorch, a few minutes, only once) ..."
	@$(PIP) install -r requirements.txt
	@touch $@

$(VENV)/.stamp-dev: requirements-dev.txt requirements.txt | $(VENV)/.stamp-venv
	@echo "Installing the packages of requirements-dev.txt (about 6 GB with PyTorch, a few minutes, only once) ..."
	@$(PIP) install -r requirements-dev.txt
	@touch $(VENV)/.stamp-demo $@

browser:
	@test -z "$(strip $(MISSING))" || \
		{ $(call apt_install,$(strip $(MISSING)),for the tests of the page; up to 300 MB); } || \
		$(call fail,the tests of the page miss $(strip $(MISSING)); as root: apt-get install them; or name a \
		browser with CHROMIUM=/path/to/chrome; or leave them out with CHROMIUM=none)
	@test -z "$(CHROMIUM)" || test -n "$(NO_BROWSER)" || test -x "$(CHROMIUM)" || \
		$(call fail,CHROMIUM=$(CHROMIUM) is no program)
