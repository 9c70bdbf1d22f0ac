# Images for people with Docker: `docker build --target node -t slipstream-node .` and `--target controller`.
# hack/images.sh makes the same without an engine. Programs are where the chart looks for them.
#
# The base images are named by tag here, because whoever builds knows which digests they trust: give
# --build-arg GO_IMAGE=...@sha256:... and DEBIAN_IMAGE.
ARG GO_IMAGE=docker.io/library/golang:1.26-bookworm
ARG DEBIAN_IMAGE=docker.io/library/debian:bookworm-slim
FROM $GO_IMAGE AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY internal internal
COPY pkg pkg
ARG VERSION=unversioned
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o /out/ ./cmd/...

FROM $DEBIAN_IMAGE AS node
# What the driver calls: mkfs, fsck and resize of both file systems, mount, blkid.
RUN apt-get update && \
	apt-get install -y --no-install-recommends e2fsprogs mount util-linux xfsprogs && \
	rm -rf /var/lib/apt/lists/*
COPY --from=build /out/csi-driver /out/replicator /out/keeper /out/slipctl /usr/bin/
ENTRYPOINT ["/usr/bin/csi-driver"]

FROM scratch AS controller
COPY --from=build /out/csi-driver /out/gateway /out/operator /usr/bin/
USER 65532:65532
ENTRYPOINT ["/usr/bin/csi-driver"]
