//! All metrics of the proxy. `docs/metrics.md` lists them; a test holds the two together.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hauberk_mesh::{Direction, HandshakeKind, Limits, ProbeKind};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::{listen::Role, series::Table};

/// The admin ports, as the label `listener` has them.
pub(crate) const ADMIN: &str = "admin";
/// The probe port, likewise.
pub(crate) const PROBES: &str = "probes";

/// A term of a closed list as a label's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Term(pub(crate) &'static str);

impl EncodeLabelValue for Term {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.0, encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DirectionLabel {
    direction: Term,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct HandshakeLabels {
    direction: Term,
    /// `full`, `resumed`, or `failed`.
    result: Term,
    /// Whose fault a failure was: `peer` or `local`; else empty.
    fault: Term,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ListenerLabel {
    listener: Term,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct BypassLabels {
    direction: Term,
    protocol: Term,
    port: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ProbeLabels {
    probe: Term,
    /// `success` or `failure`.
    result: Term,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct IdentityLabel {
    identity: String,
}

/// Whose fault a failed handshake was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Peer,
    Local,
}

/// All metrics of the proxy.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) table: Arc<Table>,
    connect: Family<DirectionLabel, Histogram>,
    handshake: Family<DirectionLabel, Histogram>,
    handshakes: Family<HandshakeLabels, Counter>,
    streams: Family<DirectionLabel, Histogram>,
    bypassed: Family<BypassLabels, Counter>,
    accept_errors: Family<ListenerLabel, Counter>,
    limit_reached: Family<ListenerLabel, Counter>,
    probes: Family<ProbeLabels, Counter>,
    pub(crate) panics: Counter,
    pub(crate) pool_idle: Gauge,
    certificate_expiry: Family<IdentityLabel, Gauge>,
    pub(crate) certificate_generation: Gauge,
    pub(crate) trust_generation: Gauge,
}

impl Metrics {
    /// Registers everything with `registry`, whose prefix is `hauberk`.
    pub(crate) fn register(registry: &mut Registry, limits: &Limits) -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.000_1, 4.0, 9));
        let metrics = Self {
            table: Arc::new(Table::new(limits.series)),
            connect: Family::new_with_constructor(seconds),
            handshake: Family::new_with_constructor(seconds),
            handshakes: Family::default(),
            streams: Family::new_with_constructor(|| Histogram::new(exponential_buckets(1.0, 4.0, 8))),
            bypassed: Family::default(),
            accept_errors: Family::default(),
            limit_reached: Family::default(),
            probes: Family::default(),
            panics: Counter::default(),
            pool_idle: Gauge::default(),
            certificate_expiry: Family::default(),
            certificate_generation: Gauge::default(),
            trust_generation: Gauge::default(),
        };
        registry.register_collector(Box::new(metrics.table.clone()));
        registry.register(
            "connect_seconds",
            "Time to connect to an endpoint or the application",
            metrics.connect.clone(),
        );
        registry.register("handshake_seconds", "Time of a mesh handshake", metrics.handshake.clone());
        registry.register(
            "handshakes",
            "Mesh handshakes by result, and by whose fault they failed",
            metrics.handshakes.clone(),
        );
        registry.register("streams_per_connection", "Streams that a mesh connection served", metrics.streams.clone());
        registry.register(
            "bypassed",
            "What the kernel's rules let pass without the proxy, sampled",
            metrics.bypassed.clone(),
        );
        registry.register("accept_errors", "Connections that could not be accepted", metrics.accept_errors.clone());
        registry.register(
            "limit_reached",
            "Connections refused because a limit was reached",
            metrics.limit_reached.clone(),
        );
        registry.register(
            "probes",
            "Probes and hooks of the application, as kubelet asked for them",
            metrics.probes.clone(),
        );
        registry.register("panics", "Connection tasks that panicked", metrics.panics.clone());
        registry.register("pool_idle", "Idle mesh connections that may be used again", metrics.pool_idle.clone());
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When this proxy's certificate expires",
            metrics.certificate_expiry.clone(),
        );
        registry.register(
            "certificate_generation",
            "Counts this proxy's certificates since it started",
            metrics.certificate_generation.clone(),
        );
        registry.register("trust_generation", "Generation of the trust bundle", metrics.trust_generation.clone());
        metrics.begin_at_zero();
        metrics
    }

    /// A counter that appears with its first count hides that count from whoever looks at its growth. What may be
    /// counted is known for all but peers, ports and identities.
    fn begin_at_zero(&self) {
        for direction in Direction::ALL.iter().copied() {
            drop(self.connect.get_or_create(&label(direction)));
            drop(self.handshake.get_or_create(&label(direction)));
            drop(self.streams.get_or_create(&label(direction)));
            for (result, fault) in [("full", ""), ("resumed", ""), ("failed", "peer"), ("failed", "local")] {
                let labels =
                    HandshakeLabels { direction: Term(direction.as_str()), result: Term(result), fault: Term(fault) };
                drop(self.handshakes.get_or_create(&labels));
            }
        }
        for listener in [Role::Outbound, Role::Inbound, Role::Mesh].map(Role::name) {
            drop(self.accept_errors.get_or_create(&ListenerLabel { listener: Term(listener) }));
            drop(self.limit_reached.get_or_create(&ListenerLabel { listener: Term(listener) }));
        }
        for listener in [ADMIN, PROBES] {
            drop(self.limit_reached.get_or_create(&ListenerLabel { listener: Term(listener) }));
        }
        drop(self.accept_errors.get_or_create(&ListenerLabel { listener: Term(PROBES) }));
        for kind in ProbeKind::ALL.iter().copied() {
            for result in ["success", "failure"] {
                drop(self.probes.get_or_create(&ProbeLabels { probe: Term(kind.as_str()), result: Term(result) }));
            }
        }
    }

    pub(crate) fn connected(&self, direction: Direction, time: Duration) {
        self.connect.get_or_create(&label(direction)).observe(time.as_secs_f64());
    }

    pub(crate) fn handshake(&self, direction: Direction, kind: HandshakeKind, time: Duration) {
        self.handshake.get_or_create(&label(direction)).observe(time.as_secs_f64());
        let labels =
            HandshakeLabels { direction: Term(direction.as_str()), result: Term(kind.as_str()), fault: Term("") };
        self.handshakes.get_or_create(&labels).inc();
    }

    pub(crate) fn handshake_failed(&self, direction: Direction, fault: Fault) {
        let fault = Term(if fault == Fault::Peer { "peer" } else { "local" });
        let labels = HandshakeLabels { direction: Term(direction.as_str()), result: Term("failed"), fault };
        self.handshakes.get_or_create(&labels).inc();
    }

    pub(crate) fn mesh_connection_ended(&self, direction: Direction, streams: u32) {
        self.streams.get_or_create(&label(direction)).observe(f64::from(streams));
    }

    pub(crate) fn bypassed(&self, direction: Direction, protocol: &'static str, port: u16, count: u64) {
        let labels = BypassLabels { direction: Term(direction.as_str()), protocol: Term(protocol), port: port.into() };
        self.bypassed.get_or_create(&labels).inc_by(count);
    }

    pub(crate) fn accept_error(&self, listener: &'static str) {
        self.accept_errors.get_or_create(&ListenerLabel { listener: Term(listener) }).inc();
    }

    pub(crate) fn limit_reached(&self, listener: &'static str) {
        self.limit_reached.get_or_create(&ListenerLabel { listener: Term(listener) }).inc();
    }

    pub(crate) fn probed(&self, kind: ProbeKind, succeeds: bool) {
        let result = Term(if succeeds { "success" } else { "failure" });
        self.probes.get_or_create(&ProbeLabels { probe: Term(kind.as_str()), result }).inc();
    }

    pub(crate) fn certificate(&self, identity: &str, expires: SystemTime, generation: u64, trust: u64) {
        let expires = expires.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let labels = IdentityLabel { identity: identity.to_owned() };
        self.certificate_expiry.get_or_create(&labels).set(expires as i64);
        self.certificate_generation.set(generation as i64);
        self.trust_generation.set(trust as i64);
    }
}

fn label(direction: Direction) -> DirectionLabel {
    DirectionLabel { direction: Term(direction.as_str()) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use hauberk_mesh::{CloseCause, ClosedBy, FirstBytes, TransportState};
    use prometheus_client::encoding::text;

    use crate::series::{Kind, Subject};

    /// Every metric of a proxy, with one sample each.
    fn exposition() -> String {
        let mut registry = Registry::with_prefix("hauberk");
        let metrics = Metrics::register(&mut registry, &Limits::default());
        crate::discovery::Discovery::new(
            tonic::transport::Channel::from_static("http://127.0.0.1:1").connect_lazy(),
            &Limits::default(),
            hauberk_mesh::Networks::default(),
        )
        .0
        .register(&mut registry);
        let subject = Subject { direction: Direction::Inbound, peer: None, endpoint: None, reason: None };
        let series = metrics.table.series(subject, None);
        drop(series.open());
        let kind = Kind { state: TransportState::Cleartext, first_bytes: FirstBytes::None };
        series.flow(kind).closed(CloseCause::Clean, ClosedBy::Client);
        metrics.bypassed(Direction::Inbound, "tcp", 22, 1);
        metrics.certificate("web", SystemTime::now(), 1, 1);
        let mut out = String::new();
        text::encode(&mut out, &registry).expect("a String takes everything");
        out
    }

    #[tokio::test]
    async fn the_document_lists_exactly_the_metrics() {
        let document = include_str!("../../docs/metrics.md");
        let rows = document.lines().filter_map(|line| line.strip_prefix("| `hauberk_"));
        let documented: BTreeMap<_, _> = rows
            .map(|row| {
                let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`'));
                (cells.next().expect("a name").to_owned(), cells.next().expect("a type").to_owned())
            })
            .collect();
        let text = exposition();
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE hauberk_"));
        let written: BTreeMap<_, _> = types
            .map(|line| {
                let (name, kind) = line.split_once(' ').expect("a name and a type");
                let suffix = if kind == "counter" { "_total" } else { "" };
                (format!("{name}{suffix}"), kind.to_owned())
            })
            .collect();
        assert_eq!(documented, written);
        for name in written.keys() {
            assert!(text.contains(&format!("\nhauberk_{name}")), "no sample of {name} in {text}");
        }
    }

    #[test]
    fn a_failed_handshake_says_whose_fault_it_was() {
        let mut registry = Registry::with_prefix("hauberk");
        let metrics = Metrics::register(&mut registry, &Limits::default());
        metrics.handshake_failed(Direction::Outbound, Fault::Local);
        let mut out = String::new();
        text::encode(&mut out, &registry).expect("a String takes everything");
        let sample = r#"hauberk_handshakes_total{direction="outbound",result="failed",fault="local"} 1"#;
        assert!(out.contains(sample), "{out}");
    }
}
