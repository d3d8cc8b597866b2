//! The sidecar: outbound, inbound and mesh-port listeners, and the pure parts that they are made of.

pub mod first_bytes;
pub mod linkerd;
pub mod wire;
