//! Was it as it must be? What both proxies said and what the wire showed, held against what was expected. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use hauberk_lab::{Flow, tls};
use hauberk_mesh::{
    ADMIN_PORT, CONTROL_ADMIN_PORT, Connection, Connections, Direction, MESH_PORT, Reason, TransportState,
};

/// All that is known after the traffic has passed.
#[derive(Debug, Clone)]
pub(crate) struct Evidence {
    /// The pods by name.
    pub(crate) pods: BTreeMap<&'static str, PodFacts>,
    /// The node's own address, from which readiness is asked.
    pub(crate) node: IpAddr,
    /// What was done.
    pub(crate) exchanges: Vec<Exchange>,
    /// Every connection on the bridge.
    pub(crate) flows: Vec<Flow>,
    /// Packets that the capture missed.
    pub(crate) dropped: u64,
    /// Those of the exchanges' markers that were somewhere on the wire.
    pub(crate) seen: BTreeSet<&'static str>,
}

/// A pod of the demo.
#[derive(Debug, Clone)]
pub(crate) struct PodFacts {
    pub(crate) ip: IpAddr,
    /// If it is meshed: who it is.
    pub(crate) identity: Option<String>,
    /// If it is meshed: what its proxy says.
    pub(crate) connections: Option<Connections>,
    /// If it is of the control plane: where it answers with TLS of its own.
    pub(crate) tls_port: Option<u16>,
}

/// One client that talks to one server.
#[derive(Debug, Clone)]
pub(crate) struct Exchange {
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    pub(crate) protocol: &'static str,
    /// What the client dialled.
    pub(crate) dialled: SocketAddr,
    /// Where the server listens in its pod.
    pub(crate) port: u16,
    /// What the applications said, and nobody else.
    pub(crate) markers: &'static [&'static str],
    pub(crate) expected: Expected,
    /// Why it is as expected, for people.
    pub(crate) why: &'static str,
    /// What the client program said, if it failed.
    pub(crate) failed: Option<String>,
}

impl Exchange {
    /// An exchange of two meshed pods. `dialled` is what the client dialled, `port` where the server listens.
    pub(crate) fn between(
        from: &'static str,
        to: &'static str,
        protocol: &'static str,
        dialled: (IpAddr, u16),
        port: u16,
    ) -> Self {
        let (expected, why) = (Expected::Mtls, "both have a proxy");
        Self { from, to, protocol, dialled: dialled.into(), port, markers: &[], expected, why, failed: None }
    }

    /// What was said, and whether the client got what it wanted.
    pub(crate) fn saying(mut self, markers: &'static [&'static str], result: &anyhow::Result<()>) -> Self {
        self.markers = markers;
        self.failed = result.as_ref().err().map(|error| format!("{error:#}"));
        self
    }

    /// Not mTLS, as the proxy on `side` says.
    pub(crate) fn in_the_clear(mut self, side: Direction, reason: Reason, why: &'static str) -> Self {
        (self.expected, self.why) = (Expected::Cleartext(side, reason), why);
        self
    }
}

/// How an exchange must be protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Mutual TLS, as both proxies say.
    Mtls,
    /// Plaintext, as the proxy on that side says, for that reason; the other side has none, or does not see it.
    Cleartext(Direction, Reason),
}

/// What the demo shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    /// What is wrong beyond any one exchange.
    pub(crate) failures: Vec<String>,
    /// Connections and application bytes on the wire.
    pub(crate) flows: usize,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    pub(crate) protocol: &'static str,
    pub(crate) secured: String,
    pub(crate) identities: String,
    pub(crate) bytes: u64,
    pub(crate) plaintext: String,
    pub(crate) why: &'static str,
    /// What is not as it must be.
    pub(crate) failures: Vec<String>,
}

impl Report {
    /// Whether everything was as it must be.
    pub(crate) fn passed(&self) -> bool {
        self.failures.is_empty() && self.rows.iter().all(|row| row.failures.is_empty())
    }
}

/// Holds `evidence` against what was expected.
pub(crate) fn check(evidence: &Evidence) -> Report {
    let rows = evidence.exchanges.iter().map(|exchange| Checked::new(evidence, exchange).row()).collect();
    let mut failures = Vec::new();
    if evidence.dropped > 0 {
        failures.push(format!("the capture missed {} packets: it proves nothing", evidence.dropped));
    }
    failures.extend(evidence.flows.iter().filter_map(|flow| check_flow(evidence, flow).err()));
    failures.extend(unexpected_records(evidence));
    Report { rows, failures, flows: evidence.flows.len() }
}

/// One exchange with what was found of it.
struct Checked<'a> {
    exchange: &'a Exchange,
    from: &'a PodFacts,
    to: &'a PodFacts,
    outbound: Vec<&'a Connection>,
    inbound: Vec<&'a Connection>,
    /// Its own connections, to the application's port.
    direct: Vec<&'a Flow>,
    /// Those of its pods to the mesh port, which other exchanges of the same pods use too.
    mesh: Vec<&'a Flow>,
    /// What the proxies report for all exchanges that use `mesh`.
    mesh_reported: u64,
    seen: Vec<&'static str>,
    failures: Vec<String>,
}

impl<'a> Checked<'a> {
    fn new(evidence: &'a Evidence, exchange: &'a Exchange) -> Self {
        let (from, to) = (&evidence.pods[exchange.from], &evidence.pods[exchange.to]);
        let flows = |port| {
            let between =
                move |flow: &&Flow| flow.client.ip() == from.ip && flow.server == SocketAddr::new(to.ip, port);
            evidence.flows.iter().filter(between).collect::<Vec<_>>()
        };
        let same_pods = |other: &&Exchange| (other.from, other.to) == (exchange.from, exchange.to);
        let reported = evidence.exchanges.iter().filter(same_pods).filter(|other| other.expected == Expected::Mtls);
        Self {
            exchange,
            from,
            to,
            outbound: records(from).filter(|record| is_outbound(record, exchange, to)).collect(),
            inbound: records(to).filter(|record| is_inbound(record, exchange, from, to)).collect(),
            direct: flows(exchange.port),
            mesh: flows(MESH_PORT),
            mesh_reported: reported
                .flat_map(|other| records(from).filter(|record| is_outbound(record, other, to)))
                .map(bytes)
                .sum(),
            seen: exchange.markers.iter().copied().filter(|marker| evidence.seen.contains(marker)).collect(),
            failures: exchange.failed.iter().map(|why| format!("the client failed: {why}")).collect(),
        }
    }

    fn row(mut self) -> Row {
        match self.exchange.expected {
            Expected::Mtls => self.check_mtls(),
            Expected::Cleartext(side, reason) => self.check_cleartext(side, reason),
        }
        let (reporting, _) = self.reporting();
        let states: BTreeSet<_> =
            reporting.iter().filter_map(|record| record.state).map(TransportState::as_str).collect();
        Row {
            from: self.exchange.from,
            to: self.exchange.to,
            protocol: self.exchange.protocol,
            secured: states.into_iter().collect::<Vec<_>>().join(", "),
            identities: self.identities(),
            bytes: reporting.iter().copied().map(bytes).sum(),
            plaintext: self.plaintext(),
            why: self.exchange.why,
            failures: self.failures,
        }
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
        for record in self.outbound.iter().chain(&self.inbound).copied().collect::<Vec<_>>() {
            let version = record.tls.as_ref().map(|tls| tls.version.as_str());
            let mtls = record.state == Some(TransportState::Mtls) && record.reason.is_none();
            self.require(mtls && version == Some("TLSv1_3"), || format!("not mTLS of TLS 1.3: {record:?}"));
            let said = (record.client_identity.as_ref(), record.server_identity.as_ref());
            let are = (self.from.identity.as_ref(), self.to.identity.as_ref());
            self.require(said == are, || format!("the {} proxy names other identities: {said:?}", record.direction));
        }
        let sums = [&self.outbound, &self.inbound].map(|records| records.iter().copied().map(bytes).sum::<u64>());
        self.require(sums[0] == sums[1] && sums[0] > 0, || {
            format!("the client's proxy reports {} bytes, the server's {}", sums[0], sums[1])
        });
        let seen = self.seen.join(", ");
        self.require(seen.is_empty(), || format!("in the clear on the wire: {seen}"));
        let direct = self.direct.len();
        self.require(direct == 0, || format!("{direct} connections past the mesh port"));
        let (wire, reported) = (self.mesh.iter().map(|flow| flow.bytes()).sum::<u64>(), self.mesh_reported);
        self.require(wire >= reported, || format!("{wire} bytes on the wire, but the proxies report {reported}"));
    }

    fn check_cleartext(&mut self, side: Direction, reason: Reason) {
        let (reporting, silent) = self.reporting();
        let reporting = reporting.to_vec();
        let (found, others) = (reporting.len(), silent.len());
        self.require(found > 0, || format!("the {side} proxy has no such connection"));
        self.require(others == 0, || format!("the proxy on the other side has {others} such connections"));
        for record in &reporting {
            let as_expected = record.state == Some(TransportState::Cleartext) && record.reason == Some(reason);
            self.require(as_expected, || format!("not {reason}: {record:?}"));
        }
        let hidden: Vec<_> = self.exchange.markers.iter().filter(|marker| !self.seen.contains(marker)).collect();
        self.require(hidden.is_empty(), || format!("the capture would not have shown plaintext: it lacks {hidden:?}"));
        let (wire, reported) =
            (self.direct.iter().map(|flow| flow.bytes()).sum::<u64>(), reporting.iter().copied().map(bytes).sum());
        self.require(wire >= reported, || format!("{wire} bytes on the wire, but the proxy reports {reported}"));
    }

    /// The records of the side that has them, and those of the other side.
    fn reporting(&self) -> (&[&'a Connection], &[&'a Connection]) {
        match self.exchange.expected {
            Expected::Cleartext(Direction::Inbound, _) => (&self.inbound, &self.outbound),
            _ => (&self.outbound, &self.inbound),
        }
    }

    /// As the certificates say: of the client, then of the server.
    fn identities(&self) -> String {
        let names = |record: &&Connection| {
            let pair = [record.client_identity.as_deref(), record.server_identity.as_deref()];
            (record.state == Some(TransportState::Mtls))
                .then(|| pair.map(|name| short(name.unwrap_or("?"))).join(" → "))
        };
        let all: BTreeSet<_> = self.outbound.iter().chain(&self.inbound).filter_map(names).collect();
        all.into_iter().collect::<Vec<_>>().join(" / ")
    }

    fn plaintext(&self) -> String {
        match (self.seen.first(), self.exchange.expected) {
            (None, _) => "none".to_owned(),
            (Some(marker), Expected::Mtls) => format!("YES: {marker}"),
            (Some(marker), Expected::Cleartext(..)) => format!("yes, as expected: {marker}"),
        }
    }
}

/// `web.shop` of `web.shop.serviceaccount.identity.…`.
fn short(identity: &str) -> &str {
    identity.split(".serviceaccount.").next().unwrap_or_default()
}

fn records(pod: &PodFacts) -> impl Iterator<Item = &Connection> {
    pod.connections.iter().flat_map(|all| all.live.iter().chain(&all.closed))
}

fn bytes(record: &Connection) -> u64 {
    record.bytes_to_server + record.bytes_to_client
}

fn is_outbound(record: &Connection, exchange: &Exchange, to: &PodFacts) -> bool {
    let endpoint = Some(SocketAddr::new(to.ip, exchange.port));
    record.direction == Direction::Outbound && record.target == exchange.dialled && record.endpoint == endpoint
}

fn is_inbound(record: &Connection, exchange: &Exchange, from: &PodFacts, to: &PodFacts) -> bool {
    let target = SocketAddr::new(to.ip, exchange.port);
    record.direction == Direction::Inbound && record.client.ip() == from.ip && record.target == target
}

/// Every connection on the wire must be one that can be explained, and of the form that its explanation has.
fn check_flow(evidence: &Evidence, flow: &Flow) -> Result<(), String> {
    let fail = |what: &str| {
        Err(format!("{} to {} on the wire: {what}", name(evidence, flow.client), name(evidence, flow.server)))
    };
    if !flow.syn_seen {
        return fail("it was open before the capture began");
    }
    if let Some(gap) = flow.to_server.gap.or(flow.to_client.gap) {
        return fail(&format!("bytes are missing at {gap}"));
    }
    let server = pod_at(evidence, flow.server.ip());
    let from_node = flow.client.ip() == evidence.node;
    match (flow.server.port(), server) {
        (ADMIN_PORT | CONTROL_ADMIN_PORT, Some(_)) if from_node => Ok(()),
        (MESH_PORT, Some(PodFacts { identity: Some(identity), .. })) => {
            check_tls(flow, Some(identity)).or_else(|what| fail(&what))
        }
        (port, Some(server)) if server.tls_port == Some(port) => check_tls(flow, None).or_else(|what| fail(&what)),
        _ if evidence.exchanges.iter().any(|exchange| is_cleartext(evidence, exchange, flow)) => Ok(()),
        _ => fail("nobody expected it"),
    }
}

fn check_tls(flow: &Flow, server_name: Option<&String>) -> Result<(), String> {
    for (stream, way) in [(&flow.to_server, "the client"), (&flow.to_client, "the server")] {
        let view = tls::inspect(&stream.bytes);
        if let Some(offence) = view.offence {
            return Err(format!("not TLS 1.3 from {way}, {offence}"));
        }
        if view.incomplete > 0 {
            return Err(format!("the last {} bytes from {way} are no whole record", view.incomplete));
        }
        let asked = view.server_name.as_ref();
        if way == "the client" && server_name.is_some_and(|name| !stream.bytes.is_empty() && asked != Some(name)) {
            return Err(format!("the server name is {asked:?}"));
        }
    }
    Ok(())
}

fn is_cleartext(evidence: &Evidence, exchange: &Exchange, flow: &Flow) -> bool {
    let (from, to) = (&evidence.pods[exchange.from], &evidence.pods[exchange.to]);
    exchange.expected != Expected::Mtls
        && flow.client.ip() == from.ip
        && flow.server == SocketAddr::new(to.ip, exchange.port)
}

/// What a proxy reports and no exchange explains.
fn unexpected_records(evidence: &Evidence) -> impl Iterator<Item = String> {
    let explained = |record: &Connection, pod: &str| {
        evidence.exchanges.iter().any(|exchange| {
            let (from, to) = (&evidence.pods[exchange.from], &evidence.pods[exchange.to]);
            (exchange.from == pod && is_outbound(record, exchange, to))
                || (exchange.to == pod && is_inbound(record, exchange, from, to))
        })
    };
    let all = evidence.pods.iter().flat_map(|(pod, facts)| records(facts).map(move |record| (pod, record)));
    all.filter(move |(pod, record)| !explained(record, pod)).map(|(pod, record)| {
        format!("{pod}: a connection that nobody expected: {} to {}: {record:?}", record.client, record.target)
    })
}

fn pod_at(evidence: &Evidence, ip: IpAddr) -> Option<&PodFacts> {
    evidence.pods.values().find(|pod| pod.ip == ip)
}

fn name(evidence: &Evidence, addr: SocketAddr) -> String {
    let pod = evidence.pods.iter().find(|(_, pod)| pod.ip == addr.ip());
    pod.map_or_else(|| addr.to_string(), |(name, _)| format!("{name} ({addr})"))
}

#[cfg(test)]
mod tests;
