# Two commands do all the set-up: `make demo` and `make test`. Everything lives in the virtual environment.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# numpy and torch bring their own thread pools; on a small machine they only get into each other's way.
export OMP_NUM_THREADS ?= 1
# Tests wait for servers half of the time: three processes keep two cores busy.
PARALLEL ?= --numprocesses 3 --dist worksteal

.PHONY: help demo serve test test-long test-proof lint audit format types proto bench install gpu gpu-wheels docs wheel sdist clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

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
	@# So that the first start of a server need not wait; without Numba it runs TorchScript.
	$(BIN)/python -m dnc_serve.model.kernel.warm copy recall graph traversal || true
	@touch $@

demo: $(READY) ## start the real server, stream a sequence, get its memory back, show it
	$(BIN)/dnc demo

serve: $(READY) ## serve the bundled copy model on this machine
	@$(BIN)/dnc serve

test: $(READY) ## all that is promised, against the real TorchServe; some minutes
	$(BIN)/pytest $(PARALLEL)

test-long: $(READY) ## what takes long: trainings, and hundreds of kills, power losses and damages
	$(BIN)/pytest $(PARALLEL) -m long

test-proof: $(READY) ## ten runs of `make test` in a row, every second one on a busy machine: none may fail
	tests/proof.sh $(BIN)/pytest $(PARALLEL)

lint: $(READY) ## ruff, buf, hadolint, shellcheck
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PATH="$(abspath $(BIN)):$$PATH" proto/lint.sh
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck proto/*.sh deploy/*.sh tests/*.sh .ci/run .ci/wheel

audit: $(READY) ## weaknesses that PyPI knows of in what is installed
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

format: $(READY) ## let ruff lay out the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# An editable install is invisible to type checkers and to what reads the source: they see the packages through links.
build/types: pyproject.toml
	mkdir -p build/types/dnc_serve
	ln -sfn ../../../package/__init__.py ../../../package/py.typed build/types/dnc_serve
	for part in model handler proto client; do ln -sfn ../../../$$part build/types/dnc_serve/$$part; done
	@touch $@

types: $(READY) build/types ## mypy, strict
	$(BIN)/mypy -p dnc_serve.model -p dnc_serve.handler -p dnc_serve.client

docs: $(READY) build/types ## the site of documentation, in build/site: no broken link, no public name without a word
	$(BIN)/pip install --quiet --constraint constraints.txt --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The same bytes each time: all dates are the commit's.
EPOCH = $(shell git log -1 --format=%ct)

wheel: $(READY) ## a wheel, in dist/
	rm -rf build/lib build/bdist*
	SOURCE_DATE_EPOCH=$(EPOCH) $(BIN)/python -m build --wheel --outdir dist . >/dev/null

# setuptools gives files of the archive the present date, so it is packed again.
sdist: $(READY) ## the source as one file, in dist/
	$(BIN)/python -m build --sdist --outdir build/sdist . >/dev/null
	cd build/sdist && tar -xzf dnc_serve-*.tar.gz && rm dnc_serve-*.tar.gz
	mkdir -p dist && cd build/sdist && for source in dnc_serve-*; do \
		tar -c --sort=name --mtime=@$(EPOCH) --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw,a-s $$source \
			| gzip -9n > ../../dist/$$source.tar.gz; done
	rm -r build/sdist

proto: $(READY) ## regenerate the code of the contract
	PYTHON=$(BIN)/python proto/generate.sh

bench: $(READY) ## the measured numbers, side by side in one run
	$(BIN)/python -m bench.serving

# A machine with a GPU may have no network: `make gpu-wheels` here, and the folder goes along with the checkout.
GPU_PYTHON ?= 3.12
GPU_WHEELS ?= build/gpu-wheels
GPU_DEVICE ?= cuda

gpu-wheels: $(READY) ## what `make gpu` needs beside torch, as wheels in build/
	$(BIN)/pip download --quiet --no-deps --only-binary=:all: --python-version $(GPU_PYTHON) \
		--constraint constraints.txt --requirement bench/gpu.txt --dest $(GPU_WHEELS)

gpu: ## on a machine with a GPU and torch, without a network: tests on it, and its table in docs/performance.md
	$(PYTHON) -m venv --system-site-packages build/gpu
	build/gpu/bin/pip install --quiet --upgrade --no-index --find-links $(GPU_WHEELS) --no-deps --requirement bench/gpu.txt
	build/gpu/bin/pip install --quiet --no-index --no-deps --no-build-isolation --editable .
	TEST_DEVICE=$(GPU_DEVICE) build/gpu/bin/pytest tests/handler/test_gpu.py
	build/gpu/bin/python -m bench.gpu --device $(GPU_DEVICE) --docs docs

clean: ## everything that was made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
