#!/usr/bin/env bash
# The tests of test/e2e in two clusters of kind, for machines with Docker, kind, kubectl, helm and xfsprogs: brings them
# up, runs the tests, takes them down. As root, because each node's pool gets a file system of its own, in POOLS
# (default /var/tmp/slipstream-kind). It does what hack/e2e.sh does, with the same images and the same tests; steps that
# need the local clusters' own line or control plane are skipped, and the table says so.
#
# It was not run with Docker yet: the machines that this project is tested on have none.
#
#   e2e-kind.sh                 all of it; KEEP=1 leaves the clusters. SLIPSTREAM_E2E_CONTROLLER as in hack/e2e.sh
#   e2e-kind.sh down SITE...    kill sites and remove what they had, as the tests do with site a
#   e2e-kind.sh reboot NODE     kill a node and start it again
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for program in docker kind kubectl helm go mkfs.xfs; do
	command -v $program >/dev/null || { echo "e2e-kind.sh: $program is missing" >&2; exit 1; }
done
. hack/local-cluster/loops.sh
pools=${POOLS:-/var/tmp/slipstream-kind}

# nodes SITE: those with a pool, by kind's names.
nodes() {
	case $1 in
	a) echo slipstream-a-worker slipstream-a-worker2 ;;
	b) echo slipstream-b-control-plane ;;
	esac
}

# mounts NODE: the device numbers of its file systems; of one that does not run, that of its pool.
mounts() {
	local pid
	findmnt -nro MAJ:MIN "$pools/$1" || true
	# The shim's are in no mount table but the node's.
	pid=$(docker inspect -f '{{.State.Pid}}' "$1" 2>/dev/null) || return 0
	[[ $pid == 0 ]] || file_systems "$pid"
}

down() {
	local site node numbers
	for site; do
		# shellcheck disable=SC2046
		numbers=$(for node in $(nodes "$site"); do mounts "$node"; done)
		kind delete cluster --name "slipstream-$site"
		# shellcheck disable=SC2086
		detach_loops_on $numbers
		for node in $(nodes "$site"); do
			! mountpoint -q "$pools/$node" || umount "$pools/$node"
			rm -rf "${pools:?}/$node" "$pools/$node.img"
		done
	done
}

reboot() {
	local numbers
	numbers=$(mounts "$1")
	docker kill "$1" >/dev/null
	# shellcheck disable=SC2086
	detach_loops_on $numbers
	docker start "$1" >/dev/null
}

# configure SITE: its configuration for kind.
configure() {
	local node
	printf '%s\n' "kind: Cluster" "apiVersion: kind.x-k8s.io/v1alpha4" "nodes:"
	[[ $1 == b ]] || echo "  - {role: control-plane}"
	for node in $(nodes "$1"); do
		case $node in
		*-control-plane) echo "  - role: control-plane" ;;
		*) echo "  - role: worker" ;;
		esac
		echo "    extraMounts: [{hostPath: $pools/$node, containerPath: /var/lib/slipstream}]"
	done
}

up() {
	local site=$1 node image
	for node in $(nodes "$site"); do
		mkdir -p "$pools/$node"
		truncate -s 6G "$pools/$node.img"
		# With reflinks, without which volumes in use have no snapshots.
		mkfs.xfs -q -m reflink=1 "$pools/$node.img"
		mount -o loop "$pools/$node.img" "$pools/$node"
	done
	configure "$site" | kind create cluster --name "slipstream-$site" --config -
	for image in "$images"/*.tar; do
		[[ ${image##*/} == pause.tar ]] || kind load image-archive --name "slipstream-$site" "$image"
	done
}

case ${1:-} in
down | reboot)
	"$@"
	exit
	;;
esac
export SLIPSTREAM_E2E_PROVIDER=kind
. hack/e2e-prepare.sh
finish() {
	[[ -n ${KEEP:-} ]] || down a b
}
trap finish EXIT
down a b # what a run with KEEP=1 left
up a
up b
cd test/e2e
../../bin/e2e.test -test.v -test.timeout 60m
