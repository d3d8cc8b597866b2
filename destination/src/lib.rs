//! The destination service: who answers at an address, how it is reached, and why not by mTLS. Standalone, it reads a
//! `mesh.yaml`. Answers are pure functions of an [`Index`]; the shells around them read the file and speak gRPC.

mod admin;
mod answer;
mod from_mesh;
mod hub;
mod index;
mod messages;
mod metrics;
mod query;
mod server;
mod service;
mod slots;
mod source;
#[cfg(test)]
mod testing;

pub use answer::{Answer, Endpoint};
pub use hub::{Hub, Subscription};
pub use index::{Backend, ClusterNetworks, Index, Mesh, Pod, Service, ServiceName, Subject, Topic};
pub use messages::{profile, updates};
pub use metrics::Metrics;
pub use query::{InvalidQuery, Query};
pub use server::{Config, run, serve};
pub use service::Api;
pub use slots::Bounds;
pub use source::{InvalidSource, MeshSource};
