//! What both proxies and the wire say of the connections between two pods, held against what mTLS must show.

use std::net::{IpAddr, SocketAddr};

use hauberk_lab::{Captured, Flow, Pod, tls};
use hauberk_mesh::{CloseCause, Connection, Connections, Direction, MESH_PORT, TransportState};

use crate::{common::identity, streams::metric};

/// The connections of a client's pod to a port of a server's, as each of the two proxies reports them.
pub(crate) struct Ends {
    pub(crate) client: Vec<Connection>,
    pub(crate) server: Vec<Connection>,
}

impl Ends {
    /// Application bytes, both ways.
    pub(crate) fn bytes(&self) -> u64 {
        self.client.iter().map(bytes).sum()
    }

    /// Whether all ended in order. If not, the last bytes may be lost between the two proxies.
    fn are_clean(&self) -> bool {
        let clean = |record: &Connection| record.close.as_ref().is_some_and(|close| close.cause == CloseCause::Clean);
        self.client.iter().chain(&self.server).all(clean)
    }
}

/// Waits until no connection from `client` to `at`, an address of `server`, is open any more. Then each of the two
/// proxies must have reported all of them, as mTLS between these two identities, in `/connections` and in the metrics.
pub(crate) fn assert_mtls_both_ends(client: &Pod, server: &Pod, at: SocketAddr) -> Ends {
    let (from, to) = (identity(client.account()), identity(server.account()));
    let ends = Ends {
        client: records(client, |record| record.endpoint == Some(at) || record.target == at),
        server: records(server, |record| record.target == at && client.ips().contains(&record.client.ip())),
    };
    for record in ends.client.iter().chain(&ends.server) {
        assert_eq!((record.state, record.reason), (Some(TransportState::Mtls), None), "{record:#?}");
        assert_eq!(record.client_identity.as_deref(), Some(from.as_str()), "{record:#?}");
        assert_eq!(record.server_identity.as_deref(), Some(to.as_str()), "{record:#?}");
        assert_eq!(record.tls.as_ref().map(|tls| tls.version.as_str()), Some("TLSv1_3"), "{record:#?}");
        let own = client.ips().iter().any(|ip| *ip == record.client.ip() && ip.is_ipv4() == at.is_ipv4());
        assert!(own, "the client is {}: {record:#?}", client.name());
    }
    assert_eq!(ends.client.len(), ends.server.len(), "{:#?}\n{:#?}", ends.client, ends.server);
    assert!(ends.bytes() > 0, "nothing was said: {:#?}", ends.client);
    if ends.are_clean() {
        assert_eq!(ends.bytes(), ends.server.iter().map(bytes).sum::<u64>(), "{:#?}\n{:#?}", ends.client, ends.server);
    }
    let at = at.to_string();
    assert_opened(client, &[("direction", "outbound"), ("endpoint", &at)], &to, ends.client.len());
    let all = server.connections().expect("the admin port answers");
    let mtls = all.live.iter().chain(&all.closed).filter(|record| record.state == Some(TransportState::Mtls));
    let inbound = mtls.filter(|record| record.direction == Direction::Inbound).count();
    assert_opened(server, &[("direction", "inbound"), ("reason", "")], &from, inbound);
    ends
}

/// The metrics of `pod` count that many connections with these labels, and all of them with `peer`.
fn assert_opened(pod: &Pod, labels: &[(&str, &str)], peer: &str, expected: usize) {
    let with_peer = [labels, &[("peer_identity", peer)]].concat();
    let counted = [labels, &with_peer].map(|labels| metric(pod, "hauberk_connections_opened_total", labels));
    assert_eq!(counted, [expected as f64; 2], "opened by {} with {labels:?}, and {peer}", pod.name());
}

/// Those that `wanted` accepts, once there are some and all of them have ended.
fn records(pod: &Pod, wanted: impl Fn(&Connection) -> bool) -> Vec<Connection> {
    let find = |all: &Connections| {
        let found: Vec<_> = all.closed.iter().filter(|record| wanted(record)).cloned().collect();
        (!found.is_empty() && !all.live.iter().any(&wanted)).then_some(found)
    };
    pod.wait_connections("all connections of the test have ended", find).expect("they end")
}

fn bytes(record: &Connection) -> u64 {
    record.bytes_to_server + record.bytes_to_client
}

/// Between the addresses of the two pods nothing was on the wire but TLS 1.3 to the mesh port, for the server's
/// identity, and at least as many bytes of it as the proxies say they carried.
pub(crate) fn assert_only_tls13(captured: &Captured, client: &Pod, server: &Pod, carried: u64) {
    captured.check_whole().expect("the capture is whole");
    let mut encrypted = 0;
    for flow in between(captured, client.ips(), server.ips()) {
        let sides = [tls::inspect(&flow.to_server.bytes), tls::inspect(&flow.to_client.bytes)];
        let about = format!("{} to {}: {sides:?}", flow.client, flow.server);
        assert_eq!(flow.server.port(), MESH_PORT, "{about}");
        assert!(flow.syn_seen && sides.iter().all(tls::TlsView::only_tls13) && sides[1].chose_tls13, "{about}");
        assert_eq!(sides[0].server_name.as_deref(), Some(identity(server.account()).as_str()), "{about}");
        encrypted += sides[0].encrypted_bytes + sides[1].encrypted_bytes;
    }
    assert!(encrypted >= carried, "{encrypted} bytes encrypted on the wire, {carried} carried");
    assert_eq!(between(captured, server.ips(), client.ips()).count(), 0, "the server dials nobody");
}

fn between<'a>(captured: &'a Captured, from: &'a [IpAddr], to: &'a [IpAddr]) -> impl Iterator<Item = &'a Flow> {
    from.iter().flat_map(move |from| to.iter().flat_map(move |to| captured.between(*from, *to)))
}

/// None of the markers was on the wire.
pub(crate) fn assert_unseen(captured: &Captured, markers: &[&str]) {
    for marker in markers {
        assert!(!captured.contains(marker.as_bytes()), "in the clear on the wire: {marker}");
    }
}
