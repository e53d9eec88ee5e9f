# The two commands: `make repro` (everything, on the bundled data set) and `make test`.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# the columns of `dvc exp show` worth reading side by side
COLUMNS_SHOWN = '^Experiment$$|(^|:)(bleu_1|bleu_4|meteor|rouge_l|cider_d|beam_size|dataset|encoder|decoder|attention|seed)$$'

.PHONY: install repro test test-all show clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[pipeline,dev]'
	@touch $@

repro: install
	dvc repro
	@captioner summary

# a file's tests stay in one process: they share its fixtures
TESTS = python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test: install
	$(TESTS) -m 'not slow'

test-all: install
	$(TESTS)

show: install
	@dvc exp show --no-pager --drop '.*' --keep $(COLUMNS_SHOWN)

clean:
	rm -rf .venv .pytest_cache
