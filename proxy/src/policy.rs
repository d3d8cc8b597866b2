//! What may pass without mTLS, and why: the table of `optional`, `required` and `disabled`. Pure.

use std::net::{IpAddr, SocketAddr};

use hauberk_mesh::{CloseCause, Egress, Exception, PROXY_PORTS, ProxySpec, Reason, TlsMode};

/// What to do with a connection of the application, before discovery is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outbound {
    /// To where it was going, as it came.
    Forward(Reason),
    /// The same, once the client's first bytes are a ClientHello.
    ForwardTls(Reason),
    /// Reset.
    Refuse(CloseCause, Option<Reason>),
    /// Discovery says what the target is.
    Discover,
}

/// Decides about `target`. `own`: it is an address of this pod; `inside`: it belongs to the cluster.
pub(crate) fn outbound(spec: &ProxySpec, target: SocketAddr, own: bool, inside: bool) -> Outbound {
    let required = spec.tls == TlsMode::Required;
    if own && PROXY_PORTS.contains(&target.port()) {
        return Outbound::Refuse(CloseCause::PortNotAllowed, None);
    }
    if own {
        return Outbound::Forward(Reason::Loopback);
    }
    if spec.tls == TlsMode::Disabled {
        return Outbound::Forward(Reason::TlsDisabled);
    }
    if spec.api_server == Some(target) || is_dns(&spec.resolvers, target) {
        return Outbound::Forward(Reason::Exception);
    }
    if inside {
        return Outbound::Discover;
    }
    match spec.egress {
        _ if !required => Outbound::Forward(Reason::OutsideCluster),
        _ if covered(&spec.allow_unmeshed_to, target) => Outbound::Forward(Reason::Exception),
        Egress::Allow => Outbound::Forward(Reason::OutsideCluster),
        Egress::TlsOnly => Outbound::ForwardTls(Reason::OutsideCluster),
        Egress::Deny => Outbound::Refuse(CloseCause::EgressDenied, Some(Reason::OutsideCluster)),
    }
}

/// The reason with which an address may be reached without mTLS that is, for `why`, not meshed; or that it may not.
/// `addrs`: the address dialled, and the endpoint behind it.
pub(crate) fn plaintext(spec: &ProxySpec, why: Reason, addrs: &[SocketAddr]) -> Result<Reason, Reason> {
    match spec.tls {
        TlsMode::Optional | TlsMode::Disabled => Ok(why),
        TlsMode::Required if addrs.iter().any(|addr| covered(&spec.allow_unmeshed_to, *addr)) => Ok(Reason::Exception),
        TlsMode::Required => Err(why),
    }
}

/// Whether a client without mTLS may come to `target` on this pod.
pub(crate) fn inbound(spec: &ProxySpec, client: IpAddr, target: SocketAddr) -> Result<Reason, (CloseCause, Reason)> {
    if PROXY_PORTS.contains(&target.port()) {
        return Err((CloseCause::PortNotAllowed, Reason::UnmeshedClient));
    }
    match spec.tls {
        TlsMode::Optional => Ok(Reason::UnmeshedClient),
        TlsMode::Disabled => Ok(Reason::TlsDisabled),
        TlsMode::Required if covered(&spec.allow_unmeshed_from, SocketAddr::new(client, target.port())) => {
            Ok(Reason::Exception)
        }
        TlsMode::Required => Err((CloseCause::Refused, Reason::UnmeshedClient)),
    }
}

/// Whether a mesh peer may name `port`.
pub(crate) fn mesh_port(spec: &ProxySpec, port: u16) -> bool {
    port != 0 && !PROXY_PORTS.contains(&port) && !spec.redirection.skip_inbound_ports.contains(port)
}

fn is_dns(resolvers: &[IpAddr], target: SocketAddr) -> bool {
    target.port() == 53 && resolvers.contains(&target.ip())
}

fn covered(exceptions: &[Exception], addr: SocketAddr) -> bool {
    exceptions.iter().any(|exception| exception.covers(addr))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTSIDE: &str = "192.0.2.7:443";
    const INSIDE: &str = "10.1.0.9:80";

    fn spec(tls: TlsMode, egress: Egress) -> ProxySpec {
        let identity = hauberk_mesh::TrustDomain::default().identity("web", "shop").expect("valid");
        let addr = |port| SocketAddr::new(IpAddr::from([10, 2, 0, 2]), port);
        let mut spec = ProxySpec::new(identity, addr(8080), addr(8086), String::new());
        spec.tls = tls;
        spec.egress = egress;
        spec.api_server = Some("10.2.0.1:443".parse().expect("an address"));
        spec.resolvers = vec!["10.2.0.10".parse().expect("an address")];
        spec.allow_unmeshed_to = vec!["192.0.2.99@5432".parse().expect("valid"), "10.1.9.0/24".parse().expect("valid")];
        spec.allow_unmeshed_from = vec!["10.1.7.0/24@80".parse().expect("valid")];
        spec.redirection.skip_inbound_ports = "9000".parse().expect("valid");
        spec
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn outbound_by_mode_and_place() {
        use CloseCause::{EgressDenied, PortNotAllowed};
        use Egress::{Allow, Deny, TlsOnly};
        use Outbound::{Discover, Forward, ForwardTls, Refuse};
        use Reason::{Exception, Loopback, OutsideCluster, TlsDisabled};
        use TlsMode::{Disabled, Optional, Required};
        for (tls, egress, target, own, inside, decision) in [
            (Optional, Allow, INSIDE, false, true, Discover),
            (Required, Allow, INSIDE, false, true, Discover),
            (Disabled, Allow, INSIDE, false, true, Forward(TlsDisabled)),
            (Optional, Deny, OUTSIDE, false, false, Forward(OutsideCluster)),
            (Required, Allow, OUTSIDE, false, false, Forward(OutsideCluster)),
            (Required, TlsOnly, OUTSIDE, false, false, ForwardTls(OutsideCluster)),
            (Required, Deny, OUTSIDE, false, false, Refuse(EgressDenied, Some(OutsideCluster))),
            (Required, Deny, "192.0.2.99:5432", false, false, Forward(Exception)),
            (Required, Deny, "192.0.2.99:5433", false, false, Refuse(EgressDenied, Some(OutsideCluster))),
            (Disabled, Deny, OUTSIDE, false, false, Forward(TlsDisabled)),
            (Required, Deny, "10.2.0.1:443", false, true, Forward(Exception)),
            (Required, Deny, "10.2.0.10:53", false, true, Forward(Exception)),
            (Required, Deny, "10.2.0.10:54", false, true, Discover),
            (Required, Deny, INSIDE, true, true, Forward(Loopback)),
            (Optional, Allow, "10.1.0.9:4143", true, true, Refuse(PortNotAllowed, None)),
            (Disabled, Allow, "10.1.0.9:4140", true, true, Refuse(PortNotAllowed, None)),
            (Optional, Allow, "10.1.0.9:4191", false, true, Discover),
        ] {
            assert_eq!(outbound(&spec(tls, egress), addr(target), own, inside), decision, "{tls} {egress} {target}");
        }
    }

    #[test]
    fn plaintext_needs_a_mode_or_an_exception() {
        use TlsMode::{Optional, Required};
        let why = Reason::PeerNotMeshed;
        for (tls, endpoint, decision) in [
            (Optional, INSIDE, Ok(why)),
            (Required, INSIDE, Err(why)),
            (Required, "10.1.9.4:80", Ok(Reason::Exception)),
        ] {
            let addrs = [addr("10.2.0.20:80"), addr(endpoint)];
            assert_eq!(plaintext(&spec(tls, Egress::Allow), why, &addrs), decision, "{tls} {endpoint}");
        }
    }

    #[test]
    fn inbound_by_mode_and_exception() {
        use TlsMode::{Disabled, Optional, Required};
        let refused = Err((CloseCause::Refused, Reason::UnmeshedClient));
        for (tls, client, port, decision) in [
            (Optional, "10.1.3.4", 80, Ok(Reason::UnmeshedClient)),
            (Disabled, "10.1.3.4", 80, Ok(Reason::TlsDisabled)),
            (Required, "10.1.3.4", 80, refused),
            (Required, "10.1.7.4", 80, Ok(Reason::Exception)),
            (Required, "10.1.7.4", 81, refused),
            (Optional, "10.1.3.4", 4143, Err((CloseCause::PortNotAllowed, Reason::UnmeshedClient))),
        ] {
            let target = SocketAddr::new(addr(INSIDE).ip(), port);
            let client = client.parse().expect("an address");
            assert_eq!(inbound(&spec(tls, Egress::Allow), client, target), decision, "{tls} {client} {port}");
        }
    }

    #[test]
    fn a_mesh_peer_names_only_ports_of_the_application() {
        let spec = spec(TlsMode::Optional, Egress::Allow);
        assert!(mesh_port(&spec, 80) && mesh_port(&spec, 65535));
        for port in PROXY_PORTS.into_iter().chain([0, 9000]) {
            assert!(!mesh_port(&spec, port), "{port}");
        }
    }
}
