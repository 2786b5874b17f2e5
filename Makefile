# Two commands do all the set-up: `make demo` and `make test`. Nothing is needed before but Python 3.11, make and gcc.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
LOCK ?= deploy/cpu.lock
# Where the CPU build of torch is on your machine, if pip does not find it: PyTorch's own index of CPU wheels.
TORCH_INDEX ?=

VENV := .venv
# One stamp a lock: another LOCK is another set of packages, and wants a virtual environment of its own.
READY := $(VENV)/ready-$(basename $(notdir $(LOCK)))
TRL := .venv-trl/ready
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -qq --no-deps --no-compile -r $(LOCK)
export HF_HUB_OFFLINE ?= 1
# Bytecode is written at first import, whatever the shell says: a run has six processes or more, and each would otherwise compile
# torch, transformers and vLLM anew, 10 to 20 s of a core every time.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install demo test test-fast bench chaos soak fuzz models mutation check graph format lock clean

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

# First what needs a core or less, as many at once as there are cores; then what starts the real stack, two files at a time, since a run
# leaves two cores idle for 40 % of its time; then the faults, whose waits have limits, alone.
FAULTS := tests/chaos/test_short.py
test: check
	$(VENV)/bin/python -m pytest --ignore tests/integration --ignore $(FAULTS) -n auto
	$(VENV)/bin/python -m pytest tests/integration -n 2 --dist loadfile --durations 12
	$(VENV)/bin/python -m pytest $(FAULTS)

# For development: the unit tests on all cores, without those that are marked slow.
test-fast: $(READY)
	$(VENV)/bin/python -m pytest --ignore tests/integration -m "not slow" -n auto

# Measures ratios side by side, about half an hour of two idle cores, and writes them to tests/benchmarks/RESULTS.md; PART=trl measures
# one part, PART="head weights" two, PART=--list names them.
bench: $(READY) $(if $(filter-out trl,$(PART)),$(if $(filter trl,$(PART)),$(TRL)),$(TRL))
	PYTHONPATH=.:tests $(VENV)/bin/python -m benchmarks.run $(PART)

# TRL, which `make bench` compares with, in a virtual environment of its own.
$(TRL): tests/benchmarks/trl/requirements.txt
	@test -x .venv-trl/bin/python || $(PYTHON) -m venv .venv-trl
	@.venv-trl/bin/python -m pip --disable-pip-version-check install -qq --no-deps --no-compile -r $< \
	  $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)")
	@touch $@

# Injects every known fault into real runs and prints what came of it, well over an hour of two cores; ROW=name plays one, see
# `make chaos ROW=--list`.
chaos: $(READY)
	PYTHONPATH=.:tests $(VENV)/bin/python tests/chaos/table.py $(ROW)
	$(if $(ROW),,ISENTROPE_CHAOS=1 $(VENV)/bin/python -m pytest tests/integration/test_job_submit.py -k stopped -s)

# Watches the memory of every process over 2,000 iterations, about half an hour.
soak: $(READY)
	PYTHONPATH=.:tests $(VENV)/bin/python tests/chaos/soak.py --iterations $(or $(ITERATIONS),2000)

# Measures every model family, trainer against engine over 20 updates, and writes docs/models.md; about 20 minutes of a core.
models: $(READY)
	PYTHONPATH=.:tests $(VENV)/bin/python tests/models/table.py

# Draws the imports between the packages into CONTRIBUTING.md anew; a test says when that is due.
graph: $(READY)
	$(VENV)/bin/python tests/support/import_graph.py --write

# Break every formula of the learner once and see a test fail; about fifteen minutes of a core.
mutation: $(READY)
	$(VENV)/bin/python tests/mutation/runner.py

# Five thousand odd recipes, overrides, model folders, checkpoints, logs and environments: each ends with a sentence, none with a
# traceback; about half an hour of a core. A failure names its seed, and that seed is the same input again.
fuzz: $(READY)
	PYTHONPATH=.:tests $(VENV)/bin/python tests/fuzz/runner.py 5000

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Needs uv on the PATH, and UV_FIND_LINKS or UV_INDEX where the CPU build of torch is. The CUDA lock is resolved from metadata.
COMPILE = uv pip compile pyproject.toml --extra envs --extra trackers --extra models --extra eight-bit --extra dev \
	--override deploy/overrides.txt --python-version 3.11 --python-platform x86_64-manylinux_2_35 --index-strategy unsafe-best-match \
	--no-header --no-annotate -q
lock:
	$(COMPILE) --extra cpu --prerelease if-necessary-or-explicit -o deploy/cpu.lock
	$(COMPILE) --extra cuda -o deploy/cuda.lock

clean:
	rm -rf $(VENV) .venv-trl models runs build *.egg-info
