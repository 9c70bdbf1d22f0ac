#!/usr/bin/env bash
# Kubernetes' own tests of a storage driver (test/e2e, the specs of "External Storage") with deploy/testdriver.yaml, at
# a site of hack/local-cluster.sh where the chart is installed. Not part of CI: the whole takes hours.
#
#   external-storage.sh build     build the tests from the Go module proxy, once; prints the directory that they are in
#   external-storage.sh list      the counts and names of the specs, without a cluster
#   external-storage.sh run       load the images of the test pods into the nodes, run the specs, print the counts
#
# The tests are those of k8s.io/kubernetes, unchanged, in the version of external-storage/go.mod, and lie beside the
# clusters' programs (see local-cluster/build.sh). Their pods want four images, for which there is no registry here: all
# are made of Debian's busybox, agnhost with its own program, one with GNU's dd and Debian's shell; what else the
# originals have, name and web servers, is not in them.
#
# First PROCS (default 2) at a time those that can share a cluster ("shared") and those that change volumes in use
# ("modify"), then those of group snapshots ("groups") and the disruptive ones, which restart the kubelet
# ("disruptive"). They do that by ssh and systemctl, so the nodes get a small server of that kind for the time
# (external-storage/nodessh), and a systemctl and a crictl that knows their programs.
#
# SITE is where they run (default a), SLIPSTREAM_CLUSTERS the instance. CLASS is the StorageClass whose volumes are
# tested (default slipstream), MODIFY_CLASS the one for changes, whose volumes have to be replicable, GROUP_CLASS the
# one for group snapshots, which on several nodes has to have a consistency group (both default CLASS), DRIVER another
# driver definition. RUNS chooses among the four above, FOCUS and SKIP specs, as ginkgo's expressions do. RESULTS
# (default external-storage-results) gets the logs and JUnit reports.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

verb=${1:-}
case $verb in
build | list | run) ;;
*)
	awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
	[[ $verb == help || $verb == --help ]] && exit
	exit 2
	;;
esac

module=hack/external-storage
kubernetes=$(go -C $module list -m -f '{{.Version}}' k8s.io/kubernetes)
cache=${SLIPSTREAM_CLUSTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/slipstream/cluster}
# The tests do not start without their version.
version=k8s.io/component-base/version
minor=$(cut -d. -f2 <<<"$kubernetes")
flags="-s -w -X $version.gitVersion=$kubernetes -X $version.gitMajor=1 -X $version.gitMinor=$minor"
key=$({ go env GOVERSION GOARCH; cat $module/go.{mod,sum}; echo "$flags"; } | sha256sum | cut -c1-16)
suite=$cache/suite-$key

build() {
	local work
	[[ ! -x $suite/e2e.test || ! -x $suite/agnhost || ! -x $suite/ginkgo ]] || return 0
	mkdir -p "$suite"
	exec 9>"$cache/lock-suite"
	flock 9
	work=$(mktemp -d "$cache/build-XXXXXXXX")
	# shellcheck disable=SC2064
	trap "rm -rf '$work'" EXIT
	# Other work on this machine comes first, as in local-cluster/build.sh.
	read -ra idle <<<"${SLIPSTREAM_BUILD_IDLE-nice -n 19 chrt -i 0}"
	export CGO_ENABLED=0
	[[ -x $suite/agnhost && -x $suite/ginkgo ]] || "${idle[@]}" go -C $module build -p 2 -trimpath -ldflags "-s -w" -o \
		"$work/" \
		k8s.io/kubernetes/test/images/agnhost github.com/onsi/ginkgo/v2/ginkgo >&2
	[[ -x $suite/e2e.test ]] || "${idle[@]}" go -C $module test -c -vet=off -p 2 -trimpath -o "$work/e2e.test" \
		-ldflags "$flags" k8s.io/kubernetes/test/e2e >&2
	mv "$work"/* "$suite/"
	exec 9>&-
}

# images DIRECTORY: those that the tests ask for by name.
images() {
	local manifest work root name id tag applet program options
	local -A ids=([busybox]=BusyBox [agnhost]=Agnhost [glibc-dns-testing]=GlibcDnsTesting [nginx]=Nginx)
	manifest=$(go -C $module list -f '{{.Dir}}' k8s.io/kubernetes/test/utils/image)/manifest.go
	work=$(mktemp -d)
	mkdir -p "$1"
	for name in "${!ids[@]}"; do
		root=$work/$name id=${ids[$name]} options=(--cmd sh)
		mkdir -p "$root"/{bin,etc,tmp,usr}
		chmod 1777 "$root/tmp"
		ln -s ../bin "$root/usr/bin"
		ln -s bin "$root/sbin"
		printf 'root:x:0:0:root:/:/bin/sh\n' >"$root/etc/passwd"
		printf 'root:x:0:\n' >"$root/etc/group"
		cp "$(command -v busybox)" "$root/bin/busybox"
		for applet in $(busybox --list); do
			[[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
		done
		case $name in
		agnhost)
			cp "$suite/agnhost" "$root/agnhost"
			options=(--entrypoint /agnhost --cmd pause)
			;;
		glibc-dns-testing)
			# The tests of raw block want GNU's dd, for oflag=nocache, and a shell that does not take its own instead.
			for program in dd dash; do
				rm -f "$root/bin/$program"
				cp "$(command -v $program)" "$root/bin/$program"
				ldd "$(command -v $program)" | grep -oE '/[^ ]+' | xargs -I{} cp -L --parents {} "$root"
			done
			ln -sf dash "$root/bin/sh"
			;;
		esac
		tag=$(sed -nE "s/.*configs\[$id\] = Config\{list.PromoterE2eRegistry, \"$name\", \"([^\"]+)\"\}.*/\1/p" "$manifest")
		go run ./hack/mkimage -o "$1/$name.tar" --name \
			"registry.k8s.io/e2e-test-images/$name:${tag:?no version of $name in $manifest}" "${options[@]}" "$root"
	done
	rm -rf "$work"
}

build
if [[ $verb == build ]]; then
	echo "$suite"
	exit
fi

results=$(realpath -m "${RESULTS:-external-storage-results}")
mkdir -p "$results"
options=(-repo-root="$PWD" -provider=local)
choice=(--focus="${FOCUS:-External Storage}" --skip="${SKIP:-}" --no-color -v)
# driver CLASS makes the driver's definition with that class and prints its name. The tests run in the directory of
# their program, so files are named whole.
driver() {
	sed -E "s/(FromExistingClassName:) slipstream$/\1 $1/; s,(FromFile:) deploy/,\1 $PWD/deploy/," \
		"${DRIVER:-deploy/testdriver.yaml}" >"$results/testdriver-$1.yaml"
	echo "$results/testdriver-$1.yaml"
}
class=${CLASS:-slipstream}
if [[ $verb == list ]]; then
	"$suite/ginkgo" "${choice[@]}" --dry-run "$suite/e2e.test" -- "${options[@]}" \
		-storage.testdriver="$(driver "$class")" >"$results/list.log" 2>&1 ||
		{ tail -20 "$results/list.log" >&2; exit 1; }
	grep -oE '^External Storage .*' "$results/list.log" | sort -u
	grep -E '^Ran [0-9]+ of' "$results/list.log"
	exit
fi

hack/deps.sh cluster images
images "$results/images"
hack/local-cluster.sh load "$results"/images/*.tar
eval "$(hack/local-cluster.sh env)" # BIN
site=${SITE:-a}
kubeconfig=$(hack/local-cluster.sh kubeconfig "$site")

# open_nodes lets the tests run commands on the nodes of the site, with a key of this run.
nodes=()
open_nodes() {
	local node
	export LOCAL_SSH_KEY=$results/ssh-key KUBE_SSH_USER=root
	go -C $module build -o "$results/nodessh" ./nodessh
	"$results/nodessh" keygen "$LOCAL_SSH_KEY"
	mkdir -p "$results/sbin"
	printf '#!/bin/sh\nBIN=%q exec %q "$@"\n' "$BIN" "$PWD/$module/node-bin/crictl" >"$results/sbin/crictl"
	chmod +x "$results/sbin/crictl"
	for node in $(cd "$STATE" && compgen -G "$site[1-9]"); do
		cat >"$STATE/$node/run/ssh.cmd" <<-EOF
			export NODE_DIR="$STATE/$node" BIN="$BIN" SERVICE="$PWD/hack/local-cluster/service.sh" \
				PATH="$PWD/$module/node-bin:\$PATH"
			exec "$results/nodessh" serve :22 "$LOCAL_SSH_KEY.pub"
		EOF
		hack/local-cluster.sh service "$node" start ssh
		# Some commands come out of a pod instead, with a container's PATH.
		hack/local-cluster.sh exec "$node" mount --bind "$results/sbin" /usr/local/sbin
		nodes+=("$node")
	done
}

close_nodes() {
	local node
	for node in "${nodes[@]}"; do
		hack/local-cluster.sh service "$node" stop ssh || true
		hack/local-cluster.sh exec "$node" umount /usr/local/sbin || true
		rm -f "$STATE/$node/run/ssh.cmd"
	done
	rm -rf "$results"/ssh-key{,.pub} "$results/nodessh" "$results/sbin"
}

# specs NAME PROCS CLASS LABELS runs those with the labels, if NAME is among RUNS.
specs() {
	local log=$results/$1.log
	[[ " ${RUNS:-shared modify groups disruptive} " == *" $1 "* ]] || return 0
	echo "$1: running, see $log"
	KUBECONFIG=$kubeconfig hack/local-cluster.sh wan "$suite/ginkgo" "${choice[@]}" --procs="$2" --label-filter="$4" \
		--timeout="${TIMEOUT:-6h}" \
		--output-dir="$results" --junit-report="$1.xml" "$suite/e2e.test" -- "${options[@]}" \
		-storage.testdriver="$(driver "$3")" \
		-kubeconfig="$kubeconfig" -kubectl-path="$BIN/kubectl" >"$log" 2>&1 || code=$?
	grep -E '^ *\[(FAIL|INTERRUPTED|TIMEDOUT|PANICKED)[^]]*\]' "$log" | sort -u || true
	grep -E '^(Ran [0-9]+ of|(SUCCESS|FAIL)! --)' "$log" || { tail -20 "$log" >&2; exit 1; }
}

code=0
trap close_nodes EXIT
open_nodes
groups='Feature: containsAny volumegroupsnapshot' changes='Feature: containsAny VolumeAttributesClass'
specs shared "${PROCS:-2}" "$class" "!Disruptive && !($groups) && !($changes)"
specs modify "${PROCS:-2}" "${MODIFY_CLASS:-$class}" "$changes"
specs groups 1 "${GROUP_CLASS:-$class}" "$groups"
specs disruptive 1 "$class" Disruptive
exit $code
