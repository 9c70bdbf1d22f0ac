#!/usr/bin/env bash
# Builds the plugin of kubectl for other people's machines: `hack/plugin.sh [DIRECTORY]`, default bin/plugin. For each
# platform it writes an archive with the program and the licence, and beside them slipstream.yaml, the manifest for
# krew with their checksums.
#
# URL is where the archives will be (default: the release of the version at the project's home). VERSION is a semantic
# version with a v. PLATFORMS are pairs of operating system and processor.
#
# To install what was built, on this machine:
#
#   cd bin/plugin && kubectl krew install --manifest=slipstream.yaml --archive=kubectl-slipstream-linux-amd64.tar.gz
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=$(realpath -m -- "${1:-bin/plugin}")
chart=deploy/charts/slipstream/Chart.yaml
version=${VERSION:-v$(sed -n 's/^appVersion: //p' $chart)}
home=$(sed -n 's/^home: //p' $chart)
url=${URL:-$home/releases/download/$version}
read -ra platforms <<<"${PLATFORMS:-linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64}"

mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp LICENSE "$work/"

cat >"$work/slipstream.yaml" <<MANIFEST
apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: slipstream
spec:
  version: $version
  homepage: $home
  shortDescription: See and fail over replicated volumes
  description: |
    Shows the consistency groups of Slipstream, a CSI driver that replicates
    volumes to another site in write order: role, state, lag, members, and what
    to do next. Lists claims that are not protected, explains conditions, and
    fails groups over.
  caveats: |
    Needs the operator of Slipstream in the cluster.
  platforms:
MANIFEST
for platform in "${platforms[@]}"; do
	os=${platform%/*} arch=${platform#*/}
	program=kubectl-slipstream
	[[ $os != windows ]] || program+=.exe
	CGO_ENABLED=0 GOOS=$os GOARCH=$arch go build -trimpath -ldflags "-s -w -X main.version=$version" \
		-o "$work/$program" ./cmd/kubectl-slipstream
	archive=kubectl-slipstream-$os-$arch.tar.gz
	tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$work" -cf - "$program" LICENSE |
		gzip -n >"$out/$archive"
	rm "$work/$program"
	sum=$(sha256sum "$out/$archive")
	cat >>"$work/slipstream.yaml" <<MANIFEST
    - selector: {matchLabels: {os: $os, arch: $arch}}
      uri: $url/$archive
      sha256: ${sum%% *}
      bin: $program
MANIFEST
	echo "$archive  ${sum%% *}"
done
cp "$work/slipstream.yaml" "$out/slipstream.yaml"
echo "$out/slipstream.yaml"
