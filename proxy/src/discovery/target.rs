//! What is known of one address, and how an endpoint is read from the wire. What cannot be read whole is an error, so
//! that a meshed endpoint never passes for one that is not. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use hauberk_mesh::{IdentityName, InvalidIdentity, LABEL_REASON, LABEL_TERMINATING, RESERVED_LABEL_PREFIX, Reason};
use linkerd2_proxy_api::{
    destination::{ProtocolHint, TlsIdentity, WeightedAddr, tls_identity::Strategy},
    net::TcpAddress,
};

/// What is known of one address now.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The fully qualified name of the service that the address belongs to.
    pub service: Option<Arc<str>>,
    /// How long one client stays with one endpoint.
    pub affinity: Option<Duration>,
    /// Who has the address.
    pub kind: TargetKind,
    /// By address, none twice. A pod has one; none if what was said of it could not be read.
    pub endpoints: Arc<[Arc<Endpoint>]>,
}

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// A service. It may have no endpoint.
    Service,
    /// A pod, at its own address.
    Pod,
    /// Nobody that discovery knows.
    Unknown,
}

/// One address that answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// The pod's address and the application's port.
    pub addr: SocketAddr,
    /// Share of connections, at least 1.
    pub weight: u32,
    /// Who must answer. Set together with `mesh_port`.
    pub identity: Option<IdentityName>,
    /// Where its proxy listens. Set together with `identity`.
    pub mesh_port: Option<u16>,
    /// Why it is not meshed; set where `identity` is not.
    pub reason: Option<Reason>,
    /// For metrics; reserved keys are not among them.
    pub labels: BTreeMap<String, String>,
    /// Whether its pod is being deleted.
    pub terminating: bool,
}

impl Target {
    /// Whether this ends some time after the stream that said it: the addresses of pods are used again, so "not meshed"
    /// and "unknown" may become wrong. What is meshed is checked by its certificate.
    pub(super) fn is_perishable(&self) -> bool {
        match self.kind {
            TargetKind::Service => false,
            TargetKind::Pod => self.endpoints.iter().any(|endpoint| endpoint.identity.is_none()),
            TargetKind::Unknown => true,
        }
    }
}

/// What is wrong with an endpoint. Always the control plane's fault.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Malformed {
    #[error("it has no address")]
    NoAddress,
    #[error("{0} is not a port")]
    Port(u32),
    #[error("its weight is 0")]
    Weight,
    #[error("it has TLS without an identity that this proxy can check")]
    NoIdentity,
    #[error(transparent)]
    Identity(#[from] InvalidIdentity),
    #[error("the server name {server_name:?} is not the identity {identity}")]
    ServerName { server_name: String, identity: IdentityName },
    #[error("it has an identity, and no port of a proxy that could prove it")]
    NoMeshPort,
    #[error("it has the port of a proxy, and no identity")]
    OnlyMeshPort,
    #[error("the update is of no known kind")]
    Update,
    #[error("{0} endpoints are held, as many as may be")]
    TooMany(usize),
}

/// Reads an address and port.
pub(super) fn address(message: Option<TcpAddress>) -> Result<SocketAddr, Malformed> {
    let message = message.ok_or(Malformed::NoAddress)?;
    // The crate's own conversion of a TcpAddress cuts a port that is too large.
    let port = port(message.port)?;
    let ip: std::net::IpAddr = message.ip.and_then(|ip| ip.try_into().ok()).ok_or(Malformed::NoAddress)?;
    Ok(SocketAddr::new(ip.to_canonical(), port))
}

/// Reads an endpoint.
pub(super) fn endpoint(message: WeightedAddr) -> Result<Endpoint, Malformed> {
    let addr = address(message.addr)?;
    let identity = message.tls_identity.map(identity).transpose()?;
    let mesh_port = mesh_port(message.protocol_hint)?;
    match (&identity, mesh_port) {
        (Some(_), None) => return Err(Malformed::NoMeshPort),
        (None, Some(_)) => return Err(Malformed::OnlyMeshPort),
        _ => {}
    }
    if message.weight == 0 {
        return Err(Malformed::Weight);
    }
    Ok(Endpoint {
        addr,
        weight: message.weight,
        reason: identity.is_none().then(|| reason(&message.metric_labels)),
        identity,
        mesh_port,
        terminating: terminating(&message.metric_labels),
        labels: message.metric_labels.into_iter().filter(|(key, _)| !key.starts_with(RESERVED_LABEL_PREFIX)).collect(),
    })
}

/// Whether the labels of an endpoint say that its pod is being deleted.
pub(super) fn terminating(labels: &HashMap<String, String>) -> bool {
    labels.get(LABEL_TERMINATING).is_some_and(|value| value == "true")
}

/// Discovery knows two reasons; whatever else it might say here is no reason to treat a peer better.
fn reason(labels: &HashMap<String, String>) -> Reason {
    match labels.get(LABEL_REASON).and_then(|text| text.parse().ok()) {
        Some(Reason::TlsDisabled) => Reason::TlsDisabled,
        _ => Reason::PeerNotMeshed,
    }
}

fn identity(message: TlsIdentity) -> Result<IdentityName, Malformed> {
    let Some(Strategy::DnsLikeIdentity(name)) = message.strategy else { return Err(Malformed::NoIdentity) };
    let identity = IdentityName::parse(&name.name)?;
    match message.server_name {
        Some(server_name) if server_name.name != identity.as_str() => {
            Err(Malformed::ServerName { server_name: server_name.name, identity })
        }
        _ => Ok(identity),
    }
}

fn mesh_port(hint: Option<ProtocolHint>) -> Result<Option<u16>, Malformed> {
    hint.and_then(|hint| hint.opaque_transport).map(|transport| port(transport.inbound_port)).transpose()
}

fn port(number: u32) -> Result<u16, Malformed> {
    u16::try_from(number).ok().filter(|port| *port != 0).ok_or(Malformed::Port(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use linkerd2_proxy_api::destination::{
        protocol_hint::OpaqueTransport,
        tls_identity::{DnsLikeIdentity, UriLikeIdentity},
    };

    const NAME: &str = "web.shop.serviceaccount.identity.hauberk.cluster.local";

    fn labels(labels: &[(&str, &str)]) -> HashMap<String, String> {
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn dns(name: &str) -> Option<DnsLikeIdentity> {
        Some(DnsLikeIdentity { name: name.to_owned() })
    }

    fn tls(name: &str, server_name: Option<DnsLikeIdentity>) -> Option<TlsIdentity> {
        Some(TlsIdentity { strategy: dns(name).map(Strategy::DnsLikeIdentity), server_name })
    }

    fn hint(inbound_port: u32) -> Option<ProtocolHint> {
        Some(ProtocolHint { protocol: None, opaque_transport: Some(OpaqueTransport { inbound_port }) })
    }

    fn meshed() -> WeightedAddr {
        WeightedAddr {
            addr: Some(SocketAddr::from(([10, 1, 0, 2], 8080)).into()),
            weight: 3,
            metric_labels: labels(&[("pod", "web-0"), (LABEL_REASON, "tls-disabled"), (LABEL_TERMINATING, "true")]),
            tls_identity: tls(NAME, dns(NAME)),
            protocol_hint: hint(4143),
            ..WeightedAddr::default()
        }
    }

    fn unmeshed(reason: &str) -> WeightedAddr {
        let metric_labels = labels(&[(LABEL_REASON, reason)]);
        WeightedAddr { tls_identity: None, protocol_hint: None, metric_labels, ..meshed() }
    }

    #[test]
    fn a_meshed_endpoint_has_an_identity_and_a_port_and_no_reason() {
        let endpoint = endpoint(meshed()).expect("well formed");
        assert_eq!(endpoint.identity.as_ref().map(IdentityName::as_str), Some(NAME));
        assert_eq!((endpoint.mesh_port, endpoint.reason, endpoint.terminating), (Some(4143), None, true));
        assert_eq!(endpoint.labels, [("pod".to_owned(), "web-0".to_owned())].into(), "reserved keys are taken out");
        assert_eq!((endpoint.addr, endpoint.weight), (SocketAddr::from(([10, 1, 0, 2], 8080)), 3));
    }

    #[test]
    fn an_unmeshed_endpoint_says_why() {
        for (said, expected) in [
            ("peer-not-meshed", Reason::PeerNotMeshed),
            ("tls-disabled", Reason::TlsDisabled),
            ("exception", Reason::PeerNotMeshed),
            ("loopback", Reason::PeerNotMeshed),
            ("", Reason::PeerNotMeshed),
        ] {
            let endpoint = endpoint(unmeshed(said)).expect("well formed");
            assert_eq!(
                (endpoint.identity, endpoint.mesh_port, endpoint.reason),
                (None, None, Some(expected)),
                "{said}"
            );
        }
    }

    #[test]
    fn what_cannot_be_read_whole_is_no_endpoint() {
        let addr = |port| Some(TcpAddress { port, ..SocketAddr::from(([10, 1, 0, 2], 1)).into() });
        let uri = Strategy::UriLikeIdentity(UriLikeIdentity { uri: format!("spiffe://{NAME}") });
        let uri = Some(TlsIdentity { strategy: Some(uri), server_name: dns(NAME) });
        let nobody = Some(TlsIdentity { strategy: None, server_name: dns(NAME) });
        let other = NAME.replace("web", "other");
        for (what, message) in [
            ("no address", WeightedAddr { addr: None, ..meshed() }),
            ("no ip", WeightedAddr { addr: Some(TcpAddress { ip: None, port: 80 }), ..meshed() }),
            ("port 0", WeightedAddr { addr: addr(0), ..meshed() }),
            ("port 65536", WeightedAddr { addr: addr(65536), ..unmeshed("") }),
            ("port 65616 is not 80", WeightedAddr { addr: addr(65616), ..unmeshed("") }),
            ("weight 0", WeightedAddr { weight: 0, ..meshed() }),
            ("a name that does not parse", WeightedAddr { tls_identity: tls("web.shop", None), ..meshed() }),
            ("an empty name", WeightedAddr { tls_identity: tls("", None), ..meshed() }),
            ("a URI", WeightedAddr { tls_identity: uri, ..meshed() }),
            ("no strategy", WeightedAddr { tls_identity: nobody, ..meshed() }),
            ("another server name", WeightedAddr { tls_identity: tls(NAME, dns(&other)), ..meshed() }),
            ("no hint", WeightedAddr { protocol_hint: None, ..meshed() }),
            ("no transport", WeightedAddr { protocol_hint: Some(ProtocolHint::default()), ..meshed() }),
            ("transport port 0", WeightedAddr { protocol_hint: hint(0), ..meshed() }),
            ("transport port 69679 is not 4143", WeightedAddr { protocol_hint: hint(69679), ..meshed() }),
            ("a transport and no identity", WeightedAddr { protocol_hint: hint(4143), ..unmeshed("") }),
        ] {
            assert!(endpoint(message).is_err(), "{what}");
        }
        assert!(
            endpoint(WeightedAddr { tls_identity: tls(NAME, None), ..meshed() }).is_ok(),
            "the name serves for SNI"
        );
    }
}
