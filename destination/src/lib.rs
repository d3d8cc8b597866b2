//! The destination service: who answers at an address, how it is reached, and why not by mTLS. It reads a
//! `mesh.yaml`, or follows the objects of a Kubernetes cluster. Answers are pure functions of an [`Index`]; the shells
//! around them read the file, watch the cluster, and speak gRPC.

mod answer;
mod choice;
mod from_mesh;
mod hub;
mod index;
mod kubernetes;
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
pub use kubernetes::KubernetesSource;
pub use messages::{profile, updates};
pub use metrics::Metrics;
pub use query::{InvalidQuery, Query};
pub use server::{Config, Source, run, serve};
pub use service::Api;
pub use slots::Bounds;
pub use source::{InvalidSource, MeshSource};
pub use subject::{
    Backend, Backends, ClusterNetworks, Front, Hints, HostPort, Mesh, Place, Pod, Port, Service, ServiceName, Subject,
    Topic, Way,
};
pub use told::{Resolved, Told};
