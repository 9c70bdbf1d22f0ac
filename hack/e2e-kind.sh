#!/usr/bin/env bash
# The tests of test/e2e in two clusters of kind, for machines with Docker, kind, kubectl and helm: brings them up, runs the tests,
# takes them down. It does what hack/e2e.sh does, with the same images and the same tests; steps that need the local clusters' own
# line or control plane are skipped, and the table says so.
#
# Nobody has run it yet: the machines that this project is tested on have no Docker.
#
# KEEP=1 leaves the clusters. SLIPSTREAM_E2E_CONTROLLER as in hack/e2e.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for program in docker kind kubectl helm go; do
	command -v $program >/dev/null || { echo "e2e-kind.sh: $program is missing" >&2; exit 1; }
done
export SLIPSTREAM_E2E_PROVIDER=kind
. hack/e2e-prepare.sh

finish() {
	if [[ -z ${KEEP:-} ]]; then
		for site in a b; do kind delete cluster --name "slipstream-$site"; done
	fi
}
trap finish EXIT
kind create cluster --name slipstream-a --config - <<'Y'
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes: [{role: control-plane}, {role: worker}, {role: worker}]
Y
kind create cluster --name slipstream-b
for site in a b; do
	for image in "$images"/*.tar; do
		[[ ${image##*/} == pause.tar ]] || kind load image-archive --name "slipstream-$site" "$image"
	done
done
cd test/e2e
../../bin/e2e.test -test.v -test.timeout 60m
