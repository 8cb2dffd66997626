# Everything runs in .venv, made here: all that a machine needs is make and Python 3.11 or later with its venv module.
#
#   make demo [SEED=7] [ENGINE=postgresql]              examples/flights: processes are killed, and every total is right
#   make bank [TRANSFERS=100000] [ENGINE=postgresql] [SEED=7]    examples/bank: its workers and the database are killed
#   make test        every test that ends in 15 minutes, on this Python, and the core on the others that are installed
#   make test-long   the tests with full figures, hours; ARGS="-k deaths" picks some; their table goes into docs/tested.md
#   make bench       the benchmarks; ARGS goes to them
#   make lint types docs                                what CI checks besides

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PYTHON := $(PYTHON)
ifeq ($(PYTHON),)
$(error easybus needs Python 3.11 or later, and none is on the PATH (Debian and Ubuntu: apt-get install python3 python3-venv))
endif

RUN := .venv/bin/python
# The tests start hundreds of Pythons: what one has compiled, the next ones shall find.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(RUN) -m pytest
# Most tests wait, for servers, disks and leases: twice as many at once as two processors run. A worker that has nothing
# left takes over what another has not begun, and each starts the servers that its own tests ask for.
MANY := -n 4 --dist worksteal
# The other Pythons: on the PATH or of pyenv, one of each version, without the one that .venv is made with. They are looked
# for once, by `test` before it starts anything beside anything: while make looks, it starts nothing.
OTHERS = $(eval OTHERS := $(shell for v in 3.11 3.12 3.13; do for p in $(PYTHON) python$$v $$HOME/.pyenv/versions/$$v.*/bin/python; do \
  $$p -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$$v')" 2>/dev/null && { \
  [ $$p = $(PYTHON) ] || echo $$v:$$p; break; }; done; done))$(OTHERS)
VERSIONS = $(foreach other,$(OTHERS),$(firstword $(subst :, ,$(other))))

.PHONY: demo bank test servers test-main test-kills test-outages test-alone test-others others test-long \
  bench lint types docs clean
.DELETE_ON_ERROR:

demo: $(if $(filter-out sqlite,$(ENGINE)),.venv/.test servers,.venv/.demo)
	$(RUN) -m examples.flights $(if $(SEED),--seed $(SEED)) $(if $(ENGINE),--engine $(ENGINE))

bank: .venv/.test servers
	$(RUN) -m examples.bank $(if $(TRANSFERS),--transfers $(TRANSFERS)) $(if $(ENGINE),--engine $(ENGINE)) $(if $(SEED),--seed $(SEED))

# One stage after another, but for the other Pythons, which only compute. Installing them takes what the kills leave over;
# their tests, which have time limits and would starve there, run beside the outages, which leave nearly all. Of those side
# by side each shows its output at its end.
test: .venv/.test servers
	@$(MAKE) --no-print-directory test-main
	@$(MAKE) --no-print-directory --output-sync=target --jobs=3 test-kills others OTHERS='$(OTHERS)'
	@$(MAKE) --no-print-directory --output-sync=target --jobs=3 test-outages test-others OTHERS='$(OTHERS)'
	@$(MAKE) --no-print-directory test-alone

test-main: .venv/.test
	$(PYTEST) $(MANY) -m "not kills and not outages and not alone and not long" $(ARGS)

# These start processes and kill them, and then mostly wait for what the dead had claimed.
test-kills: .venv/.test
	$(PYTEST) $(MANY) -m "kills and not long" $(ARGS)

# Two at once: these stop, kill and freeze servers, and wait until all goes on. The tests of a file share its servers.
test-outages: .venv/.test
	$(PYTEST) -n 2 --dist loadfile -m "outages and not long" $(ARGS)

# One at a time: these measure time, so nothing else may want the machine.
test-alone: .venv/.test
	$(PYTEST) -m "alone and not long" $(ARGS)

# Nice: what runs beside them restarts servers, and says how soon all must go on.
test-others:
	$(if $(OTHERS),@nice -n 10 $(MAKE) --no-print-directory $(VERSIONS:%=.other-%))

others:
	$(if $(OTHERS),@nice -n 10 $(MAKE) --no-print-directory $(VERSIONS:%=.venv-%/.test))

# The servers that no wheel brings: from system packages where that may be done, else it says which are not tested.
servers: .venv/.test
	@$(RUN) -m tests.servers.install

test-long: .venv/.test servers
	$(PYTEST) -m long --timeout 0 $(ARGS)

bench: .venv/.bench
	$(RUN) -m benchmarks $(ARGS)

lint: .venv/.lint
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/.lint
	.venv/bin/pyright --pythonpath $(RUN)
	$(if $(wildcard tests/typing),.venv/bin/pyright --pythonpath $(RUN) tests/typing)
	$(if $(wildcard tests/typing),.venv/bin/mypy)

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet
	@echo "docs: site/index.html"

clean:
	rm -rf .venv .venv-3.* site dist

# ------------------------------------------------------------------------------------------------ the environments

.venv/.made:
	@$(PYTHON) -m venv --clear .venv || { echo >&2; \
	  echo "$(PYTHON) cannot make a virtual environment; Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

.venv/.demo: .venv/.made pyproject.toml
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[cli]'
	@touch $@

.venv/.test: .venv/.made pyproject.toml
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[all,test]'
	@touch $@

.venv/.lint: .venv/.test
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[all,test,lint]'
	@touch $@

# uvloop, the queues that ours is compared with, and the servers that the tests start.
.venv/.bench: .venv/.made pyproject.toml
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[all,test,lint,bench]'
	@touch $@

.venv/.docs: .venv/.made pyproject.toml
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[cli,docs]'
	@touch $@

.venv-%/.test: pyproject.toml
	$(patsubst $*:%,%,$(filter $*:%,$(OTHERS))) -m venv --clear .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.[all,test]'
	@touch $@

.PRECIOUS: .venv-%/.test

# Thousands of runs of the same few lines; and hundreds of processes, of which the rest of the tests start some.
NOT_AGAIN := tests/unit/sending/test_faults.py tests/unit/cli/test_run.py tests/unit/engines/sqlite/test_processes.py

.other-%: .venv-%/.test
	@echo "--- Python $*"
	.venv-$*/bin/python -m pytest -n 2 --dist worksteal \
	  -m "not kills and not outages and not alone and not long and not server" \
	  tests/unit tests/contracts $(NOT_AGAIN:%=--ignore %)
