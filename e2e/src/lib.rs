//! Real Kubernetes for tests: [`ControlPlane`], upstream's own processes without nodes, in seconds.
//!
//! What needs pods that run needs nodes; what a test wrote into a status proves nothing. Needs root, and the binaries
//! that `make kubernetes` builds.

mod binaries;
mod certificates;
mod control_plane;
mod kubeconfig;
mod options;

pub use binaries::{KUBERNETES, find as find_binary};
pub use control_plane::ControlPlane;
pub use options::ControlPlaneOptions;
