# The two commands: `make repro` (everything, on the bundled data set) and `make test`.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# columns of `dvc exp show` that are the same in every row or explain nothing
HIDE = 'Created|State|Executor|sources|captioner|data/|models|download\.|extract\.(version|seed|fit|views|precision|batch_size)|vocab\.|train\.|evaluate\.|runtime\.|signature|val_|plots'

.PHONY: install repro test test-all show clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

repro: install
	dvc repro
	@captioner summary

test: install
	python -m pytest -m 'not slow'

test-all: install
	python -m pytest

show: install
	@dvc exp show --no-pager --drop $(HIDE)

clean:
	rm -rf .venv .pytest_cache
