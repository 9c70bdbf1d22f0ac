#!/usr/bin/env bash
# Regenerates the Go code of the protobuf files, deep copies and CustomResourceDefinitions of the Kubernetes objects,
# docs/parameters.md, docs/metrics.md, the chart's dashboards, and deploy/manifests from the chart. Plugins are pinned
# by go.mod's tool lines; protoc comes from hack/deps.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
go build -o "$bin/" google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc \
	sigs.k8s.io/controller-tools/cmd/controller-gen
# csi.proto, which those of csi-addons import.
csi=$(go list -m -f '{{.Dir}}' github.com/container-storage-interface/spec)
for proto in pkg/api/*/*.proto; do
	PATH="$bin:$PATH" protoc -I . -I "$csi" --go_out=. --go_opt=paths=source_relative \
		--go-grpc_out=. --go-grpc_opt=paths=source_relative "$proto"
done
"$bin/controller-gen" object crd paths=./pkg/api/v1alpha1 output:object:dir=pkg/api/v1alpha1 \
	output:crd:dir=deploy/charts/slipstream/files/crds
mkdir -p docs
# Through files of their own: a generator that fails must not leave an empty document.
for doc in parameters:paramdoc metrics:metricsdoc; do
	go run "./hack/${doc#*:}" >"$bin/${doc%:*}.md"
	cp "$bin/${doc%:*}.md" docs/
done
(cd hack/monitoring && go run . ../../deploy/charts/slipstream/files/dashboards)
(cd hack/chart && go build -o "$bin/chart" .)
"$bin/chart" deploy/charts/slipstream --manifests deploy/manifests/values.yaml >"$bin/slipstream.yaml"
cp "$bin/slipstream.yaml" deploy/manifests/slipstream.yaml
