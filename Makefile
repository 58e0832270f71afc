# Two commands matter to a newcomer: `make check` (the main job) and `make test` (everything).
# Both rest on `make install`, which does nothing when the environment is up to date.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: install check test lint format figures bench docs wheels clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mixup-theory needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

check: install
	$(BIN)/python -m theory.check_approx --model preact50

test: lint
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

figures: install
	$(BIN)/python -m figures

bench: install
	$(BIN)/python -m benchmarks first_order

# README, records and the API reference as a site, in site/.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# What training needs besides torch, numpy, scipy and matplotlib, for a machine without network.
TARGET ?= 3.12
CARRIED := certifi charset-normalizer docstring_parser idna jaxtyping joblib markdown-it-py mdurl \
  mpmath packaging pandas pillow platformdirs pooch Pygments python-dateutil requests rich \
  safetensors scikit-learn seaborn six sympy threadpoolctl tqdm typeguard typing_extensions tyro \
  urllib3 wadler_lindig

wheels: install
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --python-version $(TARGET) \
	  -c constraints.txt -d wheels $(CARRIED)

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
