#!/usr/bin/env bash
# Prints values of the chart that name the upstream images by digest: asks their registry which digest each tag has now.
# With crane, skopeo or docker buildx, whichever is there.
#
#   hack/pin-images.sh >pinned.yaml; helm install ... -f pinned.yaml
#
# A tag that is moved afterwards changes nothing for users of the file. Whether the digest is the right one is what
# the registry says on the day that it is asked: compare it with what another network is told, or check the images'
# signatures.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if command -v crane >/dev/null; then
	digest() { crane digest "$1"; }
elif command -v skopeo >/dev/null; then
	# Of the list of all architectures, as it is.
	digest() { echo "sha256:$(skopeo inspect --raw "docker://$1" | sha256sum | cut -d' ' -f1)"; }
elif docker buildx version >/dev/null 2>&1; then
	digest() { docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$1"; }
else
	echo "pin-images.sh: crane, skopeo or docker buildx is needed to ask a registry" >&2
	exit 1
fi

# Key, repository and tag of the images in values.yaml that have a tag; the project's own have none there.
images() {
	awk '/^[a-z]/ { inside = ($1 == "images:") }
		inside && /^  [a-zA-Z]+:$/ { key = substr($1, 1, length($1) - 1) }
		inside && $1 == "repository:" { repository = $2 }
		inside && $1 == "tag:" && $2 != "\"\"" { print key, repository, $2 }' deploy/charts/slipstream/values.yaml
}
echo "images:"
images | while read -r key repository tag; do
	found=$(digest "$repository:$tag" </dev/null)
	[[ $found =~ ^sha256:[0-9a-f]{64}$ ]] || { echo "pin-images.sh: $repository:$tag: the answer is no digest: $found" \
		>&2; exit 1; }
	printf '  %s: {repository: %s, tag: %s, digest: "%s"}\n' "$key" "$repository" "$tag" "$found"
done
