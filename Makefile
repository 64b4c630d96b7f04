# heliograph: `make help` lists the targets.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo v0.0.0-dev)
IMAGE   ?= ghcr.io/heliograph-dev/heliograph:dev
GO      ?= go
BIN     := $(CURDIR)/bin
LDFLAGS := -s -w -X github.com/heliograph-dev/heliograph/internal/version.Version=$(VERSION)
# What the lab caches outside of the tree: Kubernetes' binaries, which the tests use as well.
CACHE   := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/heliograph-lab
MODULES := . hack/lab test/bench test/e2e test/interop test/oracle

export CGO_ENABLED ?= 0

## What runs

.PHONY: lab
lab: deps image bin/lab ## A real cluster on a real fabric, with heliograph in it: installs what it needs, builds, starts, proves it, and says where to look
	$(BIN)/lab up
	$(BIN)/lab smoke

.PHONY: lab-down
lab-down: bin/lab ## Remove every trace of the lab
	$(BIN)/lab down

.PHONY: test
test: deps verify test-unit test-vm test-interop test-e2e ## Everything that a change must pass; also on a fresh machine
	@echo "make test: all passed"

## Build

.PHONY: build
build: bin/heliograph bin/heliograph-cni bin/heliograph-reflector bin/portmap bin/kubectl-heliograph ## Build the binaries into bin/

.PHONY: image
image: deps build ## Write bin/heliograph.tar, a docker-archive of the one image, without a container engine
	@$(GO) -C hack/lab run ./cmd/mkimage --ref $(IMAGE) --out $(BIN)/heliograph.tar --entrypoint /heliograph \
		$(BIN)/heliograph:/heliograph:0755 $(BIN)/heliograph-cni:/cni/heliograph-cni:0755 $(BIN)/portmap:/cni/portmap:0755 $$(hack/iptables-files.sh)

# go build knows best what is out of date.
.PHONY: FORCE
FORCE:

bin/heliograph: FORCE
	@$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ .

bin/heliograph-cni: FORCE
	@$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cni/heliograph-cni

bin/heliograph-reflector: FORCE
	@$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./bgp/reflector/heliograph-reflector

bin/portmap: FORCE
	@$(GO) build -trimpath -ldflags '-s -w' -o $@ github.com/containernetworking/plugins/plugins/meta/portmap

bin/kubectl-heliograph: bin/heliograph
	@ln -sf heliograph $@

bin/lab: FORCE
	@$(GO) -C hack/lab build -o $(BIN)/lab .

bin/controller-gen: hack/tools/go.mod
	@$(GO) -C hack/tools build -o $(BIN)/controller-gen sigs.k8s.io/controller-tools/cmd/controller-gen

bin/golangci-lint: hack/tools/lint/go.mod
	@echo "building golangci-lint (some minutes the first time)"
	@$(GO) -C hack/tools/lint build -o $(BIN)/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint

.PHONY: deps
deps: ## Install the Debian packages that lab and tests need; quick if they are there
	@sh hack/deps.sh

## Generated files

.PHONY: generate
generate: bin/controller-gen ## Regenerate deepcopy functions
	@$(BIN)/controller-gen object paths=./api/...

.PHONY: manifests
manifests: bin/controller-gen ## Regenerate the CRDs
	@$(BIN)/controller-gen crd paths=./api/... output:crd:dir=config/crd/bases

## Checks

.PHONY: lint
lint: bin/golangci-lint ## Run the linters
	@$(BIN)/golangci-lint run ./...
	@for m in hack/lab test/bench test/e2e test/interop test/oracle; do (cd $$m && $(BIN)/golangci-lint run ./...); done

.PHONY: verify
verify: lint ## Linters, import rules, generated files and go.mod files up to date
	@hack/verify-generated.sh
	@$(GO) test -count=1 ./internal/archtest
	@for m in $(MODULES); do $(GO) -C $$m mod tidy -diff; done
	@echo "make verify: ok"

.PHONY: test-unit
test-unit: kube ## All Go tests of all modules that need no lab: pure, in namespaces, and against a real API server
	@echo "go test ./... with a real kernel and a real API server"
	HELIOGRAPH_NO_SKIP=1 KUBEBUILDER_ASSETS=$(CACHE)/bin $(GO) test ./...
	$(GO) -C hack/lab test ./...
	$(GO) -C test/oracle test -count=1 ./...

.PHONY: kube
kube: bin/lab ## Build Kubernetes and the lab's images into the cache; quick if they are there
	@$(BIN)/lab build

.PHONY: test-vm
test-vm: ## The kernel drivers' tests on a second kernel, Debian's, in QEMU
	@hack/vm/build.sh
	HELIOGRAPH_NO_SKIP=1 $(GO) test -short -p 1 -timeout 20m -exec $(CURDIR)/hack/vm/run $(VM_PACKAGES)

VM_PACKAGES := ./felix/link ./felix/address ./felix/neigh ./felix/nexthop ./felix/route ./felix/rule ./felix/nft ./felix/nftpolicy ./felix/sysctl \
	./felix/conntrack ./felix/capability ./felix/explain ./felix/agenttest

.PHONY: test-interop
test-interop: bin/heliograph-reflector ## The speaker and the reflector against FRR and BIRD, and the reflector under attack
	HELIOGRAPH_NO_SKIP=1 $(GO) -C test/interop test -count=1 ./...
	HELIOGRAPH_NO_SKIP=1 $(GO) -C test/bench test -count=1 ./reflector

.PHONY: test-e2e
test-e2e: image bin/lab ## The smoke end-to-end tests in the lab; starts it if it is down, and then stops it again
	HELIOGRAPH_NO_SKIP=1 $(GO) -C test/e2e test -count=1 -v -timeout 45m .

.PHONY: test-six
test-six: image bin/lab ## Route reflection in a lab of 6 nodes, where reflectors can be unplugged and deleted as well; it leaves no lab
	HELIOGRAPH_NO_SKIP=1 $(GO) -C test/e2e test -count=1 -v -timeout 20m -run '^TestReflection$$' . -nodes 6
	$(BIN)/lab down

.PHONY: conformance
conformance: deps test-interop conformance-policy ## What others made, on the other end: BGP with FRR and BIRD, CNI 1.1 through libcni, and upstream's own specs of NetworkPolicy and ClusterNetworkPolicy
	HELIOGRAPH_NO_SKIP=1 $(GO) test -count=1 ./cni/... ./felix/localapi ./felix/workload

# Most of a spec's time is connections that nobody answers, so three run at once.
.PHONY: conformance-policy
conformance-policy: image bin/lab ## Upstream's 45 Netpol specs and network-policy-api's suite in the lab, by nftables and by iptables; it stays up
	@$(BIN)/lab build e2e.test >/dev/null
	@$(BIN)/lab up >/dev/null
	@hack/netpol.sh -p 3 -d NFTables
	@hack/netpol.sh -p 3 -d IPTables
	@hack/cnp.sh -d NFTables
	@hack/cnp.sh -d IPTables

## Measures

.PHONY: bench
bench: bench-routes bench-cni bench-policy bench-policy-traffic bench-paths bench-reflector bench-throughput bench-pods bench-failover ## Measure against peers and physical limits: Markdown tables of ratios

.PHONY: bench-pods
bench-pods: image bin/lab
	@$(BIN)/lab up >/dev/null
	@$(GO) -C test/bench run ./cmd/bench pods

# IPIP is measured where there is such a kernel: in the VM, beside the rest on that kernel.
.PHONY: bench-throughput
bench-throughput: bin/bench
	@hack/vm/build.sh >/dev/null
	@missed=0; $(BIN)/bench throughput || missed=1; hack/vm/run $(BIN)/bench throughput || missed=1; exit $$missed

bin/bench: FORCE
	@$(GO) -C test/bench build -trimpath -o $(BIN)/bench ./cmd/bench

# The test measures, and logs the table; failing is missing a limit.
.PHONY: bench-failover
bench-failover: image bin/lab
	@set -o pipefail; HELIOGRAPH_NO_SKIP=1 $(GO) -C test/e2e test . -run '^TestFailover$$' -rounds=5 -v -count=1 -timeout 60m | tee $(BIN)/failover.log | \
		awk '/failover between two racks/ {print "## Failover between two racks\n\nPings every 10 ms, 4 at once, in the lab; the longest gap of each round.\n"} {sub(/^ +/, "")} /^\|/ {print} /^(FAIL|ok)/ {print > "/dev/stderr"}'

bench-%: build ## One part of bench: routes, cni, policy, policy-traffic, paths, reflector, reflector-hostile, throughput, pods, failover
	@$(GO) -C test/bench run ./cmd/bench $*

.PHONY: tail
tail: ## Print the ten longest functions, files and structs: a mirror, not a gate
	@$(GO) run hack/tail.go .

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^## / {print "\n" substr($$0, 4) ":"} /^[a-zA-Z0-9%-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' Makefile
