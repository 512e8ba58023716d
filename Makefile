# `make demo` and `make test` do all set-up; everything lands in .venv, store/ and runs/.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help photos-data photos demo test test-slurm check bench paper sweeps peers photo-sweeps verify clean-store clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $(READY)

photos-data: $(READY)  ## fetch CIFAR-10 and Tiny-ImageNet; PHOTOS_FROM=<folder> unpacks archives that are there
	$(BIN)/python -m experiments.data.photos $(PHOTOS_FROM:%=--from %)

demo: $(READY)  ## poison, train CLIP, detect, report (minutes on 2 cores)
	$(BIN)/python run.py

test: $(READY)  ## all tests, in about 10 minutes on 2 cores
	$(BIN)/python -m pytest

test-slurm: $(READY)  ## install Slurm (Debian, as root), start one of one node, and sweep through it
	command -v slurmctld munged || { apt-get update -q && \
		apt-get install -qy --no-install-recommends slurmctld slurmd slurm-client munge; }
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -e '.[dev,slurm]'
	LOOKOUT_TEST_SLURM=1 $(BIN)/python -m pytest tests/slurm -rs

check: $(READY)  ## linter, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## speed ratios, all from one run on this machine; BENCH="gpu --quick" chooses
	$(BIN)/python -m experiments.bench $(BENCH)

# Sweep after sweep: the first ones train, the later ones find their models in the store. A sweep that ended
# well leaves store/sweeps/<experiment>, and runs again only if a file that may change its results is newer; even
# then it computes only what the store lacks. Two jobs at a time, LOOKOUT_JOBS for more; SWEEP holds other overrides.
SWEEP ?= hydra/launcher=processes runtime.workers=1
STORE := store
EXPERIMENTS := seeds main_table poison_rate k scope k_vs_poisons modality raw_vs_normalised lid_estimators epochs \
	architecture natural_backdoor clean_data adaptive_attacks cost
SWEPT := $(EXPERIMENTS:%=$(STORE)/sweeps/%)
SWEEP_FILES := $(shell find attacks detect experiments conf -name '*.py' -o -name '*.yaml' -not -path '*/experiment/*')

# The same on photographs, at both scales. LOOKOUT_DATA names the folder that `make photos-data` fills.
PHOTO_EXPERIMENTS := seeds scope_and_k attack_rates removal natural_photos
PHOTO_SCALES := photos photos10
PHOTOS_SWEPT := $(foreach scale,$(PHOTO_SCALES),$(PHOTO_EXPERIMENTS:%=$(STORE)/sweeps/$(scale)/%))

photos: photos-data  ## the evidence on photographs: a day on 2 cores, resumable, then seconds
	@$(MAKE) --no-print-directory --keep-going photo-sweeps; status=$$?; \
	$(BIN)/python -m analysis paper --store $(STORE) --out runs/photos && exit $$status

photo-sweeps: $(PHOTOS_SWEPT)

$(PHOTOS_SWEPT): $(SWEEP_FILES)
	$(BIN)/python run.py -m experiment=$(@F) scale=$(notdir $(@D)) 'normalise=[true]' runtime.store=$(STORE) \
		hydra.sweep.dir=runs/photos/$(notdir $(@D))-$(@F) $(SWEEP)
	@mkdir -p $(@D) && touch $@

paper: $(READY)  ## every table and figure at demo scale: 2 hours or more on 2 cores, resumable, then seconds
	@$(MAKE) --no-print-directory --keep-going sweeps; status=$$?; \
	$(BIN)/python -m analysis paper --store $(STORE) && exit $$status

sweeps: $(SWEPT)

PEERS := peers peers_defences
PEERS_SCALE ?= demo

peers: $(READY)  ## attacks x detectors x defences in one table: 6 hours on 2 cores, resumable; PEERS_SCALE=photos
	@status=0; for name in $(PEERS); do $(BIN)/python run.py -m experiment=$$name scale=$(PEERS_SCALE) \
		runtime.store=$(STORE) hydra.sweep.dir=runs/peers/$(PEERS_SCALE)-$$name $(SWEEP) || status=1; done; \
	$(BIN)/python -m analysis table --store $(STORE) --out runs/peers && exit $$status

$(SWEPT): $(STORE)/sweeps/%: conf/experiment/%.yaml $(SWEEP_FILES)
	$(BIN)/python run.py -m experiment=$* runtime.store=$(STORE) hydra.sweep.dir=runs/paper/$* $(SWEEP)
	@mkdir -p $(@D) && touch $@

verify: $(READY)  ## compare everything that was computed with its digests; lists what is damaged
	$(BIN)/python -m experiments.runtime.verify --store $(STORE)

clean-store:  ## remove everything that was computed
	rm -rf store

clean: clean-store  ## remove computed results, runs and the environment
	rm -rf .venv runs multirun
