#!/usr/bin/env bash
# Kubernetes' own tests of a storage driver (test/e2e, the specs of "External Storage") with deploy/testdriver.yaml, at a site of
# hack/local-cluster.sh where the chart is installed. Not part of CI: the whole takes hours.
#
#   external-storage.sh build     build the tests from the Go module proxy, once; prints the directory that they are in
#   external-storage.sh list      the counts and names of the specs, without a cluster
#   external-storage.sh run       load the images of the test pods into the nodes, run the specs, print the counts
#
# The tests are those of k8s.io/kubernetes, unchanged, in the version of external-storage/go.mod, and lie beside the clusters' programs
# (see local-cluster/build.sh). Their pods want two images, for which there is no registry here: busybox is made of Debian's, and
# agnhost of its program and Debian's busybox; what else the original has, name servers and the like, is not in it.
#
# SITE is where they run (default a), SLIPSTREAM_CLUSTERS the instance. CLASS is the StorageClass whose volumes are tested (default
# slipstream), DRIVER another driver definition. FOCUS and SKIP choose specs, as ginkgo's expressions do; by default all
# but the disruptive ones, since those restart the kubelet by ssh and systemd, which these nodes do not have. RESULTS (default
# external-storage-results) gets the log and a JUnit report.
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
flags="-s -w -X $version.gitVersion=$kubernetes -X $version.gitMajor=1 -X $version.gitMinor=$(cut -d. -f2 <<<"$kubernetes")"
key=$({ go env GOVERSION GOARCH; cat $module/go.{mod,sum}; echo "$flags"; } | sha256sum | cut -c1-16)
suite=$cache/suite-$key

build() {
	local work
	[[ ! -x $suite/e2e.test || ! -x $suite/agnhost ]] || return 0
	mkdir -p "$suite"
	exec 9>"$cache/lock-suite"
	flock 9
	work=$(mktemp -d "$cache/build-XXXXXXXX")
	# shellcheck disable=SC2064
	trap "rm -rf '$work'" EXIT
	# Whoever works on this machine meanwhile comes first, as in local-cluster/build.sh.
	read -ra idle <<<"${SLIPSTREAM_BUILD_IDLE-nice -n 19 chrt -i 0}"
	export CGO_ENABLED=0
	[[ -x $suite/agnhost ]] || "${idle[@]}" go -C $module build -p 2 -trimpath -ldflags "-s -w" -o "$work/" k8s.io/kubernetes/test/images/agnhost >&2
	[[ -x $suite/e2e.test ]] || "${idle[@]}" go -C $module test -c -vet=off -p 2 -trimpath -o "$work/e2e.test" \
		-ldflags "$flags" k8s.io/kubernetes/test/e2e >&2
	mv "$work"/* "$suite/"
	exec 9>&-
}

# images DIRECTORY: those that the tests ask for by name.
images() {
	local manifest work name tag applet
	manifest=$(go -C $module list -f '{{.Dir}}' k8s.io/kubernetes/test/utils/image)/manifest.go
	work=$(mktemp -d)
	mkdir -p "$work"/{busybox,agnhost}/{bin,etc,tmp,usr} "$1"
	for name in busybox agnhost; do
		chmod 1777 "$work/$name/tmp"
		ln -s ../bin "$work/$name/usr/bin"
		ln -s bin "$work/$name/sbin"
		printf 'root:x:0:0:root:/:/bin/sh\n' >"$work/$name/etc/passwd"
		printf 'root:x:0:\n' >"$work/$name/etc/group"
		cp "$(command -v busybox)" "$work/$name/bin/busybox"
		for applet in $(busybox --list); do
			[[ $applet == busybox ]] || ln -s busybox "$work/$name/bin/$applet"
		done
	done
	cp "$suite/agnhost" "$work/agnhost/agnhost"
	for name in busybox agnhost; do
		tag=$(sed -nE "s/.*configs\[(BusyBox|Agnhost)\] = Config\{list.PromoterE2eRegistry, \"$name\", \"([^\"]+)\"\}.*/\2/p" "$manifest")
		local options=(--cmd sh)
		[[ $name != agnhost ]] || options=(--entrypoint /agnhost --cmd pause)
		go run ./hack/mkimage -o "$1/$name.tar" --name "registry.k8s.io/e2e-test-images/$name:${tag:?no version of $name in $manifest}" "${options[@]}" "$work/$name"
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
sed -E "s/(FromExistingClassName:) slipstream$/\1 ${CLASS:-slipstream}/" "${DRIVER:-deploy/testdriver.yaml}" >"$results/testdriver.yaml"
options=(-storage.testdriver="$results/testdriver.yaml" -repo-root="$PWD" -provider=local
	-ginkgo.focus="${FOCUS:-External Storage}" -ginkgo.skip="${SKIP-\[Disruptive\]}" -ginkgo.no-color)
if [[ $verb == list ]]; then
	"$suite/e2e.test" "${options[@]}" -ginkgo.dry-run -ginkgo.v >"$results/list.log" 2>&1 || { tail -20 "$results/list.log" >&2; exit 1; }
	grep -oE '^External Storage .*' "$results/list.log" | sort -u
	grep -E '^Ran [0-9]+ of' "$results/list.log"
	exit
fi

hack/deps.sh cluster images
images "$results/images"
hack/local-cluster.sh load "$results"/images/*.tar
eval "$(hack/local-cluster.sh env)" # BIN
kubeconfig=$(hack/local-cluster.sh kubeconfig "${SITE:-a}")
code=0
KUBECONFIG=$kubeconfig hack/local-cluster.sh wan "$suite/e2e.test" "${options[@]}" -kubeconfig="$kubeconfig" -kubectl-path="$BIN/kubectl" \
	-ginkgo.v -ginkgo.timeout="${TIMEOUT:-6h}" -report-dir="$results" >"$results/e2e.log" 2>&1 || code=$?
echo "the log is $results/e2e.log"
grep -E '^ *\[(FAIL|INTERRUPTED|TIMEDOUT|PANICKED)[^]]*\]' "$results/e2e.log" | sort -u || true
grep -E '^(Ran [0-9]+ of|(SUCCESS|FAIL)! --)' "$results/e2e.log" || { tail -20 "$results/e2e.log" >&2; exit 1; }
exit $code
