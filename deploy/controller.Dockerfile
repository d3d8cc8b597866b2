# The control plane: each container names which of the binaries it runs.
#   docker build --file deploy/controller.Dockerfile --tag hauberk.dev/hauberk-controller:0.1.0 .
FROM rust:1.95-bookworm AS build
RUN apt-get update --quiet=2 \
    && apt-get install --quiet=2 --yes --no-install-recommends cmake protobuf-compiler
WORKDIR /src
COPY . .
RUN cargo build --locked --release --package hauberk-identity --package hauberk-destination --package hauberk-webhook
RUN deploy/rootfs controller target/release /rootfs

FROM scratch
COPY --from=build /rootfs /
ENV PATH=/usr/sbin:/usr/bin
USER 2102:2102
