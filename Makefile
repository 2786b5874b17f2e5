# Two commands do all the set-up: `make demo` and `make test`. Nothing is needed before but Python 3.11, make and gcc.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
LOCK ?= deploy/cpu.lock
# Where the CPU build of torch is on your machine, if pip does not find it: PyTorch's own index of CPU wheels.
TORCH_INDEX ?=

VENV := .venv
# One stamp a lock: another LOCK is another set of packages, and wants a virtual environment of its own.
READY := $(VENV)/ready-$(basename $(notdir $(LOCK)))
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -qq --no-deps --no-compile -r $(LOCK)
export HF_HUB_OFFLINE ?= 1
# Bytecode is written at first import, whatever the shell says: a run has six processes or more, and each would otherwise compile
# torch, transformers and vLLM anew, 10 to 20 s of a core every time.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install demo test test-fast models mutation check graph format lock clean

install: $(READY)

# The lock names every package, so nothing is resolved here; the stamp keeps a second run from installing again.
$(READY): $(LOCK) pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no python3.11 found: install Python 3.11 or give PYTHON=..."; exit 1; }
	@for other in $(filter-out $(READY),$(wildcard $(VENV)/ready-*)); do \
	  echo "make: $(VENV) was installed from another lock ($$other): remove $(VENV), or give VENV=another-folder"; exit 1; done
	@echo "installing into $(VENV) from $(LOCK): some minutes, 4 GB or more"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@if $(INSTALL) 2> $(VENV)/install.log; then :; \
	elif [ -n "$(TORCH_INDEX)" ]; then $(INSTALL) --extra-index-url "$(TORCH_INDEX)"; \
	else cat $(VENV)/install.log; \
	  echo "make: the install failed; if torch's CPU build was not found, give TORCH_INDEX=<PyTorch's index of CPU wheels>"; exit 1; fi
	@$(PIP) install -qq --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)
	@$(VENV)/bin/isentrope demo

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

test: check
	$(VENV)/bin/python -m pytest

# For development: the unit tests on all cores, without those that are marked slow.
test-fast: $(READY)
	$(VENV)/bin/python -m pytest --ignore tests/integration -m "not slow" -n auto

# Measures every model family, trainer against engine over 20 updates, and writes docs/models.md; about 20 minutes of a core.
models: $(READY)
	PYTHONPATH=.:tests $(VENV)/bin/python tests/models/table.py

# Draws the imports between the packages into CONTRIBUTING.md anew; a test says when that is due.
graph: $(READY)
	$(VENV)/bin/python tests/support/import_graph.py --write

# Break every formula of the learner once and see a test fail; about fifteen minutes of a core.
mutation: $(READY)
	$(VENV)/bin/python tests/mutation/runner.py

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Needs uv on the PATH, and UV_FIND_LINKS or UV_INDEX where the CPU build of torch is. The CUDA lock is resolved from metadata.
COMPILE = uv pip compile pyproject.toml --extra envs --extra trackers --extra dev --override deploy/overrides.txt \
	--python-version 3.11 --python-platform x86_64-manylinux_2_35 --index-strategy unsafe-best-match \
	--no-header --no-annotate -q
lock:
	$(COMPILE) --extra cpu --prerelease if-necessary-or-explicit -o deploy/cpu.lock
	$(COMPILE) --extra cuda -o deploy/cuda.lock

clean:
	rm -rf $(VENV) models runs build *.egg-info
