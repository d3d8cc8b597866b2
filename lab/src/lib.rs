//! A small mesh on one machine: each pod a network namespace with its own address, joined by a bridge in a namespace of
//! its own, the real binaries as processes, captures on the bridge. Used by `hauberk demo`, by the integration tests
//! and by the benchmarks.
//!
//! Nothing in the machine's own network namespace is touched. Namespaces have no name: they last as long as the lab and
//! its processes, and these end with the process that owns the lab, however it ends. Needs root.

mod lab;
mod netns;
mod pod;
mod process;
mod spawner;
mod wait;

pub use lab::{Lab, SERVICE_NETWORK_V4, SERVICE_NETWORK_V6};
pub use nix::sys::signal::Signal;
pub use pod::{Pod, PodOptions};
pub use process::Process;
pub use wait::wait_for;
