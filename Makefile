# Every target sets up what it needs: on a machine with Python >= 3.11, `make demo` is the first command.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest --durations=10
# The acceptance tests start the real processes, which wait for one another: two files run at a time, and the
# files of one service after each other.
FILES_AT_ONCE := 2

.PHONY: demo test lint bench faults soak clean fuzz

demo: $(STAMP)
	$(BIN)/nightsweep demo

# Both halves, to their ends, each with its slowest ten tests last.
test: $(STAMP)
	failed=0; \
	$(PYTEST) -n auto --dist worksteal tests/unit tests/integration tests/gpu || failed=1; \
	$(PYTEST) -n $(FILES_AT_ONCE) --dist loadfile --timeout 1200 tests/acceptance || failed=1; \
	exit $$failed

# Thousands of requests made of the OpenAPI document, to SQLite and to PostgreSQL.
fuzz: $(STAMP)
	$(BIN)/python -m tests.soak.fuzz

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m benchmarks.one_trial
	$(BIN)/python -m benchmarks.pack
	$(BIN)/python -m benchmarks.versus_sequential

# Every named point and moment ten times, on both databases: six hours or so.
faults: $(STAMP)
	$(BIN)/python -m tests.soak.faults.points --times 10

# Faults at random over many small studies: half of the time with two coordinators, half under `nightsweep serve`.
soak: $(STAMP)
	$(BIN)/python -m tests.soak.faults.soak --minutes 30 --seed 1 --database postgresql

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist

# pip reads the constraints file, so every machine gets the versions the project was tested with.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nightsweep needs Python 3.11 or newer; this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	touch $(STAMP)
