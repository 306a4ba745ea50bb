# Lifeboat's commands. `make help` lists them; README.md tells what to expect.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help build generate test race lint e2e soak demo bench bench-fleet clusters-up clusters-down images

export CGO_ENABLED := 0
export GOFLAGS := -buildvcs=false -trimpath

VERSION ?= v0.1.0-dev
LDFLAGS := -s -w -X lifeboat.dev/lifeboat/internal/version.Software=$(VERSION)

help: ## list the commands
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

build: ## build bin/lifeboat and bin/clusters
	@hack/need.sh go
	go build -ldflags '$(LDFLAGS)' -o bin/lifeboat ./cmd/lifeboat
	cd test/clusters && go build -ldflags '-s -w' -o ../../bin/clusters .

generate: bin/controller-gen ## generate deep copies, kinds, roles and the link's protocol from their sources
	@hack/generate.sh

test: build ## lint, unit, crash, API server and storage driver tests, and a short story on two clusters
	@hack/test.sh

race: build ## every test under the race detector, a package at a time (an hour or more)
	@hack/race.sh

lint: bin/lint ## find bugs; no opinion on shape
	@hack/lint.sh

e2e: images ## every story on the two clusters (tens of minutes)
	@hack/e2e.sh

soak: images ## two hours of faults, every recovery point restored and checked (LIFEBOAT_SOAK=10m for less)
	@hack/e2e.sh soak

demo: images ## watch a database move to another cluster and home (KEEP=1 leaves the clusters running)
	@hack/demo.sh

bench: build ## measure the engine and print ratios
	@hack/bench.sh

bench-fleet: build ## measure what 3,000 replications cost one manager
	@hack/bench-fleet.sh

clusters-up: images ## two real Kubernetes clusters on this machine, with Lifeboat in both
	@hack/clusters-up.sh

clusters-down: build ## remove the two clusters and all they were
	bin/clusters down

images: build
	@hack/images.sh

bin/lint bin/controller-gen: hack/tools/go.mod hack/tools/lint/main.go
	@cd hack/tools
	go build -o ../../bin/lint ./lint
	go build -o ../../bin/controller-gen sigs.k8s.io/controller-tools/cmd/controller-gen
