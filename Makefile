# What people and CI run. `make help` lists the targets.
GO      ?= go
BIN     := bin
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)

# Modules of their own, so that what they need never reaches the product.
NESTED := test/conformance test/cluster test/e2e test/gatewayapi

# The race detector needs a C compiler on Linux; without one the tests still run, and say so. CI insists (RACE=required).
HAVE_CC := $(shell [ "$$($(GO) env CGO_ENABLED)" = 1 ] && command -v $$($(GO) env CC | cut -d' ' -f1) >/dev/null 2>&1 && echo yes)
RACEFLAG := $(if $(HAVE_CC),-race)

.PHONY: help build test portable lint check bench figures fuzz conformance gateway-conformance garden soak netns upgrades cluster-up cluster-down cluster-run cluster-test e2e e2e-figures images clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build the programs into bin/
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/... ./samples/bookinfo/productpage ./samples/bookinfo/details ./samples/bookinfo/reviews ./samples/bookinfo/ratings

test: ## run every test that needs only Go, with the race detector
	@if [ -z "$(RACEFLAG)" ]; then echo "note: no C compiler, so the race detector is off; install gcc to switch it on"; [ "$(RACE)" != required ]; fi
	$(GO) test $(RACEFLAG) $(TESTFLAGS) -shuffle=on -timeout 20m ./...
	@[ -z "$(RACEFLAG)" ] || { echo "without the race detector, which changes what they count: allocations, memory, bytes on their way"; \
		$(GO) test $(TESTFLAGS) -shuffle=on -timeout 10m $$(grep -rlE --include='*_test.go' '^//go:build !race' cmd internal samples | xargs -n 1 dirname | sort -u | sed 's|^|./|'); }

portable: ## what is different on other systems than Linux: it compiles for macOS, tests too, and what stands in for epoll and its like passes the tests
	GOOS=darwin $(GO) vet ./cmd/malha ./cmd/malha-proxy ./internal/app/local ./internal/testport ./samples/bookinfo/...
	$(GO) test -tags portable -timeout 10m ./internal/proxy/conn ./internal/proxy/live ./internal/testmesh

lint: ## gofmt, go vet and the pinned linters, at zero findings
	@test -z "$$(gofmt -l cmd internal samples test)" || { echo "gofmt wants to change:"; gofmt -l cmd internal samples test; exit 1; }
	$(GO) vet ./...
	$(GO) tool -modfile=tools/go.mod golangci-lint run ./...
	@linter=$$($(GO) tool -n -modfile=tools/go.mod golangci-lint) && for module in $(NESTED); do \
		echo "the same in $$module"; (cd $$module && $(GO) vet ./... && $$linter run ./...) || exit 1; done

check: lint test ## lint, tests, and a tidy go.mod; .ci/run runs the rest, too
	$(GO) mod tidy -diff

fuzz: ## run every fuzz target for FUZZTIME (default 20s) each
	test/fuzz.sh

bench: ## every case of docs/benchmarks.md beside nginx, HAProxy, nghttpx and Envoy in one run; writes that page
	test/bench/run.sh

figures: build ## measure what the README claims: start-up time, time to effect, splits, failed requests, memory
	$(GO) run ./test/figures

conformance: ## h2spec and gRPC interop against malha-proxy; writes the tables of docs/conformance.md
	cd test/conformance && $(GO) vet ./... && $(GO) test -count=1 -timeout 15m -results "$(CURDIR)/docs/conformance.md" ./... >conformance.log 2>&1 || { grep -aE -A3 '^ *--- FAIL|_test.go:|^FAIL' conformance.log; exit 1; }
	@tail -n 1 test/conformance/conformance.log

gateway-conformance: ## the Gateway API's own suite on a Kubernetes made for it; writes docs/gateway-api-conformance.yaml and the table of docs/gateway-api.md
	cd test/gatewayapi && $(GO) vet ./... && MALHA_GATEWAYAPI=1 $(GO) test -count=1 -v -timeout 45m -run TestConformance . -version $(VERSION) \
		-report-output "$(CURDIR)/docs/gateway-api-conformance.yaml" -page "$(CURDIR)/docs/gateway-api.md" >conformance.log 2>&1 || { grep -aE '^ *(FAILED:|--- FAIL)|_test.go:|^FAIL' conformance.log; exit 1; }
	@grep -aE '^\| [A-Z]+-[A-Z]+ ' docs/gateway-api.md

garden: ## real servers behind the proxy: each must see exactly what was forwarded (MESSAGES, default 20000)
	test/garden/run.sh

soak: ## what each flood costs the proxy and the client beside it; wants a quiet machine
	cd internal/advisories && MALHA_SOAK=1 $(GO) test -count=1 -timeout 20m -run TestSoak

upgrades: ## UPGRADES (default 20) hitless upgrades of the proxy under load
	MALHA_UPGRADES=$${UPGRADES:-20} $(GO) test -count=1 -timeout 30m -run 'TestUpgrade$$' -v ./cmd/malha-proxy

cluster-up: ## a real Kubernetes on this machine (NODES=2, or as many as there are); docs/cluster.md
	@cd test/cluster && $(GO) run ./cmd $(if $(NODES),-nodes $(NODES)) up

cluster-run: ## run CMD in its network, with its KUBECONFIG: make cluster-run CMD='kubectl get pods -A'
	@cd test/cluster && $(GO) build -o "$(CURDIR)/$(BIN)/cluster" ./cmd
	@$(BIN)/cluster run sh -c '$(subst ','\'',$(CMD))'

cluster-down: ## end it and remove all that it made
	@cd test/cluster && $(GO) run ./cmd down

cluster-test: ## prove the cluster itself: a second one, with its own addresses, comes and goes
	cd test/cluster && $(GO) vet ./... && MALHA_CLUSTER=1 $(GO) test -count=1 -timeout 20m ./...

e2e: ## the mesh, and what introductions deploy, on a Kubernetes of its own (or on KUBECONFIG's)
	cd test/e2e && $(GO) vet ./... && { MALHA_E2E=1 $(GO) test -count=1 -timeout 30m -parallel 3 -v $(if $(RUN),-run '$(RUN)') .; \
		code=$$?; [ -n "$$MALHA_E2E_KEEP" ] || (cd ../cluster && $(GO) run ./cmd -name $${MALHA_E2E_CLUSTER:-e2e} down); exit $$code; }

e2e-figures: ## the figures of docs/kubernetes.md on such a cluster, whole: half an hour on a quiet machine
	cd test/e2e && MALHA_E2E=1 MALHA_E2E_FIGURES=1 $(GO) test -count=1 -timeout 60m -v -run 'TestLoad$(if $(RUN),/$(RUN))' .

netns: ## prove by packets that a pod's traffic is captured; as root, with iproute2 and util-linux
	MALHA_NETNS=1 $(GO) test -count=1 -timeout 10m ./test/netns

images: build ## images of malhad and malha-proxy FROM scratch, with their bills of materials, in bin/images; needs no Docker
	ln -sf malha $(BIN)/kubectl-malha
	$(GO) run ./images -version '$(subst +,-,$(VERSION))' -from $(BIN) -to $(BIN)/images $(if $(ROOTS),-roots $(ROOTS))

clean: ## remove what was built
	rm -rf $(BIN)
