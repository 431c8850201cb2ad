# make train: environment, embedded text, a small model, a sample.  make test: environment, lint, tests.
# make test-all: the slow tests too.  make test-fast: the tests that compile nothing, in less than 90 s.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PLAN := $(VENV)/plan
PURELIB := import sysconfig; print(sysconfig.get_path("purelib"))

.PHONY: train test test-all test-fast lint clean

train: $(VENV)/.installed
	$(RUN) -m jaxgpt.prepare pydocs
	$(RUN) -m jaxgpt.train --config quickstart $(if $(wildcard runs/quickstart/checkpoints),--resume)
	$(RUN) -m jaxgpt.sample --run runs/quickstart --prompt "Return a " --max-tokens 400
	@echo
	@echo 'To continue, activate the environment and try, for example:'
	@echo '  source $(VENV)/bin/activate'
	@echo '  jaxgpt sample --run runs/quickstart --prompt "Return the "'
	@echo '  jaxgpt configs                    # what else can be trained'

test: TESTS := -m "not slow"
test test-all: $(VENV)/.installed-dev lint $(PLAN)/.installed
	$$(test -e $(PLAN)/.installed && echo $(PLAN)/bin/python || echo $(RUN)) -m pytest -n 2 --dist loadfile $(TESTS)

test-fast: $(VENV)/.installed-dev
	$(RUN) -m pytest -n 2 --dist worksteal -m fast

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxgpt needs Python 3.11 or newer: make PYTHON=python3.12 train")'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(RUN) -m pip install --quiet --editable '.[dev]'
	touch $@

# XLA's compilers for GPUs and TPUs that are not here, 1.4 GB, on top of the environment: in it JAX would take them for
# devices. Without them the tests that need them are skipped.
$(PLAN)/.installed: $(VENV)/.installed-dev
	$(RUN) -m venv $(PLAN)
	$(RUN) -c '$(PURELIB)' > $$($(PLAN)/bin/python -c '$(PURELIB)')/below.pth
	$(PLAN)/bin/python -m pip install --quiet --editable '.[plan-gpu,plan-tpu]' 'setuptools>=77' && touch $@ \
	  || echo "no compilers for GPU and TPU: the tests of jaxgpt.plan that ask them are skipped"

clean:
	rm -rf $(VENV) build *.egg-info
