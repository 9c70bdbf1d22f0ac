# What a person does with this repository. `make help` lists the targets from the ## comments below.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Options, e.g. `make oracle ROUNDS=500` or `make demo WORKLOAD=postgres`.
ROUNDS   ?= 100
WORKLOAD ?= sqlite
RESULTS  ?= demo-results
SHOTS    ?=
# How long `make model` simulates.
MODEL_STEPS ?= 50000000
# SHORT=1 leaves out the tests that take minutes.
SHORT    ?=

COMMANDS := $(notdir $(wildcard cmd/*))
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unversioned)

.PHONY: help
help: ## List the targets.
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: ## Build the commands into bin/.
	@hack/deps.sh build
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/ $(addprefix ./cmd/,$(COMMANDS))

.PHONY: generate
generate: ## Generate the code of the APIs, the CRDs, docs/parameters.md and deploy/manifests.
	@hack/deps.sh generate
	hack/generate.sh

.PHONY: update
update: generate ## Bring generated code, formatting and go.mod up to date.
	gofmt -l -w cmd internal pkg test hack
	go mod tidy
	cd hack/monitoring && go mod tidy
	cd hack/krew && go mod tidy
	cd hack/chart && go mod tidy && go test . -rewrite

.PHONY: demo
demo: build ## Kill one of two sites under load and open the other. WORKLOAD=sqlite|postgres, RESULTS=dir.
	@hack/deps.sh demo $(if $(filter postgres,$(WORKLOAD)),demo-postgres)
	bin/slipctl demo --bin-dir bin --workload $(WORKLOAD) --results $(RESULTS)

.PHONY: test
test: build ## Run all tests; as root also those on loop devices and FUSE.
	@hack/deps.sh test
	SHORT=$(SHORT) hack/test.sh

.PHONY: model
model: ## Search and simulate the epochs of groups over several nodes for longer: MODEL_STEPS=50000000 steps.
	go test -count=1 -timeout 6h -v -run 'TestSearch|TestSimulation' ./pkg/replication/epoch \
		-epoch.deep -epoch.steps $(MODEL_STEPS)

.PHONY: test-pages
test-pages: ## Test the status page and the demo's report in headless Chromium (downloads 112 MB). SHOTS=dir keeps pictures.
	@hack/deps.sh pages
	$(if $(SHOTS),mkdir -p $(SHOTS))
	SLIPSTREAM_SCREENSHOTS=$(abspath $(SHOTS)) go test -count=1 -run 'TestPage' -v ./internal/statuspage ./internal/demo

.PHONY: test-race
test-race: ## Run the tests of the packages with goroutines under the race detector.
	@hack/deps.sh test race
	RACE=1 SHORT=$(SHORT) hack/test.sh

.PHONY: oracle
oracle: build ## Search for order violations on loop devices. ROUNDS=n rounds.
	@hack/deps.sh test
	go run ./test/oracle --rounds $(ROUNDS) --bin-dir bin

.PHONY: bench
bench: build ## Measure everything in docs/performance.md, with peers; results in bench-results/.
	@hack/deps.sh bench
	go build -o bin/bench ./test/bench
	bin/bench --bin-dir bin $(BENCH)

.PHONY: bench-list
bench-list: build ## Print what make bench measures, and how long it takes; BENCH="--within 90m" and others choose less.
	go build -o bin/bench ./test/bench
	bin/bench --bin-dir bin --list $(BENCH)

.PHONY: bench-docs
bench-docs: ## Put the results of bench-results/ into README.md, docs/performance.md and the performance notes.
	go build -o bin/bench ./test/bench
	bin/bench --publish

.PHONY: bench-quick
bench-quick: build ## Measure what replication costs an application, in less than 6 minutes; results in bench-results/.
	@hack/deps.sh bench-quick
	go build -o bin/bench ./test/bench
	bin/bench --bin-dir bin --quick $(BENCH)

.PHONY: images
images: ## Build the container images without a container engine, into bin/images/.
	@hack/deps.sh images
	VERSION=$(VERSION) hack/images.sh bin/images

.PHONY: plugin
plugin: ## Build the plugin of kubectl for Linux, macOS and Windows, with a manifest for krew, into bin/plugin/.
	hack/plugin.sh bin/plugin

.PHONY: e2e
e2e: ## Run the tests in two real Kubernetes clusters on this machine; results in e2e-results/. KEEP=1 leaves them.
	@hack/e2e.sh

.PHONY: e2e-kind
e2e-kind: ## Run the same tests in two clusters of kind.
	@hack/e2e-kind.sh

.PHONY: verify
verify: ## Check formatting, vet, staticcheck, house rules, generated code and go.mod.
	@hack/deps.sh generate
	@hack/verify.sh

.PHONY: clean
clean: ## Remove what the targets above leave behind.
	rm -rf bin demo-results bench-results oracle-results e2e-results
