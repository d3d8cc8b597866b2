# What people and CI run. Needs GNU make, bash, Debian and Rust; `make setup` installs the rest.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Build products and tools stay out of the tree, and are shared by all clones.
HAUBERK_CACHE ?= $(HOME)/.cache/hauberk
export HAUBERK_CACHE
export CARGO_TARGET_DIR := $(HAUBERK_CACHE)/target
export CARGO_TERM_COLOR := never
DENY := $(HAUBERK_CACHE)/tools/bin/cargo-deny
BIN := $(CARGO_TARGET_DIR)/debug

.PHONY: help setup setup-lint build kubernetes demo test soak fuzz e2e cluster cluster-down bench lint fmt clippy doc deny proof tree

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## Install the Debian packages that build, demo and tests need (root, only if some are missing)
	@scripts/setup

setup-lint: setup ## Install what lint needs: rustfmt, clippy, cargo-deny
	@scripts/setup-lint

build: setup ## Build everything
	cargo build --locked --workspace --bins

kubernetes: setup ## Build upstream's Kubernetes for the tests, once (needs Go)
	@e2e/kind/build.sh

demo: build ## Run a small mesh on this machine and show what is encrypted (root); STAY=1 keeps it up
	$(BIN)/hauberk demo $(if $(STAY),--stay)

# The binaries first: tests start them as processes, and cargo builds only those of a test's own package.
test: build kubernetes ## Run every test (root), then check that those which docs/proof.toml names did run
	cargo test --locked --workspace 2>&1 | tee $(HAUBERK_CACHE)/test.log
	$(BIN)/proof ran $(HAUBERK_CACHE)/test.log

soak: setup ## Run what takes long in full, with release builds, and write docs/soak.md (root, quiet machine; 20 minutes)
	cargo build --locked --release --workspace --bins
	@scripts/soak

fuzz: setup ## Fuzz every target for FUZZ_SECONDS (600), from the committed corpora on
	@scripts/fuzz

e2e: build kubernetes ## Run the tests that need pods for longer, on a kind cluster (root), then check as `make test` does
	cargo test --locked --package hauberk-e2e --features full --test full 2>&1 | tee $(HAUBERK_CACHE)/e2e.log
	$(BIN)/proof ran-e2e $(HAUBERK_CACHE)/e2e.log

cluster: build kubernetes ## A kind cluster with Hauberk and an application; says what to try (root)
	@e2e/kind/cluster.sh $(BIN)

cluster-down: ## Delete it
	@e2e/kind/down.sh hauberk

# A short run says nothing that may be quoted, so it leaves the results of a full one alone.
bench: setup ## Measure beside direct, haproxy and nginx, into bench/results.* (root, quiet machine); QUICK=1 is short
	cargo build --locked --release --workspace --bins
	mkdir -p $(HAUBERK_CACHE)/bench
	$(CARGO_TARGET_DIR)/release/hauberk-bench $(if $(QUICK),--quick --out $(HAUBERK_CACHE)/bench,--out bench)

lint: setup-lint fmt clippy doc deny proof tree ## Check form, lints, documents, dependencies and docs/proof.toml

fmt:
	cargo fmt --all --check

clippy:
	cargo clippy --locked --workspace --all-targets --features hauberk-e2e/full -- -D warnings

doc:
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --workspace

deny: ## Check licences, bans and sources of dependencies
	$(DENY) --log-level error check licenses bans sources

proof:
	cargo run --locked --quiet --package hauberk-tests --bin proof -- lint

tree:
	scripts/lint-tree
