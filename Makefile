# Two commands set up a fresh machine: `make quickstart` and `make test`. Both need Python 3.11 or later, pip and make.
#
#   make quickstart   create .venv, install, run the main job and print its result table
#   make test         create .venv, install the dev extra, run the tests
#   make check        lint, format and architecture tests
#   make clean        remove .venv and caches; outputs/ stays
#
# Variables: PYTHON=python3.12 picks the interpreter, VENV=path another environment, TEST_ARGS="-k name" goes to pytest.

PYTHON ?= python3
VENV ?= .venv
TEST_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# A stamp is written after its installation ended. `.unfinished` marks an environment that a kill left half made.
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
UNFINISHED := $(VENV)/.unfinished

.PHONY: quickstart test check clean

quickstart: $(INSTALLED)
	$(BIN)/accelerate launch recipes/grpo_planner.py

test: $(INSTALLED_DEV)
	$(BIN)/python -m pytest $(TEST_ARGS)

check: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest tests/architecture

clean:
	rm -rf .venv build .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# $(call install,what): make or mend the environment, then install. torch comes first and bounded, since an unbounded
# one pulls several GB of GPU libraries onto a CPU machine.
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
  echo "recllm needs Python 3.11 or later, and $(PYTHON) is missing or older."; \
  echo "Name another one, for example: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
@if [ -e $(UNFINISHED) ]; then \
  echo "An earlier installation into $(VENV) did not end; starting it over."; \
  find $(VENV) -mindepth 1 ! -path $(UNFINISHED) -delete; \
elif [ -n "$$(ls -A $(VENV) 2>/dev/null)" ] && [ ! -e $(INSTALLED) ]; then \
  echo "$(VENV) was not made by this Makefile and stays as it is."; \
  echo "Remove it or name another folder: make $(MAKECMDGOALS) VENV=path"; exit 1; fi
@mkdir -p $(VENV) && touch $(UNFINISHED) && rm -f $(INSTALLED) $(INSTALLED_DEV)
@[ -e $(VENV)/pyvenv.cfg ] || $(PYTHON) -m venv $(VENV) || { \
  echo "Python's venv module is incomplete. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
$(PIP) install "torch>=2.6,<2.14"
$(PIP) install -e "$(1)"
endef

$(INSTALLED): pyproject.toml
	$(call install,.)
	@touch $(INSTALLED) && rm -f $(UNFINISHED)

$(INSTALLED_DEV): pyproject.toml
	$(call install,.[dev])
	@# deepspeed builds against the torch that is there. Where it does not build, its tests are skipped.
	DS_BUILD_OPS=0 $(PIP) install --no-build-isolation -e ".[deepspeed]" || echo "deepspeed did not build here"
	@touch $(INSTALLED) $(INSTALLED_DEV) && rm -f $(UNFINISHED)
