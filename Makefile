# gantry: build, test, try out. `make` alone prints what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GOFLAGS_BUILD := -trimpath -ldflags '-s -w -X gantry/internal/config.Version=$(VERSION)'
TOOLS := $(CURDIR)/.cache/bin
VM := $(CURDIR)/.cache/vm
GOLANGCI_VERSION := v2.15.0
GOVULNCHECK_VERSION := v1.8.0
NFPM_VERSION := v2.44.0

# Rounds of random kills: `make test` does a few, `make faults` many.
ROUNDS ?= 40
KILLS ?= 1000
CUTS ?= 100
FUZZTIME ?= 20s
SOAK ?= 20m
OLD ?=

# What `make conformance` runs critest against. FOCUS is a regular expression of specs.
ENGINE ?= native
RUNTIME ?= crun
DOCKERD ?= current
NETWORK ?= builtin
STREAMS ?= spdy
FOCUS ?=

# The packages that `make race-slow` has and `make race-quick` has not.
RACE_SLOW := /internal/(bridge|daemon|dockerlog|engine/docker|engine/native|image|keeper|labdocker)$$

# Which tests `make test-cgroup2` runs.
RUN ?= .

export GANTRY_BIN := $(CURDIR)/bin
export GANTRY_TOOLS := $(TOOLS)

##@ Build

.PHONY: build
build: ## leave bin/gantry and bin/gantry-keeper
	CGO_ENABLED=0 go build $(GOFLAGS_BUILD) -o bin/ ./cmd/gantry ./cmd/gantry-keeper

.PHONY: package
package: build $(TOOLS)/nfpm $(TOOLS)/manpages ## leave a Debian package and a tarball of VERSION in .cache/package
	hack/package '$(VERSION)' bin .cache/package

.PHONY: clean
clean: ## remove what the targets made
	rm -rf bin .cache

##@ Try out

.PHONY: demo
demo: deps build $(TOOLS)/labregistry $(TOOLS)/leftovers ## pull, run, reach, read, exec in and remove a pod; ENGINE=native|docker
	if [[ $(ENGINE) == docker ]]; then $(MAKE) docker-tools; fi
	ENGINE=$(ENGINE) hack/lab hack/demo

.PHONY: shell
shell: deps build $(TOOLS)/crictl $(TOOLS)/labregistry ## a shell in network, mount and process namespaces of its own
	PATH=$(CURDIR)/bin:$(TOOLS):$$PATH hack/lab bash

##@ Test (as root; everything runs in private namespaces)

.PHONY: test
test: deps build tools vet unit e2e crash-quick faults-quick ## everything that must pass before a change lands

.PHONY: vet
vet:
	go vet ./...

.PHONY: unit
unit: deps docker-tools ## the packages' own tests
	go test -timeout 15m ./internal/... ./cmd/...
	cd test/monitoring && go test ./...

.PHONY: e2e
e2e: deps build tools docker-tools ## the real server, crictl and a registry
	go test -timeout 15m -p 1 $$(go list ./test/... | grep -vE '/test/(cgroup2|cluster|faults|crash|conformance)$$')

.PHONY: crash-quick
crash-quick: deps build tools
	go test -timeout 15m -run TestNothingIsLost ./test/crash

.PHONY: fifty
fifty: deps build ## 50 pods that write 100 lines a second each, five on terminals, over 20 kills
	GANTRY_CRASH_ROUNDS=40 go test -timeout 60m -count=1 -v -run TestFiftyPods ./test/crash

.PHONY: faults-quick
faults-quick: deps build tools
	GANTRY_FAULTS_SHARE=50 go test -timeout 15m -count=1 -run 'TestMatrix|TestHolderDeath|TestKillsInRecovery' ./test/faults

.PHONY: faults
faults: deps build tools docker-tools ## kill everything at every point of every call and of recovery, and at random moments: ROUNDS=40 RUNTIME=crun|runc
	mkdir -p .cache/faults
	GANTRY_CRASH_ROUNDS=$(ROUNDS) GANTRY_FAULTS_SHARE=1 GANTRY_FAULTS_RUNTIME=$(RUNTIME) GANTRY_FAULTS_REPORT=$(CURDIR)/.cache/faults \
		go test -timeout 120m -count=1 -p 2 ./test/crash ./test/faults || failed=1; \
		cat .cache/faults/*.txt; exit $${failed:-0}

.PHONY: exchange
exchange: deps build tools ## exchange the binaries of the commit OLD for these and back, under running pods
	[[ -n '$(OLD)' ]] || { echo 'say which: make exchange OLD=v0.1.0' >&2; exit 1; }
	rm -rf .cache/old && mkdir -p .cache/old/src
	git archive '$(OLD)' | tar -x -C .cache/old/src
	cd .cache/old/src && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X gantry/internal/config.Version=$(OLD)' -o .. ./cmd/gantry ./cmd/gantry-keeper
	GANTRY_OLD_BIN=$(CURDIR)/.cache/old go test -timeout 30m -count=1 -v -run TestExchange ./test/faults

.PHONY: soak
soak: deps build tools ## churn pods for SOAK, with everything that can go wrong; nothing may grow
	GANTRY_SOAK=$(SOAK) go test -timeout 120m -count=1 -v -run TestSoak ./test/faults

.PHONY: crash
crash: deps build ## kill the keeper's worker at full log speed, KILLS times
	GANTRY_KILLS=$(KILLS) go test -timeout 60m -count=1 -v -run TestKilledWorkerLosesNothing ./internal/keeper

.PHONY: bench
bench: bench-deps build bench-tools ## gantry, containerd, CRI-O and Docker in turns, into docs/benchmarks: QUICK=1 in a quarter of an hour; PARTS=life,pull
	hack/lab $(TOOLS)/bench/bench -gantry bin/gantry -containerd $(TOOLS)/bench/containerd -debian /usr/bin/containerd \
		-crio $(TOOLS)/bench/crio -dockerd $(TOOLS)/docker/dockerd -tools $(TOOLS)/bench -out $(or $(OUT),docs/benchmarks) \
		$(if $(QUICK),-quick -limit 14m) $(if $(PARTS),-only $(PARTS))

.PHONY: powercut
powercut: deps ## cut the power under pulls at CUTS random moments, and look what is there afterwards
	GANTRY_CUTS=$(CUTS) go test -timeout 60m -count=1 -v -run TestPowerCut ./internal/image

.PHONY: race
race: race-quick race-slow ## the packages' own tests under the race detector

.PHONY: race-quick
race-quick: deps build tools ## those of `make race` that have neither a Docker Engine nor many containers
	CGO_ENABLED=1 go test -race -timeout 15m $$(go list ./internal/... ./cmd/... | grep -vE '$(RACE_SLOW)')

.PHONY: race-slow
race-slow: deps docker-tools build tools ## the others, one package after the other
	CGO_ENABLED=1 go test -race -timeout 30m -p 1 $$(go list ./internal/... ./cmd/... | grep -E '$(RACE_SLOW)')

.PHONY: fuzz
fuzz: deps ## every fuzz target for FUZZTIME
	hack/fuzz $(FUZZTIME)

.PHONY: conformance
conformance: deps build $(TOOLS)/critest $(TOOLS)/busybox $(TOOLS)/nonewprivs ## critest: ENGINE=native RUNTIME=crun|runc, or ENGINE=docker DOCKERD=20.10|current; NETWORK=builtin|cni STREAMS=spdy|websocket
	if [[ $(ENGINE) == docker ]]; then $(MAKE) docker-tools; fi
	ENGINE=$(ENGINE) DOCKERD=$(DOCKERD) RUNTIME=$(RUNTIME) NETWORK=$(NETWORK) STREAMS=$(STREAMS) FOCUS='$(FOCUS)' OUT=$(CURDIR)/.cache/conformance \
		go test -timeout 60m -count=1 ./test/conformance -run TestCritest -v

.PHONY: conformance-bench
conformance-bench: deps build $(TOOLS)/critest $(TOOLS)/busybox $(TOOLS)/nonewprivs ## critest's benchmarks of images: RUNTIME=crun|runc
	RUNTIME=$(RUNTIME) OUT=$(CURDIR)/.cache/conformance go test -timeout 10m -count=1 ./test/conformance -run TestImageBenchmarks -v

.PHONY: test-cgroup2
test-cgroup2: vm-payload docker-tools $(TOOLS)/critest $(TOOLS)/busybox $(TOOLS)/nonewprivs ## pods and critest on cgroup v2 and systemd, in a virtual machine: RUN=regular expression of tests
	hack/package 0.2.0 bin $(VM)/packages
	cp $(VM)/packages/gantry-0.2.0-*.tar.gz $(VM)/payload/gantry.tar.gz
	cp -r $(TOOLS)/critest $(TOOLS)/busybox $(TOOLS)/nonewprivs $(TOOLS)/docker $(VM)/payload
	install -m 755 test/cgroup2/run.sh $(VM)/payload/run
	printf '%s\n' '-test.run=$(RUN)' >$(VM)/payload/arguments
	hack/vm $(VM) $(VM)/payload

.PHONY: test-package
test-package: vm-payload $(TOOLS)/crictl ## install, upgrade, cut the power, remove and purge the Debian package, in a virtual machine
	for version in 0.1.0 0.2.0; do \
		$(MAKE) --no-print-directory build VERSION=$$version; hack/package $$version bin $(VM)/packages; \
	done
	hack/package 0.2.0 bin $(VM)/again
	for made in $(VM)/again/*; do cmp $$made $(VM)/packages/$${made##*/}; done # the same source, the same bytes
	cp $(VM)/packages/*.deb $(TOOLS)/crictl $(VM)/payload
	install -m 755 test/cgroup2/package.sh $(VM)/payload/run
	hack/vm $(VM) $(VM)/payload

.PHONY: vm-payload
vm-payload: vm-deps build $(TOOLS)/nfpm $(TOOLS)/manpages $(VM)/disk.img
	rm -rf $(VM)/payload $(VM)/packages $(VM)/again && mkdir -p $(VM)/payload
	CGO_ENABLED=0 go test -c -trimpath -ldflags '-s -w' -o $(VM)/payload/cgroup2.test ./test/cgroup2

.PHONY: cluster
cluster: deps build $(TOOLS)/crictl kubernetes ## an unmodified Kubernetes on gantry, and what its users do with it: ENGINE=native|docker RUN=regular expression of checks
	if [[ $(ENGINE) == docker ]]; then $(MAKE) docker-tools; fi
	mkdir -p .cache/cluster
	ENGINE=$(ENGINE) GANTRY_CLUSTER_LOGS=$(CURDIR)/.cache/cluster go test -timeout 60m -count=1 -parallel 6 -v ./test/cluster -run 'TestSuite/$(RUN)'

.PHONY: cluster-nodes
cluster-nodes: deps build $(TOOLS)/crictl kubernetes ## the clusters of other shapes: more nodes, feature gates, a node that is full
	go test -timeout 60m -count=1 -parallel 6 -v ./test/cluster -run 'TestGates|TestNodes|TestPressure'

.PHONY: cluster-kubeadm
cluster-kubeadm: deps build docker-tools $(TOOLS)/crictl kubernetes $(TOOLS)/kubernetes/kubeadm ## kubeadm init, join and reset on gantry; from containerd to gantry and back
	go test -timeout 30m -count=1 -v ./test/cluster -run 'TestKubeadm|TestSwitch'

.PHONY: cluster-scale
cluster-scale: deps build docker-tools $(TOOLS)/crictl kubernetes ## 110 pods on a node by one scale-up, on gantry and on containerd, and what it costs
	go test -timeout 60m -count=1 -v ./test/cluster -run TestScale

.PHONY: cluster-up
cluster-up: deps build $(TOOLS)/crictl kubernetes ## start such a cluster and leave it: cluster-shell, cluster-down
	CLUSTER=$(CURDIR)/.cache/cluster hack/cluster up

.PHONY: cluster-shell
cluster-shell: ## a shell where kubectl and crictl reach that cluster
	PATH=$(CURDIR)/bin:$(TOOLS)/kubernetes:$(TOOLS):$$PATH CLUSTER=$(CURDIR)/.cache/cluster hack/cluster shell

.PHONY: cluster-down
cluster-down: ## end it; nothing is left
	CLUSTER=$(CURDIR)/.cache/cluster hack/cluster down

.PHONY: check
check: lint test ## lint and test

.PHONY: lint
lint: $(TOOLS)/golangci-lint ## golangci-lint with the project's rules
	$(TOOLS)/golangci-lint run ./...

.PHONY: vuln
vuln: $(TOOLS)/govulncheck-$(GOVULNCHECK_VERSION) ## known vulnerabilities in what the binaries call; says so where the database cannot be reached
	hack/vuln $<

##@ What the others need

.PHONY: deps
deps: ## install what is missing of the Debian packages the tests use
	hack/install-deps

.PHONY: tools
tools: $(TOOLS)/crictl $(TOOLS)/v1alpha2 $(TOOLS)/labregistry

$(TOOLS)/crictl: test/tools/go.sum
	cd test/tools && CGO_ENABLED=0 go build -trimpath -o $@ sigs.k8s.io/cri-tools/cmd/crictl

.PHONY: vm-deps
vm-deps:
	hack/install-deps vm

# Made again when the recipe changes.
$(VM)/disk.img: hack/vm-image | vm-deps
	hack/vm-image $(VM)

$(TOOLS)/critest: test/tools/go.sum
	cd test/tools && CGO_ENABLED=0 go test -c -trimpath -o $@ sigs.k8s.io/cri-tools/cmd/critest

$(TOOLS)/busybox: hack/busybox
	hack/busybox $@

$(TOOLS)/nonewprivs: test/conformance/standin/nonewprivs/main.go
	CGO_ENABLED=0 go build -trimpath -o $@ ./test/conformance/standin/nonewprivs

KUBERNETES := v1.36.3
KUBERNETES_PROGRAMS := kubelet kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl agnhost etcd metrics-server

.PHONY: kubernetes
kubernetes: $(addprefix $(TOOLS)/kubernetes/,$(KUBERNETES_PROGRAMS))

# A release's programs say their version, which clients and the API server compare.
$(TOOLS)/kubernetes/%: test/cluster/kubernetes/go.sum
	cd test/cluster/kubernetes && CGO_ENABLED=0 go build -trimpath -o $@ -ldflags '-s -w $(KUBERNETES_VARIABLES)' \
		$(or $(KUBERNETES_$*),k8s.io/kubernetes/cmd/$*)

$(TOOLS)/kubernetes/metrics-server: test/cluster/metricsserver/go.sum
	cd test/cluster/metricsserver && CGO_ENABLED=0 go build -trimpath -o $@ -ldflags '-s -w' sigs.k8s.io/metrics-server/cmd/metrics-server

KUBERNETES_VARIABLES := $(addprefix -X k8s.io/component-base/version.,gitVersion=$(KUBERNETES) gitMajor=1 gitMinor=36)
KUBERNETES_agnhost := k8s.io/kubernetes/test/images/agnhost
KUBERNETES_etcd := go.etcd.io/etcd/server/v3

$(TOOLS)/containerd: test/bench/containerd/go.sum
	cd test/bench/containerd && CGO_ENABLED=0 go build -trimpath -tags no_btrfs -o $@ github.com/containerd/containerd/v2/cmd/containerd

.PHONY: docker-deps docker-tools
docker-deps:
	hack/install-deps docker

docker-tools: docker-deps $(TOOLS)/docker/dockerd ## the Docker Engines that tests run: Debian's and today's

# All programs of one engine in a directory of their own: they find each other by name.
$(TOOLS)/docker/dockerd: test/dockerd/go.sum
	cd test/dockerd && CGO_ENABLED=0 go build -trimpath -tags no_btrfs -o $(TOOLS)/docker/ \
		github.com/moby/moby/v2/cmd/docker-proxy github.com/containerd/containerd/v2/cmd/containerd \
		github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
	cd test/dockerd && CGO_ENABLED=1 go build -trimpath -tags seccomp -o $(TOOLS)/docker/ github.com/opencontainers/runc
	cd test/dockerd && CGO_ENABLED=0 go build -trimpath -o $@ github.com/moby/moby/v2/cmd/dockerd

.PHONY: bench-deps
bench-deps: deps
	hack/install-deps bench

# The peers, and what they need; containerd looks for its shim on its PATH.
.PHONY: bench-tools
bench-tools: $(TOOLS)/bench/containerd-shim-runc-v2 $(TOOLS)/bench/crio $(TOOLS)/bench/oldcrun $(TOOLS)/containerd
	CGO_ENABLED=0 go build $(GOFLAGS_BUILD) -o $(TOOLS)/bench/bench ./test/bench
	install -m 755 test/bench/enclose test/bench/join $(TOOLS)/bench
	ln -f $(TOOLS)/containerd $(TOOLS)/bench/containerd

$(TOOLS)/bench/containerd-shim-runc-v2: test/bench/containerd/go.sum
	cd test/bench/containerd && CGO_ENABLED=0 go build -trimpath -o $@ github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2

# pinns, which pins namespaces for CRI-O, is of its module too.
$(TOOLS)/bench/crio: test/bench/crio/go.sum
	cd test/bench/crio && CGO_ENABLED=1 go build -trimpath -tags 'containers_image_openpgp exclude_graphdriver_btrfs seccomp' \
		-o $@ github.com/cri-o/cri-o/cmd/crio
	src=$$(cd test/bench/crio && go list -m -f '{{.Dir}}' github.com/cri-o/cri-o)/pinns/src && \
		gcc -std=c99 -Os -static -o $(TOOLS)/bench/pinns $$src/*.c

$(TOOLS)/bench/oldcrun: test/bench/oldcrun/oldcrun.c
	mkdir -p $(TOOLS)/bench
	gcc -D_GNU_SOURCE -O2 -Wall -static -o $@ $<

$(TOOLS)/v1alpha2: test/v1alpha2/go.sum test/v1alpha2/main.go
	cd test/v1alpha2 && CGO_ENABLED=0 go build -trimpath -o $@ .

# The version is in the name, so that a new pin is built and an old one is never used by mistake.
$(TOOLS)/golangci-lint: $(TOOLS)/golangci-lint-$(GOLANGCI_VERSION)
	ln -sf $(notdir $<) $@

$(TOOLS)/golangci-lint-$(GOLANGCI_VERSION):
	GOBIN=$(TOOLS)/new CGO_ENABLED=0 go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv $(TOOLS)/new/golangci-lint $@

$(TOOLS)/nfpm: $(TOOLS)/nfpm-$(NFPM_VERSION)
	ln -sf $(notdir $<) $@

$(TOOLS)/nfpm-$(NFPM_VERSION):
	GOBIN=$(TOOLS)/new CGO_ENABLED=0 go install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM_VERSION)
	mv $(TOOLS)/new/nfpm $@

$(TOOLS)/govulncheck-$(GOVULNCHECK_VERSION):
	GOBIN=$(TOOLS)/new CGO_ENABLED=0 go install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)
	mv $(TOOLS)/new/govulncheck $@

.PHONY: $(TOOLS)/labregistry $(TOOLS)/leftovers $(TOOLS)/manpages
$(TOOLS)/manpages:
	CGO_ENABLED=0 go build -o $@ ./cmd/gantry/internal/manpages

$(TOOLS)/labregistry:
	CGO_ENABLED=0 go build -o $@ ./test/labregistry

$(TOOLS)/leftovers:
	CGO_ENABLED=0 go build -o $@ ./test/leftovers/cmd

.PHONY: help
help: ## print this
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*##/ {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
