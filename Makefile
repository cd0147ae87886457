# Every target does its own set-up on a fresh machine: .venv, install, then the job.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# idle threads sleep instead of spinning: on a busy machine that is several times faster
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: quickstart test test-long lint bench clean

quickstart: $(STAMP)
	$(BIN)/manticore run quickstart

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# every case of the fuzzer, of which `make test` runs a sample: an hour or two
test-long: $(STAMP)
	MANTICORE_FUZZ=long OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/test_fuzz.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p manticore

bench: $(STAMP)
	for name in families overhead alignment scan search_methods; do $(BIN)/python benchmarks/$$name.py || exit 1; done

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info
