//! The mesh's own TLS 1.3 record layer. rustls shakes hands, checks the peer and gives up its secrets; from then on this
//! carries the data, in fewer system calls and less memory.
//!
//! Pure, without I/O: `keys` seals and opens single records, `schedule` makes the keys that follow, `session` is the
//! protocol after the handshake (KeyUpdate, tickets, alerts, limits), `inbox` turns bytes of any size into plaintext.
//! `handshake` drives rustls, `stream` does the I/O. Every byte that leaves here upwards was authenticated, in its place
//! in the stream; rustls is the oracle of the tests.

mod error;
mod handshake;
mod inbox;
mod keys;
mod schedule;
mod session;
mod stream;
#[cfg(test)]
mod tests;

use std::{io, sync::Arc};

use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::net::TcpStream;

use self::handshake::Handshake;
pub use self::{
    error::RecordError,
    handshake::{Agreed, Negotiated, Protocol},
    stream::RecordStream,
};

/// Shakes hands as the client. `config` must be for TLS 1.3 and let secrets be extracted. The server hears of the end of
/// the handshake with the first write, flush or read.
pub async fn connect(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    tcp: TcpStream,
) -> io::Result<(RecordStream, Negotiated)> {
    stream::shake(Handshake::client(&config, name)?, tcp).await
}

/// Shakes hands as the server. `config` must be for TLS 1.3 and let secrets be extracted.
pub async fn accept(config: Arc<ServerConfig>, tcp: TcpStream) -> io::Result<(RecordStream, Negotiated)> {
    stream::shake(Handshake::server(&config)?, tcp).await
}
