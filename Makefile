# `make test` is the whole check: packages, format, lints, tests, doc tests, examples, real guests,
# loom and shuttle models, the slow races, and every command that README.md shows. `make help` lists
# the parts; CONTRIBUTING.md says what each part is for and how long it takes.

SHELL := /bin/bash
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)

# Debian packages that some checks need: HdrHistogram's own log processor, a Java to run it, and
# Python to read JSON.
PACKAGES := libhdrhistogram-java default-jre-headless python3

# What `make test` runs, in this order.
PARTS := packages fmt clippy unit doc examples guests loom shuttle release-tests hdr readme

.PHONY: help test $(PARTS)

help:
	@echo 'make test           every part below, in this order; prints how long each one took'
	@echo 'make packages       install missing Debian packages (as root or by sudo), or say which are missing'
	@echo 'make fmt clippy     formatting, and lints with warnings denied'
	@echo 'make unit doc       all tests, all doc tests (plain `cargo test --workspace` runs the same)'
	@echo 'make examples       every example of every crate, run to its end'
	@echo 'make guests         real guests under two QEMUs, fetched once into ~/.cache/daxlab without root'
	@echo 'make loom shuttle   models of the pin engine; schedules of layout changes and pinners'
	@echo '                    (DAXLAB_CHANGE_SCHEDULES=1000000 make shuttle: so many of layout changes)'
	@echo 'make release-tests  races over many seeds, rates: what needs optimised code'
	@echo "make hdr            HdrHistogram's own tools read what a race writes"
	@echo 'make readme         every command that README.md shows'

test:
	@scripts/timed-parts $(PARTS)

packages:
	@scripts/packages $(PACKAGES)

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --workspace --all-targets -- -D warnings

unit:
	$(CARGO) test --workspace --lib --bins --tests

doc:
	$(CARGO) test --workspace --doc
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --quiet

examples:
	@CARGO='$(CARGO)' scripts/run-examples

guests:
	scripts/guest-packages
	DAXLAB_GUESTS=1 $(CARGO) test --test guests

loom:
	RUSTFLAGS='--cfg daxlab_loom' CARGO_TARGET_DIR=$(TARGET)/loom $(CARGO) test -p emulator --release --test 'loom_*'

# DAXLAB_CHANGE_SCHEDULES sets how many schedules the layout changes run, 200,000 if it is not set.
shuttle:
	RUSTFLAGS='--cfg daxlab_shuttle' CARGO_TARGET_DIR=$(TARGET)/shuttle $(CARGO) test -p fs-sim -p rdma-sim --release --test 'shuttle_*'

release-tests:
	DAXLAB_SLOW=1 $(CARGO) test --release --test seeds --test designs_are_values --test linux_agreement

hdr:
	scripts/hdr-check

readme:
	scripts/readme-commands
