#!/usr/bin/env bash
# Builds the programs of the local clusters from the Go module proxy and prints the directory they are in.
#
# The modules' versions, with checksums, are in tools/go.mod and tools/go.sum. One module for all of them but one: what
# they have in common, client-go above all, is compiled once. The result is kept outside the repository, in a directory
# named after everything that it was made from, so that worktrees share it and a changed version builds anew:
#
#   ${SLIPSTREAM_CLUSTER_CACHE:-${XDG_CACHE_HOME:-~/.cache}/slipstream/cluster}/bin-<key>/
#
# A program that is there is not built again. Only one build runs at a time; a build that was interrupted leaves no half
# program, and the next one continues with what Go's own build cache has. `build.sh GROUP...` builds some of them, see
# below; `build.sh --print` prints the directory only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/tools"

cache=${SLIPSTREAM_CLUSTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/slipstream/cluster}
kubernetes=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' go.mod)
# version MODULE [DIRECTORY OF ITS GO.MOD]
version() { awk -v m="$1" '$1 == m { print $2 } $1 == "require" && $2 == m { print $3 }' "${2:-.}/go.mod"; }

# group NAME LDFLAGS PACKAGE...: programs that are linked with the same flags.
groups=()
declare -A flags packages in
group() {
	groups+=("$1")
	flags[$1]=$2
	packages[$1]="${*:3}"
}
# In the order in which a cluster needs them. Kubernetes has to report its version: clients look at it.
minor=$(cut -d. -f2 <<<"$kubernetes")
group kubernetes "-X k8s.io/component-base/version.gitVersion=$kubernetes
	-X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$minor" \
	k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kubelet,kube-proxy,kubectl}
containerd=github.com/containerd/containerd/v2
group containerd "-X $containerd/version.Version=$(version $containerd)" \
	$containerd/cmd/{containerd,containerd-shim-runc-v2,ctr}
group cni "" github.com/containernetworking/plugins/plugins/{main/ptp,main/loopback,ipam/host-local,meta/portmap}
group etcd "" go.etcd.io/etcd/server/v3
helm=helm.sh/helm/v3
group helm "-X $helm/internal/version.version=$(version $helm)" $helm/cmd/helm
csi=github.com/kubernetes-csi
resizer=$csi/external-resizer/v2
group resizer "-X main.version=$(version $resizer)" $resizer/cmd/csi-resizer
snapshotter=$csi/external-snapshotter/v8
group snapshotter "-X main.version=$(version $snapshotter)" $snapshotter/cmd/{csi-snapshotter,snapshot-controller}
provisioner=$csi/external-provisioner/v6
group provisioner "-X main.version=$(version $provisioner provisioner)" $provisioner/cmd/csi-provisioner
in[provisioner]=provisioner

# The name a package's program has in the cache.
program() { if [[ $1 == go.etcd.io/etcd/server/v3 ]]; then echo etcd; else echo "${1##*/}"; fi; }

inputs() {
	go env GOVERSION GOARCH
	sha256sum {.,provisioner}/go.{mod,sum}
	for name in "${groups[@]}"; do echo "$name:" ${flags[$name]} : ${packages[$name]}; done
}
key=$(inputs | sha256sum | cut -c1-16)
bin=$cache/bin-$key
if [[ ${1:-} == --print ]]; then
	echo "$bin"
	exit
fi

# wanted [GROUP...]: those of the arguments, or all, that are not complete.
wanted() {
	local name package
	for name; do
		for package in ${packages[$name]:?there is no group $name}; do
			[[ -x $bin/$(program "$package") ]] || { echo "$name"; break; }
		done
	done
}
[[ $# -gt 0 ]] || set -- "${groups[@]}"
if [[ -z $(wanted "$@") ]]; then
	echo "$bin"
	exit
fi

mkdir -p "$bin"
exec 9>"$cache/lock"
flock 9
work=$(mktemp -d "$cache/build-XXXXXXXX")
trap 'rm -rf "$work"' EXIT
export CGO_ENABLED=0
# Other work on this machine comes first. SLIPSTREAM_BUILD_IDLE= builds as fast as it can.
read -ra idle <<<"${SLIPSTREAM_BUILD_IDLE-nice -n 19 chrt -i 0}"
for name in $(wanted "$@"); do
	missing=()
	for package in ${packages[$name]}; do
		[[ -x $bin/$(program "$package") ]] || missing+=("$package")
	done
	start=$SECONDS
	"${idle[@]}" go -C "${in[$name]:-.}" build -p 2 -trimpath -ldflags "-s -w ${flags[$name]//$'\n'/ }" -o "$work/" \
		"${missing[@]}" >&2
	for package in "${missing[@]}"; do
		# Go names it after the last element that is not a version.
		built=$package
		[[ ! $built =~ /v[0-9]+$ ]] || built=${built%/*}
		mv "$work/${built##*/}" "$bin/$(program "$package")"
	done
	echo "built $name in $((SECONDS - start)) s" >&2
done
echo "$bin"
