//! What the parts share that talk to Kubernetes: the mesh's settings as `install` wrote them, and what a pod's proxy
//! was told, read back from the pod's spec.

mod config;
mod pod;

pub use config::{InvalidConfig, MeshConfig, PullPolicy, Resources};
pub use pod::proxy_of;
