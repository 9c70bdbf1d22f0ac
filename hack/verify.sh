#!/usr/bin/env bash
# Checks everything about the sources that needs no run of the product. Every check runs; the exit status is 1 when one
# of them failed.
set -uo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=()

# check NAME COMMAND...: output is shown only on failure.
check() {
	local name=$1 start=$SECONDS
	shift
	if "$@" >"$work/out" 2>&1; then
		printf 'ok    %-12s %3ds\n' "$name" $((SECONDS - start))
	else
		printf 'FAIL  %-12s %3ds\n' "$name" $((SECONDS - start))
		sed 's/^/      /' "$work/out"
		failed+=("$name")
	fi
}

gofmt_clean() {
	local files
	files=$(gofmt -l $(ls -d cmd internal pkg test hack 2>/dev/null)) || return 1
	[[ -z $files ]] || { echo "run gofmt -w on:"; echo "$files"; return 1; }
}

# The tree that is checked is a copy, so that a verify never changes the sources it looks at.
generated_fresh() {
	local doc
	command -v protoc >/dev/null || { echo "protoc is missing: run hack/deps.sh generate"; return 1; }
	mkdir -p "$work/tree"
	cp -r go.mod go.sum hack "$work/tree/"
	cp -r pkg internal deploy "$work/tree/" # docs are made from the programs' own registries
	"$work/tree/hack/generate.sh" || return 1
	# protoc's own version stands in a comment and differs between distributions; nothing else may.
	diff -r -I '^// 	protoc  *v' -I '^// - protoc  *v' pkg/api "$work/tree/pkg/api" || {
		echo "generated code is stale: run make generate"
		return 1
	}
	diff -r deploy/charts/slipstream/files/crds "$work/tree/deploy/charts/slipstream/files/crds" || {
		echo "CustomResourceDefinitions are stale: run make generate"
		return 1
	}
	for doc in parameters metrics; do
		diff "docs/$doc.md" "$work/tree/docs/$doc.md" || {
			echo "docs/$doc.md is stale: run make generate"
			return 1
		}
	done
	diff deploy/manifests/slipstream.yaml "$work/tree/deploy/manifests/slipstream.yaml" || {
		echo "deploy/manifests is stale: run make generate"
		return 1
	}
}

# The chart's tests are a module of their own, with Helm; its renderings are checked there.
chart_right() (
	cd hack/chart && go vet ./... && go test -count=1 ./... && go mod tidy -diff
)

# So are those of alerts and dashboards, with Prometheus and the schema of Grafana. The files of the chart are compared
# with what the module writes.
monitoring_right() (
	cd hack/monitoring && go vet ./... && go test -count=1 ./... && go mod tidy -diff
)

# krew checks the manifest of the plugin of kubectl, and installs it. Of the platforms only this one and the most
# different one: a machine without a build cache compiles two minutes for each. `make plugin` builds for all.
plugin_right() (
	export PLATFORMS
	PLATFORMS="$(go env GOHOSTOS)/$(go env GOHOSTARCH) windows/amd64"
	cd hack/krew && go vet ./... && go test -count=1 -timeout 40m ./... && go mod tidy -diff
)

shell_syntax() {
	local file
	for file in hack/*.sh hack/local-cluster/*.sh .ci/run; do bash -n "$file" || return 1; done
}

check gofmt gofmt_clean
check shell shell_syntax
check vet go vet ./...
# With the deliberate faults, which no other build compiles.
check faults go run ./hack/faulty vet ./cmd/... ./pkg/...
check staticcheck go tool staticcheck ./...
check rules go test -count=1 ./hack/lint
check generated generated_fresh
check chart chart_right
check monitoring monitoring_right
check plugin plugin_right
check go.mod go mod tidy -diff

if [[ ${#failed[@]} -gt 0 ]]; then
	echo "verify: failed: ${failed[*]}"
	exit 1
fi
echo "verify: ok"
