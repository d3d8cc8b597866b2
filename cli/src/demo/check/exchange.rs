//! One exchange: what both proxies say of it against what was expected, and its line of the table.

use std::{collections::BTreeSet, net::SocketAddr};

use hauberk_lab::Flow;
use hauberk_mesh::{Connection, Direction, MESH_PORT, Reason, TransportState};

use super::{Evidence, Exchange, Expected, PodFacts, Row};

/// Checks `exchange`; its line of the table.
pub(super) fn row(evidence: &Evidence, exchange: &Exchange) -> Row {
    let mut found = Found::of(evidence, exchange);
    let why = match exchange.expected {
        Expected::Mtls => {
            found.check_mtls();
            exchange.why.to_owned()
        }
        Expected::Cleartext(side, reason) => {
            found.check_cleartext(side, reason);
            format!("{reason}: {}", exchange.why)
        }
    };
    let said: BTreeSet<_> = found.records().map(state).collect();
    Row {
        from: exchange.from,
        to: exchange.to,
        protocol: exchange.protocol,
        secured: said.into_iter().collect::<Vec<_>>().join(", "),
        identities: found.identities(),
        bytes: bytes(&found.outbound).max(bytes(&found.inbound)),
        plaintext: found.plaintext(),
        why,
        failures: found.failures,
    }
}

/// What was found of one exchange.
struct Found<'a> {
    exchange: &'a Exchange,
    from: &'a PodFacts,
    to: &'a PodFacts,
    /// What the client's proxy says.
    outbound: Vec<&'a Connection>,
    /// What the server's proxy says.
    inbound: Vec<&'a Connection>,
    /// Connections on the wire to the application's port.
    direct: Vec<&'a Flow>,
    /// Bytes on the wire to the mesh port: of all exchanges of the same pods, which share its connections.
    mesh_wire: u64,
    /// What the client's proxy reports for these.
    mesh_reported: u64,
    seen: Vec<&'static str>,
    failures: Vec<String>,
}

impl<'a> Found<'a> {
    fn of(evidence: &'a Evidence, exchange: &'a Exchange) -> Self {
        let (from, to) = evidence.ends(exchange);
        let flows = |port| {
            let server = SocketAddr::new(to.ip, port);
            evidence.flows.iter().filter(move |flow| flow.client.ip() == from.ip && flow.server == server)
        };
        let alike =
            |other: &&Exchange| (other.from, other.to, other.expected) == (exchange.from, exchange.to, Expected::Mtls);
        let outbound = |exchange: &Exchange| -> Vec<_> {
            from.records().filter(|record| exchange.is_outbound(record, to)).collect()
        };
        Self {
            exchange,
            from,
            to,
            outbound: outbound(exchange),
            inbound: to.records().filter(|record| exchange.is_inbound(record, from, to)).collect(),
            direct: flows(exchange.port).collect(),
            mesh_wire: flows(MESH_PORT).map(Flow::bytes).sum(),
            mesh_reported: evidence.exchanges.iter().filter(alike).map(|other| bytes(&outbound(other))).sum(),
            seen: exchange.markers.iter().copied().filter(|marker| evidence.seen.contains(marker)).collect(),
            failures: exchange.failed.iter().map(|why| format!("the client failed: {why}")).collect(),
        }
    }

    fn records(&self) -> impl Iterator<Item = &'a Connection> {
        self.outbound.iter().chain(&self.inbound).copied()
    }

    fn require(&mut self, holds: bool, failure: impl FnOnce() -> String) {
        if !holds {
            self.failures.push(failure());
        }
    }

    fn check_mtls(&mut self) {
        let (out, inn) = (self.outbound.len(), self.inbound.len());
        self.require(out > 0 && out == inn, || {
            format!("the client's proxy has {out} such connections, the server's {inn}")
        });
        for record in self.records().collect::<Vec<_>>() {
            let (side, state) = (record.direction, state(record));
            let version = record.tls.as_ref().map_or("no TLS", |tls| tls.version.as_str());
            self.require(state == TransportState::Mtls.as_str() && version == "TLSv1_3", || {
                format!("the {side} proxy says {state}, {version}")
            });
            let said = (record.client_identity.as_ref(), record.server_identity.as_ref());
            let are = (self.from.identity.as_ref(), self.to.identity.as_ref());
            self.require(said == are, || format!("the {side} proxy names {said:?}, but the pods are {are:?}"));
        }
        let (out, inn) = (bytes(&self.outbound), bytes(&self.inbound));
        self.require(out == inn && out > 0, || format!("the client's proxy reports {out} bytes, the server's {inn}"));
        let seen = self.seen.join(", ");
        self.require(seen.is_empty(), || format!("in the clear on the wire: {seen}"));
        let direct = self.direct.len();
        self.require(direct == 0, || format!("connections on the wire past the mesh port: {direct}"));
        let (wire, reported) = (self.mesh_wire, self.mesh_reported);
        self.require(wire >= reported, || format!("{wire} bytes on the wire, but the proxies report {reported}"));
    }

    fn check_cleartext(&mut self, side: Direction, reason: Reason) {
        let (reporting, silent) = match side {
            Direction::Outbound => (self.outbound.clone(), self.inbound.len()),
            Direction::Inbound => (self.inbound.clone(), self.outbound.len()),
        };
        self.require(!reporting.is_empty(), || format!("the {side} proxy has no such connection"));
        self.require(silent == 0, || format!("connections that the proxy on the other side should not have: {silent}"));
        for record in &reporting {
            let said = (state(record), record.reason.map_or("no reason", Reason::as_str));
            self.require(said == (TransportState::Cleartext.as_str(), reason.as_str()), || {
                format!("the {side} proxy says {}, {}; not cleartext, {reason}", said.0, said.1)
            });
        }
        let markers = self.exchange.markers.iter();
        let hidden: Vec<_> = markers.filter(|marker| !self.seen.contains(marker)).copied().collect();
        self.require(hidden.is_empty(), || {
            format!("the capture would not have shown plaintext: it lacks {}", hidden.join(", "))
        });
        let (wire, reported) = (self.direct.iter().map(|flow| flow.bytes()).sum::<u64>(), bytes(&reporting));
        self.require(wire >= reported, || format!("{wire} bytes on the wire, but the proxy reports {reported}"));
    }

    /// As the certificates say: of the client, then of the server. More than one pair if the proxies disagree.
    fn identities(&self) -> String {
        let pairs =
            self.records().filter(|record| record.client_identity.is_some() || record.server_identity.is_some());
        let pairs = pairs.map(|record| {
            [&record.client_identity, &record.server_identity]
                .map(|name| short(name.as_deref().unwrap_or("?")))
                .join(" → ")
        });
        pairs.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" / ")
    }

    fn plaintext(&self) -> String {
        match (self.seen.first(), self.exchange.expected) {
            (None, _) => "none".to_owned(),
            (Some(marker), Expected::Mtls) => format!("YES: {marker}"),
            (Some(marker), Expected::Cleartext(..)) => format!("yes, as expected: {marker}"),
        }
    }
}

fn state(record: &Connection) -> &'static str {
    record.state.map_or("nothing", TransportState::as_str)
}

fn bytes(records: &[&Connection]) -> u64 {
    records.iter().map(|record| record.bytes_to_server + record.bytes_to_client).sum()
}

/// `web.shop` of `web.shop.serviceaccount.identity.…`.
fn short(identity: &str) -> &str {
    identity.split(".serviceaccount.").next().unwrap_or_default()
}
