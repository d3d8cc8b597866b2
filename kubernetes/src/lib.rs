//! What the parts share that talk to Kubernetes: the mesh's settings as `install` wrote them, what a pod's proxy was
//! told, read back from the pod's spec, and events for people.

mod config;
mod events;
mod pod;

pub use config::{InvalidConfig, MeshConfig, PullPolicy, Resources};
pub use events::{Event, EventCounts, EventTeller, Events, Severity};
pub use pod::proxy_of;
