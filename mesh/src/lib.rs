//! The vocabulary that all parts of Hauberk share: constants, closed lists, names, and what a proxy is told at start.
//!
//! Pure: no I/O, no clock, no logging. Text comes in and is parsed once; the types that result are valid.

mod connection;
mod constants;
mod duration;
mod identity_name;
mod limits;
#[cfg(feature = "meshfile")]
mod meshfile;
mod net;
#[macro_use]
mod terms;
mod admission;
mod probe;
mod service_links;
mod spec;

pub use admission::{RefusalReason, SkipReason};
pub use connection::{Close, Connection, Connections, TlsDetails};
pub use constants::*;
pub use duration::{InvalidDuration, format_duration, parse_duration};
pub use identity_name::{IdentityName, InvalidIdentity, TrustDomain};
pub use limits::{InvalidLimits, Limits};
#[cfg(feature = "meshfile")]
pub use meshfile::{InvalidMesh, MeshFile, Pod, PodProxy, Service, ServicePort};
pub use net::{Exception, InvalidNet, Networks, PortSet};
pub use probe::{Probe, ProbeAction, ProbeKind};
pub use spec::{InvalidSpec, ProxySpec, Redirection, SidecarKind};
pub use terms::{
    CloseCause, ClosedBy, Direction, Egress, FailReason, FirstBytes, HandshakeKind, Reason, TlsMode, TransportState,
    UnknownTerm,
};
