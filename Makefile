# Everything is installed into .venv; nothing outside this folder is touched.
#
#   make demo      detection on the shipped scan, results in demo/
#   make test      lint, then all tests, and how much of the engine they run
#   make test-slicer SLICER=/path/to/Slicer   the panel's tests inside a full Slicer (5.12 or newer)
#   make bench-slicer SLICER=/path/to/Slicer  how quick the panel is inside a full Slicer
#   make panel-pictures  the documentation's pictures of the panel, from those that the tests inside Slicer have taken
#   make lint      ruff (lint and format) and pyright
#   make format    what ruff can mend by itself
#   make docs      the documentation's site, into build/site; `make docs-serve` shows it while it is written
#   make faults    mutated inputs, hostile packages, killed processes at random: SEED (default 1), MINUTES (as many as needed)
#   make bench     speed and memory on this machine
#   make figures   the documentation's pictures, from the demo's results and from the tests of the Slicer module
#   make clean     remove everything that the commands above have made, .venv too
#
# Variables: JOBS, how many files of tests run at a time (default 2); PYTHON, the interpreter (3.10 or newer) that .venv
# is made with; TORCH_INDEX, a package index with the build of torch to install, such as
# https://download.pytorch.org/whl/cu126, or empty for what pip is set up with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Not compiled ahead: of most packages only a small part is ever imported.
PIP_INSTALL := $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check --constraint constraints.txt

# PyPI's torch for Linux brings several GB of CUDA libraries: without an NVIDIA GPU the CPU build is installed.
ifeq ($(shell command -v nvidia-smi 2>/dev/null),)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
endif
# One retry: where the index is out of reach, what pip is set up with serves, and waiting longer does not help.
TORCH_OPTIONS := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX) --retries 1)

SAMPLE := Resources/SampleData/open-ms-patient26-FLAIR.nii.gz
CHECKED := DiffusionAnomaly training examples Testing docs

.PHONY: demo test test-slicer bench-slicer panel-pictures lint format docs docs-serve faults bench figures clean

demo: $(VENV)/engine.installed
	$(BIN)/diffusion-anomaly detect $(SAMPLE) --output demo

JOBS ?= 2

# A file stays in one process, since its tests share what they have made. Each process computes in one thread: what is
# computed is too small for more, and threads of two processes would wait for each other.
test: export OMP_NUM_THREADS = 1
test: lint
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --cov --cov-report=term

# As CMake's slicer_add_python_unittest runs them, but from the checkout; every script is a Slicer of its own. All of them
# run, whatever becomes of the others; the end says which failed.
APP_TESTS := $(sort $(basename $(notdir $(wildcard Testing/app/*Test.py))))

test-slicer:
	@test -n "$(SLICER)" || { echo "Say where Slicer is: make test-slicer SLICER=/path/to/Slicer"; exit 2; }
	@failed=; summary=; for name in $(APP_TESTS); do \
	  if "$(SLICER)" --no-splash --testing --additional-module-paths "$(CURDIR)/DiffusionAnomaly" --python-code \
	    "import slicer.testing; slicer.testing.runUnitTest(['$(CURDIR)/Testing/app'], '$$name')"; \
	  then summary="$$summary\n$$name: passed"; else summary="$$summary\n$$name: FAILED"; failed=yes; fi; \
	done; printf "$$summary\n"; test -z "$$failed"

# After `make test-slicer`: its pictures, with few colours so that they are small.
panel-pictures:
	$(BIN)/python Testing/documentation/panel_pictures.py

bench-slicer:
	@test -n "$(SLICER)" || { echo "Say where Slicer is: make bench-slicer SLICER=/path/to/Slicer"; exit 2; }
	"$(SLICER)" --no-splash --testing --additional-module-paths "$(CURDIR)/DiffusionAnomaly" \
	  --python-script "$(CURDIR)/Testing/benchmarks/panel.py"

lint: $(VENV)/all.installed
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/pyright

format: $(VENV)/all.installed
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

# Strict: a link or an anchor that leads nowhere fails. The variable silences a notice on another program.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/docs.installed
	$(BIN)/mkdocs build --strict --quiet

docs-serve: $(VENV)/docs.installed
	$(BIN)/mkdocs serve

SEED ?= 1

faults: $(VENV)/all.installed
	$(BIN)/python -m Testing.faults --seed $(SEED) $(if $(MINUTES),--minutes $(MINUTES)) --json faults.json
	$(if $(MINUTES),,$(BIN)/python -m Testing.faults.cohort --seed $(SEED) --json faults-cohort.json)

bench: $(VENV)/all.installed
	$(BIN)/python -m Testing.benchmarks

figures: demo $(VENV)/all.installed
	$(BIN)/python docs/figures.py
	$(BIN)/python -m pytest -q Testing/slicer/test_pictures.py
	cp Testing/output/slicer-views.png docs/images/

clean:
	rm -rf $(VENV) demo faults.json faults-cohort.json build dist Testing/output DiffusionAnomaly/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find $(CHECKED) -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: a second run installs nothing until a requirement changes. Torch goes first and alone, so that its index
# serves nothing but torch and what torch asks for.
$(VENV)/torch.installed: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; set PYTHON.")'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(TORCH_OPTIONS) torch
	touch $@

$(VENV)/engine.installed: $(VENV)/torch.installed pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/all.installed: $(VENV)/torch.installed pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[train,dev,slicer,cohort,dicom-node,client,serve]'
	touch $@ $(VENV)/engine.installed

$(VENV)/docs.installed: $(VENV)/engine.installed pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[docs]'
	touch $@
