//! Real Kubernetes for tests: [`ControlPlane`], upstream's own processes without nodes, in seconds; [`Kind`], a cluster
//! with nodes on which pods run, in half a minute.
//!
//! What a test itself writes into a pod's status proves nothing: what needs pods that run needs nodes. Both need root, and
//! the binaries that `make kubernetes` builds.

mod binaries;
mod certificates;
mod control_plane;
mod images;
mod kind;
mod kubeconfig;
mod options;
mod wait;

pub use binaries::{KUBERNETES, find as find_binary};
pub use control_plane::ControlPlane;
pub use images::Images;
pub use kind::{Kind, PodCapture, Shape, nodes_of};
pub use options::ControlPlaneOptions;
pub use wait::until;
