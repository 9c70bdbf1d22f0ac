#!/usr/bin/env bash
# Runs the tests with a summary at the end. RACE=1: the race detector, on the packages where goroutines meet. SHORT=1:
# without the tests that take minutes. Arguments are packages; none means all.
#
# In continuous integration (CI=true) a test that failed is run five times more, alone: a machine that was too slow for
# it once is not a reason to refuse a change. If it passes each time it is listed as unsteady, with what it printed when
# it failed, and that is to be mended. Tests of the order of writes and of what survives a kill get no second chance:
# there one failure is a bug.
set -euo pipefail
cd "$(dirname "$0")/.."

# As root everything that the tests need is available, so a test that skips because something is missing is an error.
if [[ $EUID -eq 0 ]]; then
	export SLIPSTREAM_REQUIRE_ROOT=1
	# Daemons and file system tools live in sbin, which is not on every root's PATH.
	export PATH="$PATH:/usr/sbin:/sbin"
fi

# Never from the cache: tests build and run the commands, which the cache does not know to be part of them.
args=(-json -timeout 20m -count=1)
packages=("$@")
[[ ${#packages[@]} -gt 0 ]] || packages=(./...)
if [[ -n ${RACE:-} ]]; then
	args+=(-race)
	[[ $# -gt 0 ]] || packages=(./pkg/... ./internal/...)
fi
[[ -z ${SHORT:-} ]] || args+=(-short)
# Two packages at a time: tests on loop devices and FUSE mounts run real writers with their own timeouts, and a machine
# with many cores would otherwise start all of them on one disk.
args+=(-p 2)

summary=$(mktemp -d)
trap 'rm -rf "$summary"' EXIT
go build -o "$summary/testsummary" ./hack/testsummary
# Compiling is the longest part of a first run and says nothing.
echo "compiling and running the tests of ${packages[*]}"
go test "${args[@]}" "${packages[@]}" 2>&1 | "$summary/testsummary" -failed "$summary/failed" && exit
[[ -n ${CI:-} && -e $summary/failed ]] || exit 1
unsteady=()
while read -r package test; do
	case $package in
	*/test/oracle | */test/datapath | */pkg/replication/core) exit 1 ;;
	esac
	echo "running ${package##*/}.$test again, five times"
	go test -count=5 -failfast -timeout 20m -run "^$test\$" "$package" </dev/null || exit 1
	unsteady+=("${package##*/}.$test")
done <"$summary/failed"
printf '\nunsteady: %s failed once and then passed five times\n' "${unsteady[@]}"
