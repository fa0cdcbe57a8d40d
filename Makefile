# The few commands of the project. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# `make demo KUBECONFIG=FILE` uses that cluster instead of starting one. A KUBECONFIG that is only in
# the environment does not count: nobody should find the demo in his production cluster.
ifeq ($(origin KUBECONFIG),command line)
export KUBECONFIG
export GPUDESK_USE_KUBECONFIG := 1
endif

.PHONY: bench-discovery bench-memory bench-placement bench-prepare help setup generate build everything lint advisories test soak fuzz demo demo-down try-node-in-vm

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what building, testing and the demo need (Debian 12 and 13, Ubuntu 24.04 and later)
	@e2e/install.sh

build: setup ## Build every program
	@cargo build --workspace --all-features --lib --bins

generate: ## Write the definitions of the four kinds into crds/ and into the chart
	@cargo run -q -p gpudesk-crds --features crdgen --bin crdgen -- crds charts/gpudesk/crds

lint: setup ## Formatting, clippy with warnings denied, licences and sources of dependencies, a lean operator
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --all-features -- -D warnings
	@$$(e2e/install.sh --tool cargo-deny) check bans licenses sources
	@! cargo tree -q -p gpudesk-operator -e normal --prefix none | grep -E '^(gpudesk-inventory|kubectl-desktop|comfy-table|png|tar|zstd) '

advisories: setup ## Known vulnerabilities in dependencies (fetches the advisory database)
	@$$(e2e/install.sh --tool cargo-deny) check advisories

# Programs and tests in one go: every dependency is compiled once, with the features that the tests want.
everything: setup
	@cargo build --workspace --all-features --lib --bins --tests --examples

test: everything ## Every test, the end-to-end ones included
	@e2e/control-plane/build.sh > /dev/null
	@e2e/guest/build-tiny.sh > /dev/null
	@e2e/guest/build-image.sh > /dev/null
	@e2e/gpu-node/build.sh > /dev/null
	@e2e/node/build-images.sh --base > /dev/null
	@e2e/install.sh --tool prometheus > /dev/null
	@GPUDESK_BIN_DIR=$(CURDIR)/target/debug e2e/run-tests.py $(if $(BESIDE),--beside "$(BESIDE)")

# The series of Kubernetes that the chart takes, beside the one of all other tests: the oldest and the newest.
SERIES ?= $(patsubst e2e/control-plane/kubernetes-%,%,$(wildcard e2e/control-plane/kubernetes-*))
soak: everything ## The long forms of tests, and the tests of the API on the oldest and the newest Kubernetes; SERIES=1.32 for one
	@GPUDESK_SOAK=1 GPUDESK_BIN_DIR=$(CURDIR)/target/debug e2e/run-tests.py pods given_cards
	@for series in $(SERIES); do \
		echo "== Kubernetes $$series"; \
		GPUDESK_KUBERNETES=$$series e2e/control-plane/build.sh > /dev/null; \
		GPUDESK_KUBERNETES=$$series GPUDESK_BIN_DIR=$(CURDIR)/target/debug e2e/run-tests.py api rbac removal desktops pods; \
	done

SECONDS ?= 30
bench-discovery: ## What discovery costs, as ratios: one JSON line each
	@cargo bench -q -p gpudesk-node-daemon --bench discovery

bench-prepare: ## What making and unmaking shares of cards costs beyond kernel and driver: one JSON line each
	@cargo bench -q -p gpudesk-node-daemon --bench prepare

DESKTOPS ?= 10000
bench-memory: ## Memory of the operator with DESKTOPS=10000 stopped desktops, also while it lists everything anew
	@e2e/control-plane/build.sh > /dev/null
	@cargo build -q --release -p gpudesk-operator -p gpudesk-node-daemon
	@GPUDESK_LEASE_SECONDS=600 GPUDESK_BIN_DIR=$(CURDIR)/target/release cargo run -q -p gpudesk-e2e --example operator_memory -- --desktops $(DESKTOPS)

# OPENB names a folder with the openb trace (cluster-trace-gpu-v2023): it is not part of this project.
bench-placement: ## What a decision costs and how well cards are packed; OPENB=DIR for the openb trace, CHARTS=DIR for SVG
	@cargo bench -q -p gpudesk-placement --bench placement -- $(if $(CHARTS),--chart $(CHARTS)/placement.svg)
	@cargo bench -q -p gpudesk-placement --bench mig
	@cargo bench -q -p gpudesk-placement --bench estate
	@if [ -n "$(OPENB)" ]; then for trace in default multigpu50; do \
		cargo bench -q -p gpudesk-placement --bench openb -- --nodes "$(OPENB)/openb_node_list_gpu_node.csv" \
			--pods "$(OPENB)/openb_pod_list_$$trace.csv"; \
	done; fi

fuzz: ## Hostile input for every parser of discovery, SECONDS=30 each; FUZZ_TARGETS="pci tree" for some
	@command -v cargo-fuzz > /dev/null || cargo install --locked cargo-fuzz
	@cd node-daemon/fuzz; for target in $(or $(FUZZ_TARGETS),$$(cargo fuzz list)); do \
		echo "== $$target, $(SECONDS) s"; \
		mkdir -p "corpus/$$target" "seeds/$$target"; \
		RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none "$$target" "corpus/$$target" "seeds/$$target" -- -max_total_time=$(SECONDS) \
			-rss_limit_mb=2048 -timeout=25 -dict=dictionary.txt -verbosity=0 -print_funcs=0 -print_final_stats=1; \
	done

demo: build ## A whole gpudesk on this machine, with a desktop that runs; WAY=pods or WAY=processes (default: what works)
	@e2e/node/build-images.sh --base > /dev/null || true
	@GPUDESK_BIN_DIR=$(CURDIR)/target/debug target/debug/gpudesk-demo up $(if $(WAY),--$(WAY))

try-node-in-vm: setup ## The node of tests and demo on systemd and cgroup v2, in an emulated Debian
	@e2e/node/try-in-vm.sh $(ARGS)

demo-down: ## Stop the demo and remove all of it
	@if [ -x target/debug/gpudesk-demo ]; then target/debug/gpudesk-demo down; else echo "No demo was built here."; fi
