# The two commands: `make repro` (everything, on the bundled data set) and `make test`.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# the columns of `dvc exp show` worth reading side by side, within 80 characters
COLUMNS_SHOWN = '^Experiment$$|(^|:)(Decoder|Seed|bleu_4|meteor|cider_d)$$'

.PHONY: install repro test test-all show pretrained clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[pipeline,onnx,demo,dev]'
	# charts of `dvc plots` without a network
	.venv/bin/python -m captioner.report.dvc_plots .dvc/plots/page.html
	.venv/bin/dvc config --local plots.html_template plots/page.html
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

# the model of photos anew; its trainings took 86 minutes on one core: make pretrained FLICKR8K=/data/flickr8k
pretrained: install
	dvc exp run $$(cat recipes/flickr8k) -S download.root=$(FLICKR8K)
	rm -rf data/pretrained && mkdir data/pretrained && cp -r models data/pretrained/cross_entropy
	dvc exp run $$(cat recipes/self_critical) -S '+train.init_from=data/pretrained/cross_entropy'
	captioner export data/pretrained/half
	cp data/pretrained/half/* captioner/pretrained/flickr8k/
