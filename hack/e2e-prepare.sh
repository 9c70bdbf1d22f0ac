# shellcheck shell=bash
# Sourced by e2e.sh and e2e-kind.sh: what their tests need besides the clusters. It sets $results and $images, and
# builds images, charts and the tests' own programs, where SLIPSTREAM_E2E_PROVIDER says in which clusters they run.
results=$(realpath -m "${RESULTS:-e2e-results}")
images=$(realpath -m bin/images)
export SLIPSTREAM_E2E_RESULTS=$results SLIPSTREAM_E2E_UPSTREAM=$PWD/bin/e2e-upstream
export SLIPSTREAM_E2E_CONTROLLER=${SLIPSTREAM_E2E_CONTROLLER:-controller}
rm -rf "$results"
mkdir -p "$results"
TEST=1 FAULT=${SLIPSTREAM_E2E_FAULT:-} hack/images.sh "$images"
hack/local-cluster/upstream.sh "$SLIPSTREAM_E2E_UPSTREAM"
go test -tags e2e -c -o bin/e2e.test ./test/e2e
# With the flags of images.sh, which has compiled most of it.
CGO_ENABLED=0 go build -trimpath -o bin/ ./cmd/{slipctl,kubectl-slipstream}
