//! The sidecar.

pub mod discovery;
