//! Who is measured beside whom.

/// One way for a connection to get from a client's pod to a server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contender {
    /// No proxy.
    Direct,
    /// A pair of haproxy: plain TCP to mTLS to plain TCP, TLS sessions used again.
    Haproxy,
    /// The same with a full handshake for every connection.
    HaproxyFull,
    /// A pair of nginx, with its stream module, TLS sessions used again.
    Nginx,
    /// Ours, as it runs in a pod.
    Hauberk,
    /// Ours without a pool: every connection is a handshake with a ticket.
    HauberkResumed,
    /// Ours without pool and tickets: every connection is a full handshake.
    HauberkFull,
    /// One TLS server of tokio-rustls with nothing around it: what a connection costs at the least. No client's side.
    Floor,
}

/// Contenders of one family share the servers' side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    Direct,
    Haproxy,
    Nginx,
    Hauberk,
    Floor,
}

impl Contender {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Haproxy => "haproxy",
            Self::HaproxyFull => "haproxy-full",
            Self::Nginx => "nginx",
            Self::Hauberk => "hauberk",
            Self::HauberkResumed => "hauberk-resumed",
            Self::HauberkFull => "hauberk-full",
            Self::Floor => "rustls",
        }
    }

    pub(crate) fn family(self) -> Family {
        match self {
            Self::Direct => Family::Direct,
            Self::Haproxy | Self::HaproxyFull => Family::Haproxy,
            Self::Nginx => Family::Nginx,
            Self::Hauberk | Self::HauberkResumed | Self::HauberkFull => Family::Hauberk,
            Self::Floor => Family::Floor,
        }
    }
}

impl Family {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Hauberk => "hauberk",
            Self::Floor => "rustls",
        }
    }
}
