#!/usr/bin/env bash
# Builds the container images without a container engine, as tar files that `ctr images import`, `docker load` and `kind
# load image-archive` take: `hack/images.sh [DIRECTORY]`, default bin/images. On a Debian machine; hack/deps.sh images
# has what it needs. The Dockerfile is for everybody else.
#
#   slipstream-node         csi-driver, replicator, keeper, slipctl, and Debian's programs that they call
#   slipstream-controller   csi-driver, gateway and operator, and nothing else
#
# It prints their digests, and writes them into values.yaml beside them, as the chart takes them.
#
# With TEST=1 also what the clusters of hack/local-cluster.sh need: the sidecars that are Go modules, stand-ins for
# those that are not, the pods' pause program and a toolbox for test pods.
#
# FAULT builds the programs with the deliberate faults of internal/bug, and activates the one of that name in
# slipstream-node: for tests only.
#
# IMAGE_PREFIX and IMAGE_TAG name them. The defaults are the names that the chart has, so that a cluster whose nodes
# have loaded the images needs no values for them. With TEST=1 the defaults are slipstream.test and dev: that prefix is
# no registry on purpose, nothing is ever pulled by such a name. `hack/images.sh --names` prints the names and ends.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=$(realpath -m -- "${1:-bin/images}")
chart=deploy/charts/slipstream
chart_prefix=$(sed -n 's,^    repository: \(.*\)/slipstream-node$,\1,p' $chart/values.yaml | head -n 1)
chart_tag=$(sed -n 's/^appVersion: //p' $chart/Chart.yaml)
prefix=${IMAGE_PREFIX:-${TEST:+slipstream.test}}
prefix=${prefix:-${chart_prefix:?no image of the nodes in values.yaml}}
tag=${IMAGE_TAG:-${TEST:+dev}}
tag=${tag:-${chart_tag:?no appVersion in Chart.yaml}}
if [[ ${1:-} == --names ]]; then
	printf '%s\n' "$prefix/slipstream-node:$tag" "$prefix/slipstream-controller:$tag"
	exit
fi
version=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo unversioned)}
# Daemons and file system tools live in sbin, which is not on every root's PATH.
export PATH="$PATH:/usr/sbin:/sbin"

mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
go build -o "$work/mkimage" ./hack/mkimage
mkdir "$work/bin"
build=(go build)
[[ -z ${FAULT:-} ]] || build=(go run ./hack/faulty build)
CGO_ENABLED=0 "${build[@]}" -trimpath -ldflags "-s -w -X main.version=$version" -o "$work/bin/" ./cmd/...

# image NAME TAG OPTIONS...: packs $work/NAME, and notes its digest in $work/NAME.digest.
image() {
	local name=$1
	"$work/mkimage" -o "$out/$name.tar" --name "$prefix/$name:$2" "${@:3}" "$work/$name" >"$work/$name.digest"
	printf '%-28s %4d MiB  %s\n' "$name" "$(($(stat -c %s "$out/$name.tar") >> 20))" "$(cat "$work/$name.digest")"
}

# values: of the chart, for the images of this repository by their digests.
values() {
	local key name
	echo "# For images that were copied to the registry as they are in the tar files here. A tool that unpacks and"
	echo "# packs them again, as docker push does, gives them other digests and prints those."
	echo "images:"
	for key in node:slipstream-node keeper:slipstream-node controller:slipstream-controller; do
		name=${key#*:}
		printf '  %s: {repository: %s, tag: %s, digest: "%s"}\n' "${key%%:*}" "$prefix/$name" "$tag" \
			"$(cat "$work/$name.digest")"
	done
}

# skeleton ROOT: what programs expect of a system.
skeleton() {
	mkdir -p "$1"/{etc,tmp,run,proc,sys,dev,var/tmp,usr/bin}
	chmod 1777 "$1/tmp" "$1/var/tmp"
	ln -s usr/bin "$1/bin"
	ln -s usr/bin "$1/sbin"
	ln -s bin "$1/usr/sbin"
	printf 'root:x:0:0:root:/:/bin/sh\nnonroot:x:65532:65532:nonroot:/:/bin/false\n' >"$1/etc/passwd"
	printf 'root:x:0:\nnonroot:x:65532:\n' >"$1/etc/group"
}

# debian ROOT PROGRAM...: programs of installed packages with their shared libraries, and the packages' copyright files.
debian() {
	local root=$1 program path library package
	for program in "${@:2}"; do
		path=$(command -v "$program") || { echo "images.sh: there is no $program here: run hack/deps.sh images" >&2; exit 1; }
		path=$(realpath "$path")
		cp "$path" "$root/usr/bin/${path##*/}"
		[[ ${path##*/} == "$program" ]] || ln -sf "${path##*/}" "$root/usr/bin/$program"
		while read -r library; do
			mkdir -p "$root${library%/*}"
			cp -L "$library" "$root$library"
		done < <({ ldd "$path" || true; } 2>/dev/null | grep -oE '/[^ ]+')
		# A merged /usr has the file in one place and the package's list in another.
		package=$(dpkg-query -S "$path" 2>/dev/null || dpkg-query -S "${path#/usr}" 2>/dev/null) || continue
		package=${package%%:*}
		mkdir -p "$root/usr/share/doc/$package"
		cp -L "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package/" 2>/dev/null || true
	done
}

own() { # IMAGE PROGRAM...: programs of this repository
	mkdir -p "$work/$1/usr/bin"
	for program in "${@:2}"; do cp "$work/bin/$program" "$work/$1/usr/bin/"; done
}
skeleton "$work/slipstream-node"
own slipstream-node csi-driver replicator keeper slipctl
debian "$work/slipstream-node" mkfs.ext4 e2fsck fsck.ext4 resize2fs dumpe2fs tune2fs mkfs.xfs xfs_growfs xfs_repair \
	xfs_admin \
	blkid mount umount fsck losetup blockdev findmnt dash cat ls
ln -sf dash "$work/slipstream-node/usr/bin/sh"
cp /etc/mke2fs.conf "$work/slipstream-node/etc/"
image slipstream-node "$tag" --entrypoint /usr/bin/csi-driver ${FAULT:+--env "SLIPSTREAM_BUG=$FAULT"}
own slipstream-controller csi-driver gateway operator
image slipstream-controller "$tag" --entrypoint /usr/bin/csi-driver --user 65532:65532
values >"$out/values.yaml"

[[ -n ${TEST:-} ]] || exit 0

stand_in() { # NAME DIRECTORY TAG OPTIONS...
	mkdir "$work/$1"
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o "$work/$1/$1" "./test/cluster/$2"
	image "$1" "$3" --entrypoint "/$1" "${@:4}"
}
stand_in pause pause 1
stand_in csi-node-driver-registrar registrar test
stand_in livenessprobe livenessprobe test

skeleton "$work/toolbox"
cp "$(command -v busybox)" "$work/toolbox/usr/bin/busybox"
for applet in $(busybox --list); do
	[[ $applet == busybox ]] || ln -s busybox "$work/toolbox/usr/bin/$applet"
done
CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o "$work/toolbox/usr/bin/" ./test/cluster/{verify,shop}
cp "$work/bin/slipctl" "$work/toolbox/usr/bin/"
image toolbox 1 --cmd sh

programs=$(hack/local-cluster/build.sh resizer snapshotter provisioner)
modules=(hack/local-cluster/tools/{.,provisioner}/go.mod)
sidecar() { # NAME MODULE: as long as its program is the same it is not packed again
	[[ $out/$1.tar -ot $programs/$1 || $out/$1.tar -ot $0 || -n ${IMAGE_PREFIX:-} ]] || return 0
	mkdir "$work/$1"
	cp "$programs/$1" "$work/$1/"
	local version
	version=$(awk -v m="github.com/kubernetes-csi/$2" \
		'$1 == m { print $2 } $1 == "require" && $2 == m { print $3 }' "${modules[@]}")
	image "$1" "${version:?no version of $2}" --entrypoint "/$1" --user 65532:65532
}
sidecar csi-provisioner external-provisioner/v6
sidecar csi-resizer external-resizer/v2
sidecar csi-snapshotter external-snapshotter/v8
sidecar snapshot-controller external-snapshotter/v8
