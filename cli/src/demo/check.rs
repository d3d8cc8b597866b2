//! Was it as it must be? What both proxies said and what the wire showed, held against what was expected. Pure.

mod exchange;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use hauberk_lab::Flow;
use hauberk_mesh::{Connection, Connections, Direction, Reason};

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
    /// How many connections were on the wire.
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
    pub(crate) why: String,
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
    let rows = evidence.exchanges.iter().map(|exchange| exchange::row(evidence, exchange)).collect();
    let mut failures = Vec::new();
    if evidence.dropped > 0 {
        failures.push(format!("the capture missed {} packets: it proves nothing", evidence.dropped));
    }
    failures.extend(evidence.flows.iter().filter_map(|flow| wire::check(evidence, flow).err()));
    failures.extend(unexpected_records(evidence));
    Report { rows, failures, flows: evidence.flows.len() }
}

/// What a proxy reports and no exchange explains.
fn unexpected_records(evidence: &Evidence) -> impl Iterator<Item = String> {
    let explained = |record: &Connection, pod: &str| {
        evidence.exchanges.iter().any(|exchange| {
            let (from, to) = evidence.ends(exchange);
            (exchange.from == pod && exchange.is_outbound(record, to))
                || (exchange.to == pod && exchange.is_inbound(record, from, to))
        })
    };
    let all = evidence.pods.iter().flat_map(|(pod, facts)| facts.records().map(move |record| (pod, record)));
    all.filter(move |(pod, record)| !explained(record, pod)).map(|(pod, record)| {
        let close = record.close.as_ref().map_or("open", |close| close.cause.as_str());
        format!("{pod} has a connection that nobody expected: {} to {}, {close}", record.client, record.target)
    })
}

impl Evidence {
    /// The pods of client and server.
    fn ends(&self, exchange: &Exchange) -> (&PodFacts, &PodFacts) {
        (&self.pods[exchange.from], &self.pods[exchange.to])
    }
}

impl PodFacts {
    /// What its proxy reports, if it has one.
    fn records(&self) -> impl Iterator<Item = &Connection> {
        self.connections.iter().flat_map(|all| all.live.iter().chain(&all.closed))
    }
}

impl Exchange {
    /// Whether `record`, of the client's proxy, is of this exchange.
    fn is_outbound(&self, record: &Connection, to: &PodFacts) -> bool {
        let endpoint = Some(SocketAddr::new(to.ip, self.port));
        record.direction == Direction::Outbound && record.target == self.dialled && record.endpoint == endpoint
    }

    /// Whether `record`, of the server's proxy, is of this exchange.
    fn is_inbound(&self, record: &Connection, from: &PodFacts, to: &PodFacts) -> bool {
        let target = SocketAddr::new(to.ip, self.port);
        record.direction == Direction::Inbound && record.client.ip() == from.ip && record.target == target
    }
}

#[cfg(test)]
mod tests;
