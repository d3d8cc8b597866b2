//! What the parts share that talk to Kubernetes: the mesh's settings as `install` wrote them, what a pod's proxy was
//! told, read back from the pod's spec, events for people, who of several replicas leads, and the admin port.

mod admin;
mod bucket;
mod config;
mod events;
mod lease;
mod pod;

pub use admin::{Latch, Readiness, serve_admin};
pub use bucket::{Bucket, Rate};
pub use config::{InvalidConfig, MeshConfig, PullPolicy, Resources};
pub use events::{Event, EventCounts, EventTeller, Events, Severity};
pub use lease::{Leadership, Lease, LeaseTimes};
pub use pod::proxy_of;
