# Every target sets itself up: a virtual environment in .venv, torch, the kernels, the tools it needs.
# A second run finds the stamps and starts at once.
#
#   make lab            run the experiments, write the report         make lab ARGS="--all --quick"
#   make explain        one epoch by hand, number by number           make explain ARGS="--lang zh"
#   make test           the tests                                     make test ARGS="-k moments"
#   make check          formatters, linters, types, floors, spelling, generated pages
#   make bench          the norm kernels against their peers          make bench ARGS="--shapes resnet50"
#   make docs           write the generated pages anew
#   make check-native   the kernels under the address, undefined-behaviour and thread sanitizers
#   make test-keras-jax the Keras face on Keras's JAX backend
#   make fold-soak    random networks through evenly.fold        make fold-soak MINUTES=5
#   make test-keras-tf  the same on TensorFlow
#   make test-libraries other libraries' models through our tools, in an environment of its own
#   make clean          remove what was built, .venv included
#
# TORCH chooses another release of torch: make test TORCH="torch==2.10.0".
# PYTHON chooses the interpreter that makes .venv; it must be 3.11 or later.

PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   ?= .venv
LIBRARIES ?= .venv-libraries
ARGS   ?=
JOBS   ?= 2
MINUTES ?= 5

bin := $(VENV)/bin
pip := $(bin)/python -m pip --disable-pip-version-check --no-input
# The release of torch is part of the stamp's name, so that another TORCH is installed when asked for.
torch_stamp := $(VENV)/stamps/$(subst =,-,$(subst >,,$(subst <,,$(TORCH))))
sources := pyproject.toml $(wildcard CMakeLists.txt csrc/*.hpp csrc/*.cpp)

.DEFAULT_GOAL := help
.PHONY: help lab explain test check bench docs check-native test-keras-jax test-keras-tf test-libraries fold-soak clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

lab: $(VENV)/stamps/lab
	$(bin)/evenly lab $(ARGS)

explain: $(VENV)/stamps/lab
	$(bin)/evenly explain $(ARGS)

test: $(VENV)/stamps/dev
	$(bin)/python -m pytest -n $(JOBS) $(ARGS)

check: $(VENV)/stamps/dev
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/lint-imports
	$(bin)/codespell
	$(bin)/clang-format --dry-run -Werror $(wildcard csrc/*.hpp csrc/*.cpp csrc/*/*.cpp)
	$(bin)/python docs/generate.py --check

bench: $(VENV)/stamps/dev
	$(bin)/evenly bench $(ARGS)

docs: $(VENV)/stamps/dev
	$(bin)/python docs/generate.py

check-native: $(VENV)/stamps/dev
	$(MAKE) -C csrc check PYTHON=$(abspath $(bin)/python)

test-keras-jax: $(VENV)/stamps/jax
	KERAS_BACKEND=jax $(bin)/python -m pytest -n $(JOBS) tests/keras $(ARGS)

fold-soak: $(VENV)/stamps/dev
	$(bin)/python -m tests.tools.fold.soak --minutes $(MINUTES) $(ARGS)

test-keras-tf: $(VENV)/stamps/tf
	KERAS_BACKEND=tensorflow $(bin)/python -m pytest -n $(JOBS) tests/keras $(ARGS)

test-libraries: $(LIBRARIES)/stamps/libraries
	$(LIBRARIES)/bin/python -m pytest -m slow tests/libraries $(ARGS)

clean:
	rm -rf $(VENV) $(LIBRARIES) build dist

$(VENV)/stamps/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "evenly needs Python 3.11 or later, $(PYTHON) is $$($(PYTHON) --version): make PYTHON=python3.11 …"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' \
	  || { echo "$(PYTHON) cannot make virtual environments: on Debian, apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(@D) && touch $@

# torch first and alone, then pinned: resolving it again could swap it for a build with CUDA.
$(torch_stamp): $(VENV)/stamps/venv
	$(pip) install --quiet "$(TORCH)"
	$(bin)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > $(VENV)/constraints.txt
	$(pip) install --quiet --constraint $(VENV)/constraints.txt "scikit-build-core>=0.11" "nanobind>=2.4" "cmake>=3.26" "ninja>=1.11"
	rm -f $(VENV)/stamps/lab $(VENV)/stamps/dev $(VENV)/stamps/jax
	touch $@

# Editable: Python files are read where they lie; the kernels are compiled when a source of theirs changes.
$(VENV)/stamps/lab: $(torch_stamp) $(sources)
	$(pip) install --quiet --constraint $(VENV)/constraints.txt --no-build-isolation --editable ".[lab]"
	touch $@

$(VENV)/stamps/dev: $(torch_stamp) $(sources)
	$(pip) install --quiet --constraint $(VENV)/constraints.txt --no-build-isolation --editable ".[dev]"
	touch $@ $(VENV)/stamps/lab

$(VENV)/stamps/jax: $(VENV)/stamps/dev
	$(pip) install --quiet --constraint $(VENV)/constraints.txt "jax[cpu]"
	touch $@

$(VENV)/stamps/tf: $(VENV)/stamps/dev
	$(pip) install --quiet --constraint $(VENV)/constraints.txt "tensorflow-cpu"
	touch $@

# What .venv has is seen from here, torch above all; what a library wants otherwise is installed beside it.
# One that cannot be installed is skipped by its tests, which count what they skipped.
$(LIBRARIES)/stamps/libraries: $(VENV)/stamps/dev tests/libraries/requirements.txt
	$(PYTHON) -m venv $(LIBRARIES)
	$(bin)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
	  > $$($(LIBRARIES)/bin/python -c 'import site; print(site.getsitepackages()[0])')/evenly-dev.pth
	while read -r library; do \
	  $(LIBRARIES)/bin/python -m pip --disable-pip-version-check --no-input install --quiet \
	    --constraint $(VENV)/constraints.txt "$$library" || echo "not installed: $$library"; \
	done < tests/libraries/requirements.txt
	mkdir -p $(@D) && touch $@
