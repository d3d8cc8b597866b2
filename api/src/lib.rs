//! The two gRPC streams that are Hauberk's own: `Trust.Watch` and `Networks.Watch`. Generated from `proto/`.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "generated code")]

/// Trust bundles, from the identity server.
pub mod trust {
    tonic::include_proto!("hauberk.trust.v1");
}

/// Cluster networks, from the destination service.
pub mod networks {
    tonic::include_proto!("hauberk.networks.v1");
}
