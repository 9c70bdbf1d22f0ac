#!/usr/bin/env bash
# Regenerates the Go code of the protobuf files. Plugins are pinned by go.mod's tool lines; protoc comes from hack/deps.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
go build -o "$bin/" google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
for proto in pkg/api/*/*.proto; do
	PATH="$bin:$PATH" protoc -I . --go_out=. --go_opt=paths=source_relative \
		--go-grpc_out=. --go-grpc_opt=paths=source_relative "$proto"
done
