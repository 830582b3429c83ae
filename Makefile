# Two commands do all the set-up: `make demo` and `make test`. Everything lives in the virtual environment.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# numpy and torch bring their own thread pools; on a small machine they only get into each other's way.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo serve test chaos lint format types proto bench install clean

help: ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

install: $(READY) ## the virtual environment, with everything in it

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.3'
	$(BIN)/pip install --quiet --constraint constraints.txt 'torch==2.13.0'
	@# setuptools warns that type checkers don't see such an install; `make types` shows them the packages.
	PYTHONWARNINGS='ignore:Editable installation' \
		$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all]' --group dev
	@# Visdom, which only its own test needs, builds with an old setuptools only.
	$(BIN)/pip install --quiet --constraint constraints.txt --build-constraint tests/visdom-build.txt visdom==0.2.4
	@touch $@

demo: $(READY) ## start the real server, stream a sequence, get its memory back, show it
	$(BIN)/dnc demo

serve: $(READY) ## serve the bundled copy model on this machine
	@$(BIN)/dnc serve

test: $(READY) ## all tests, the end-to-end ones against the real TorchServe included
	$(BIN)/pytest

chaos: $(READY) ## hundreds of kills under load; takes minutes
	$(BIN)/pytest tests/chaos --chaos-kills 200

lint: $(READY) ## ruff, buf, hadolint, shellcheck
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PATH="$(abspath $(BIN)):$$PATH" proto/lint.sh
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck proto/*.sh deploy/*.sh .ci/run .ci/wheel

format: $(READY) ## let ruff lay out the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# An editable install is invisible to type checkers: they see the packages through links.
types: $(READY) ## mypy, strict
	mkdir -p build/types/dnc_serve
	for part in model handler proto client; do ln -sfn ../../../$$part build/types/dnc_serve/$$part; done
	$(BIN)/mypy -p dnc_serve.model -p dnc_serve.handler -p dnc_serve.client

proto: $(READY) ## regenerate the code of the contract
	PYTHON=$(BIN)/python proto/generate.sh

bench: $(READY) ## the measured numbers, side by side in one run
	$(BIN)/python -m bench.serving

clean: ## everything that was made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
