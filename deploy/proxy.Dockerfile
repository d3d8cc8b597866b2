# The sidecar and its init container:
#   docker build --file deploy/proxy.Dockerfile --tag hauberk.dev/hauberk-proxy:0.1.0 .
FROM rust:1.95-bookworm AS build
RUN apt-get update --quiet=2 \
    && apt-get install --quiet=2 --yes --no-install-recommends cmake iproute2 iptables nftables protobuf-compiler
WORKDIR /src
COPY . .
RUN cargo build --locked --release --package hauberk-proxy
RUN deploy/rootfs proxy target/release /rootfs

FROM scratch
COPY --from=build /rootfs /
ENV PATH=/usr/sbin:/usr/bin
USER 2102:2102
ENTRYPOINT ["/usr/bin/hauberk-proxy"]
