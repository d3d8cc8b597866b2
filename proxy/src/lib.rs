//! The sidecar: outbound, inbound and mesh-port listeners, and the pure parts that they are made of.

pub mod linkerd;
pub mod wire;
