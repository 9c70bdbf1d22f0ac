#!/usr/bin/env bash
# The tests of test/e2e in two real clusters on this machine: brings them up, runs the tests, takes them down. As root
# on Debian.
#
# Programs and images are built first, in the first run for as long as half an hour (see local-cluster/build.sh for the
# cache). What was shown is printed as a table, which is also in e2e-results/summary.md, with the logs of failed steps
# beside it.
#
# KEEP=1 leaves the clusters, and a run with KEEP=1 uses those that are there, unless a site was destroyed.
# SLIPSTREAM_E2E_CYCLES is how often the search for leaks goes round (default 50). SLIPSTREAM_E2E_ANALYTICS is how many
# snapshots of the copy are read, one a minute (default 1). SLIPSTREAM_E2E_SEED repeats the kills of a run. RUN is the
# expression of go test -run for the steps, as in RUN='TestE2E/(install|leaks)'. SLIPSTREAM_E2E_CONTROLLER is the
# chart's controller.mode, controller (default) or node. SLIPSTREAM_E2E_FAULT=promote-anywhere builds the programs with
# this deliberate fault, and runs the step that has to show it, shop-on-two-nodes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -n ${SLIPSTREAM_E2E_FAULT:-} ]]; then
	grep -q "Name = \"$SLIPSTREAM_E2E_FAULT\"$" internal/bug/bug.go ||
		{ echo "e2e.sh: internal/bug/bug.go has no fault $SLIPSTREAM_E2E_FAULT" >&2; exit 1; }
	RUN=${RUN:-'TestE2E/(install|shop-on-two-nodes)'}
fi
hack/deps.sh cluster images
export SLIPSTREAM_CLUSTERS=${SLIPSTREAM_CLUSTERS:-e2e}
# A file system of its own for each node's pool: with a size, and with reflinks.
export SLIPSTREAM_POOL_SIZE=${SLIPSTREAM_POOL_SIZE:-6G}
export SLIPSTREAM_IMAGES=$PWD/bin/images SLIPSTREAM_E2E_PROVIDER=local
# Before the clusters come up: building beside them makes both slow.
hack/local-cluster/build.sh >/dev/null
. hack/e2e-prepare.sh

finish() {
	[[ -n ${KEEP:-} ]] || hack/local-cluster.sh down
}
trap finish EXIT
if [[ -n ${KEEP:-} ]] && hack/local-cluster.sh exec a1 true 2>/dev/null &&
	hack/local-cluster.sh exec b1 true 2>/dev/null; then
	hack/local-cluster.sh load "$images"/*.tar
else
	KEEP="" hack/local-cluster.sh down
	hack/local-cluster.sh up a:2 b:1
fi
(cd test/e2e && ../../bin/e2e.test -test.v -test.timeout 60m -test.run "${RUN:-.}")
