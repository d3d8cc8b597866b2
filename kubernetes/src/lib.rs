//! What the parts share that talk to Kubernetes: the mesh's settings as `install` wrote them, what a pod's proxy was
//! told, read back from the pod's spec, events for people, and who of several replicas leads.

mod config;
mod events;
mod lease;
mod pod;

pub use config::{InvalidConfig, MeshConfig, PullPolicy, Resources};
pub use events::{Event, EventCounts, EventTeller, Events, Severity};
pub use lease::{Leadership, Lease, LeaseTimes};
pub use pod::proxy_of;
