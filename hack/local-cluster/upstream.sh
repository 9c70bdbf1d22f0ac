#!/usr/bin/env bash
# Copies what a cluster with snapshots needs of external-snapshotter, in the version of tools/go.mod, into a directory:
# the CRDs and the rights of the snapshot controller.
set -euo pipefail
out=$(realpath -m "${1:?directory}")
cd "$(dirname "${BASH_SOURCE[0]}")/tools"
module() { go mod download -json "$1@$(awk -v m="$1" '$1 == m { print $2 }' go.mod)" | jq -r .Dir; }
rm -rf "$out"
mkdir -p "$out"
install -m 644 "$(module github.com/kubernetes-csi/external-snapshotter/client/v8)"/config/crd/*.yaml "$out/"
install -m 644 \
	"$(module github.com/kubernetes-csi/external-snapshotter/v8)"/deploy/kubernetes/snapshot-controller/rbac*.yaml "$out/"
