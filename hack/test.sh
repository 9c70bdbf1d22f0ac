#!/usr/bin/env bash
# Runs the tests with a summary at the end. RACE=1: the race detector, on the packages where goroutines meet. SHORT=1:
# without the tests that take minutes. Arguments are packages; none means all.
#
# No test is run again: one that fails once in a hundred runs has found something, in the product or in itself.
set -euo pipefail
cd "$(dirname "$0")/.."
isolated=()

# As root everything that the tests need is available, so a test that skips because something is missing is an error.
if [[ $EUID -eq 0 ]]; then
	export SLIPSTREAM_REQUIRE_ROOT=1
	# Daemons and file system tools live in sbin, which is not on every root's PATH.
	export PATH="$PATH:/usr/sbin:/sbin"
	# Each package has a mount namespace of its own. A container that starts elsewhere on the machine copies the mounts
	# that it sees, and what a test unmounts would stay mounted there.
	isolated=(-exec "unshare --mount --propagation private --")
fi

# Never from the cache: tests build and run the commands, which the cache does not know to be part of them.
args=(-json -timeout 30m -count=1 "${isolated[@]}")
patterns=("$@")
[[ ${#patterns[@]} -gt 0 ]] || patterns=(./...)
if [[ -n ${RACE:-} ]]; then
	args+=(-race)
	[[ $# -gt 0 ]] || patterns=(./pkg/... ./internal/...)
fi
[[ -z ${SHORT:-} ]] || args+=(-short)
# Three packages at a time: tests on loop devices and FUSE mounts run real writers with their own timeouts, and a
# machine with many cores would otherwise start all of them on one disk. Two leave two processors idle for a third of
# the time.
args+=(-p 3)

# go test begins with the packages in this order. With the longest first, none of them is left alone at the end.
module=$(go list -m)
longest=(test/oracle test/sanity pkg/replication test/datapath pkg/operator pkg/shards test/volumes pkg/router
	pkg/driver)
list=$(go list "${patterns[@]}")
mapfile -t packages < <(awk -v "first=${longest[*]/#/$module/}" '
	BEGIN { n = split(first, names, " "); for (i = 1; i <= n; i++) place[names[i]] = i }
	{ print ($0 in place ? place[$0] : n + 1), $0 }' <<<"$list" | sort -s -n -k 1,1 | cut -d " " -f 2)

summary=$(mktemp -d)
trap 'rm -rf "$summary"' EXIT
go build -o "$summary/testsummary" ./hack/testsummary
# Compiling is the longest part of a first run and says nothing.
echo "compiling and running the tests of ${patterns[*]}"
go test "${args[@]}" "${packages[@]}" 2>&1 | "$summary/testsummary"
