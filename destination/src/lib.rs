//! The destination service: who answers at an address, how it is reached, and why not by mTLS. Standalone, it reads a
//! `mesh.yaml`. Answers are pure functions of an [`Index`]; the shells around them read the file and speak gRPC.

mod admin;
mod answer;
mod choice;
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
mod subject;
#[cfg(test)]
mod testing;
mod told;

pub use answer::{Answer, Endpoint};
pub use choice::Caller;
pub use hub::{Hub, Subscription};
pub use index::{Change, Index};
pub use messages::{profile, updates};
pub use metrics::Metrics;
pub use query::{InvalidQuery, Query};
pub use server::{Config, run, serve};
pub use service::Api;
pub use slots::Bounds;
pub use source::{InvalidSource, MeshSource};
pub use subject::{
    Backend, Backends, ClusterNetworks, Front, Hints, HostPort, Mesh, Place, Pod, Port, Service, ServiceName, Subject,
    Topic, Way,
};
pub use told::{Resolved, Told};
