//! The closed lists: modes, transport states, reasons, causes. Each has one spelling, used in metrics, logs, JSON,
//! environment and annotations alike.

use serde::{Deserialize, Serialize};

/// A text that is none of the terms of a closed list.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a {what}: use one of {valid}")]
pub struct UnknownTerm {
    pub(crate) text: String,
    pub(crate) what: &'static str,
    pub(crate) valid: String,
}

macro_rules! terms {
    ($(#[$meta:meta])* $name:ident ($what:literal) { $($(#[$vmeta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every term, in the order of declaration.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The spelling.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.pad(self.as_str()) }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::UnknownTerm;
            fn from_str(text: &str) -> Result<Self, $crate::UnknownTerm> {
                Self::ALL.iter().copied().find(|term| term.as_str() == text).ok_or_else(|| $crate::UnknownTerm {
                    text: text.to_owned(),
                    what: $what,
                    valid: Self::ALL.iter().map(|term| term.as_str()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

terms! {
    /// How strict a pod is about mTLS.
    TlsMode ("TLS mode") {
        /// mTLS with meshed peers, plaintext with others, counted with the reason.
        Optional = "optional",
        /// mTLS or nothing, but for listed exceptions.
        Required = "required",
        /// No mTLS; counted.
        Disabled = "disabled",
    }
}

terms! {
    /// What a `required` pod may send outside the cluster.
    Egress ("egress policy") {
        /// Anything.
        Allow = "allow",
        /// Only the application's own TLS.
        TlsOnly = "tls-only",
        /// Nothing.
        Deny = "deny",
    }
}

terms! {
    /// Which way a connection goes, seen from the pod.
    Direction ("direction") {
        /// To the application.
        Inbound = "inbound",
        /// From the application.
        Outbound = "outbound",
    }
}

terms! {
    /// What protects the bytes on the wire.
    TransportState ("transport state") {
        /// Hauberk's mutual TLS.
        Mtls = "mtls",
        /// The application's own TLS, passed on as it is.
        OwnTls = "own-tls",
        /// Nothing.
        Cleartext = "cleartext",
    }
}

terms! {
    /// Why a connection is not mTLS.
    Reason ("reason") {
        /// The peer is a pod or host known to have no proxy.
        PeerNotMeshed = "peer-not-meshed",
        /// The address lies inside the cluster's networks and nobody knows it.
        UnknownInCluster = "unknown-in-cluster",
        /// The address lies outside the cluster.
        OutsideCluster = "outside-cluster",
        /// This pod's mode is `disabled`.
        TlsDisabled = "tls-disabled",
        /// The pod talks to its own address.
        Loopback = "loopback",
        /// The client came without mTLS.
        UnmeshedClient = "unmeshed-client",
        /// A listed exception: DNS over TCP, the API server, `allow-unmeshed-from` and `-to`.
        Exception = "exception",
    }
}

terms! {
    /// What the first bytes of the client look like. A label only: nothing waits for it, nothing depends on it.
    FirstBytes ("first-byte label") {
        /// A request line that ends in `HTTP/1.x`.
        Http1 = "http1",
        /// The HTTP/2 connection preface.
        Http2 = "http2",
        /// A TLS ClientHello.
        Tls = "tls",
        /// Something else.
        Other = "other",
        /// The client has sent nothing yet, or too little to tell.
        None = "none",
    }
}

terms! {
    /// How the mTLS session of a connection came about.
    HandshakeKind ("handshake kind") {
        /// A full handshake, certificates verified.
        Full = "full",
        /// Resumed from a ticket; the restored certificates were checked.
        Resumed = "resumed",
        /// An idle connection of the pool was used again.
        Reused = "reused",
    }
}

terms! {
    /// Who ended a connection.
    ClosedBy ("party") {
        /// The side that opened it.
        Client = "client",
        /// The side that accepted it.
        Server = "server",
        /// This proxy.
        Proxy = "proxy",
    }
}

terms! {
    /// The answer `failed` of `hauberk/1`: why the peer's proxy did not open the stream. Nothing was delivered.
    FailReason ("failure reason") {
        /// The application's port refused the connection.
        Refused = "refused",
        /// No route, or no local port left.
        Unreachable = "unreachable",
        /// The application did not accept in time.
        TimedOut = "timed-out",
        /// The proxy's rules forbid this port or peer.
        Denied = "denied",
        /// The proxy is draining or at its limit.
        Draining = "draining",
    }
}

terms! {
    /// How a connection ended.
    CloseCause ("cause of close") {
        /// Both directions ended cleanly.
        Clean = "clean",
        /// One side reset it; `by` says which.
        Reset = "reset",
        /// The mesh leg ended without the end of the stream.
        Truncated = "truncated",
        /// The mesh peer broke the protocol.
        ProtocolError = "protocol-error",
        /// No connection: refused by the host of the endpoint, or by the application behind its proxy.
        ConnectRefused = "connect-refused",
        /// No connection: no route to the endpoint.
        ConnectUnreachable = "connect-unreachable",
        /// No connection within the limit.
        ConnectTimeout = "connect-timeout",
        /// No connection: every local port toward the endpoint is in use (EADDRNOTAVAIL).
        LocalPortsExhausted = "local-ports-exhausted",
        /// The peer's proxy is draining or full.
        PeerDraining = "peer-draining",
        /// The peer's proxy denied the port.
        PeerDenied = "peer-denied",
        /// The TLS handshake failed.
        HandshakeFailed = "handshake-failed",
        /// The TLS handshake did not end within the limit.
        HandshakeTimeout = "handshake-timeout",
        /// The peer's certificate names another identity.
        IdentityMismatch = "identity-mismatch",
        /// The peer's certificate is expired or not yet valid.
        CertificateExpired = "certificate-expired",
        /// The opening frame, or the answer to it, did not come within the limit.
        OpenTimeout = "open-timeout",
        /// This proxy has no certificate yet.
        NotReady = "not-ready",
        /// Discovery did not answer within the limit.
        DiscoveryUnavailable = "discovery-unavailable",
        /// The service is known and has no endpoint.
        NoEndpoints = "no-endpoints",
        /// `required`: the peer has no mTLS; the record's reason says why.
        Refused = "refused-not-mtls",
        /// `required`: egress policy forbids it.
        EgressDenied = "egress-denied",
        /// The target is one of the proxy's own ports, or a port that no stream may name.
        PortNotAllowed = "port-not-allowed",
        /// This proxy has as many connections as it may.
        LimitReached = "limit-reached",
        /// The peer stopped answering: keepalive or unacknowledged bytes ran out of time.
        PeerTimeout = "peer-timeout",
        /// The drain's deadline passed.
        DrainDeadline = "drain-deadline",
        /// The connection's task panicked.
        Panic = "panic",
        /// Another socket error; the log has it.
        IoError = "io-error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_is_spelled_one_way_everywhere() {
        for cause in CloseCause::ALL {
            assert_eq!(cause.as_str().parse::<CloseCause>().as_ref(), Ok(cause));
            let json = serde_json::to_string(cause).expect("terms serialize");
            assert_eq!(json, format!("{:?}", cause.as_str()));
        }
    }

    #[test]
    fn an_unknown_term_is_refused_with_what_is_valid() {
        let error = "strict".parse::<TlsMode>().expect_err("not a mode");
        assert_eq!(error.to_string(), r#""strict" is not a TLS mode: use one of optional, required, disabled"#);
    }
}
