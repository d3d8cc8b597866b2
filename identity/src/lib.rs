//! Identity and trust. Without features: what the proxy and the control plane link to get a certificate, keep it
//! renewed, follow the trust bundle, and speak mutual TLS with it. With feature `server`: the CA and its services.
//!
//! Nothing here decides what a connection is for; whoever uses a certificate asks [`Credentials`] for a TLS
//! configuration, and after every handshake [`Credentials::check_peer`] for who the peer is.

mod agent;
mod chains;
mod credentials;
mod fs;
pub mod grpc;
mod key;
mod peer;
mod provider;
mod schedule;
#[cfg(feature = "server")]
pub mod server;
mod sessions;
mod store;
mod tickets;
mod trust;
mod verify;
mod volume;

pub use agent::{Agent, AgentConfig, AgentError};
pub use credentials::{Credentials, InvalidCredentials};
pub use key::{InvalidKey, SecretKey};
pub use peer::{Peer, PeerFault, close_cause, server_name};
pub use schedule::renew_at;
pub use sessions::EndpointSessions;
pub use store::Store;
pub use trust::{InvalidBundle, TrustBundle};
