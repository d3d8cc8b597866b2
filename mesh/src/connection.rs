//! What `/connections` says of one connection. Written by the proxy, read by the CLI and by tests.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{CloseCause, ClosedBy, Direction, FirstBytes, HandshakeKind, Reason, TransportState};

/// The document of `/connections`: live connections, and the last that closed, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// The proxy's own identity, once it has a certificate.
    pub identity: Option<String>,
    /// Open now.
    pub live: Vec<Connection>,
    /// The last [`crate::Limits::recent`] that ended.
    pub closed: Vec<Connection>,
}

/// One connection of an application, or one stream of a mesh connection: each is one record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Counts up from 1 for each proxy process.
    pub id: u64,
    /// Which way, seen from this pod.
    pub direction: Direction,
    /// Who opened it. Outbound: the application's socket; where two connections from one port would look alike once
    /// redirected, the kernel has given it another port. Inbound: the remote address of the connection.
    pub client: SocketAddr,
    /// What was dialled. Outbound: the original destination. Inbound: this pod's address and the application's port.
    pub target: SocketAddr,
    /// Outbound: the name of the service that `target` belongs to, where discovery knows one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<String>,
    /// Outbound: the endpoint that was chosen: its address and the application's port.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub endpoint: Option<SocketAddr>,
    /// The client's identity, from its certificate (outbound: this proxy's own).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub client_identity: Option<String>,
    /// The server's identity, from its certificate (inbound: this proxy's own).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub server_identity: Option<String>,
    /// What protects the bytes; unset until it is settled.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub state: Option<TransportState>,
    /// Why it is not mTLS.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<Reason>,
    /// The mesh's TLS session.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tls: Option<TlsDetails>,
    /// What the client's first bytes look like.
    pub first_bytes: FirstBytes,
    /// The server name of the application's own TLS.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sni: Option<String>,
    /// Application bytes from client to server.
    pub bytes_to_server: u64,
    /// Application bytes from server to client.
    pub bytes_to_client: u64,
    /// Milliseconds since the Unix epoch.
    pub opened_at_ms: u64,
    /// How it ended; unset while it is open.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub close: Option<Close>,
}

/// The mesh's TLS session of one connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsDetails {
    /// `TLSv1_3`.
    pub version: String,
    /// Such as `TLS13_AES_128_GCM_SHA256`.
    pub cipher: String,
    /// Key-exchange group, such as `X25519MLKEM768`.
    pub group: String,
    /// `hauberk/1` or `transport.l5d.io/v1`.
    pub protocol: String,
    /// Full, resumed, or a pooled connection used again.
    pub handshake: HandshakeKind,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Close {
    /// Why.
    pub cause: CloseCause,
    /// Who.
    pub by: ClosedBy,
    /// Milliseconds since the Unix epoch.
    pub at_ms: u64,
}
