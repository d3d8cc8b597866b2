//! gRPC over mutual TLS: the client's channel and the server's listener. Both take what the [`crate::Store`] holds at
//! the time of each connection.

mod channel;
mod incoming;
mod sources;

pub use channel::channel;
pub use incoming::{ClientAuth, ConnectInfo, IncomingLimits, TlsIo, incoming, server};
pub use sources::{Sources, Taken};
