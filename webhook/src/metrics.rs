//! What the webhook counts. Labels are closed lists.

use std::{
    sync::atomic::AtomicU64,
    time::{Duration, SystemTime},
};

use hauberk_kubernetes::{EventCounts, Events};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::Gauge,
        histogram::Histogram,
    },
    registry::Registry,
};

use crate::{decide::Decided, known::Input, registration::Entry};

/// The API server waits for 5 s.
const SECONDS: [f64; 9] = [0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 2.0, 5.0];

/// Why a connection, or a request, got no answer to what it asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Rejected {
    /// One source has too many connections.
    Connections,
    /// No TLS handshake in time, or a broken one.
    Handshake,
    /// No request in time.
    Silent,
    /// The body did not come in time.
    Slow,
    /// The body is larger than any review.
    TooLarge,
    /// More bytes at once than are held.
    Memory,
    /// Not a review.
    Unparsable,
}

impl Rejected {
    const ALL: [Self; 7] =
        [Self::Connections, Self::Handshake, Self::Silent, Self::Slow, Self::TooLarge, Self::Memory, Self::Unparsable];

    fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Handshake => "handshake",
            Self::Silent => "silent",
            Self::Slow => "slow",
            Self::TooLarge => "too-large",
            Self::Memory => "memory",
            Self::Unparsable => "unparsable",
        }
    }
}

/// Clones count together.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    reviews: Family<Review, Counter>,
    seconds: Histogram,
    rejected: Family<Why, Counter>,
    inputs: Family<Named, Gauge>,
    questions: Family<Outcome, Counter>,
    connections: Gauge,
    ends: Family<Certificate, Gauge<u64, AtomicU64>>,
    certificates: Family<Outcome, Counter>,
    bundle_patches: Family<Outcome, Counter>,
    leader: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Review {
    entry: &'static str,
    decision: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    why: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Named {
    input: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Certificate {
    certificate: &'static str,
}

impl Metrics {
    /// Metrics that are served from `registry`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            reviews: Family::default(),
            seconds: Histogram::new(SECONDS),
            rejected: Family::default(),
            inputs: Family::default(),
            questions: Family::default(),
            connections: Gauge::default(),
            ends: Family::default(),
            certificates: Family::default(),
            bundle_patches: Family::default(),
            leader: Gauge::default(),
        };
        for why in Rejected::ALL {
            let _ = metrics.rejected.get_or_create(&Why { why: why.as_str() });
        }
        for input in Input::ALL {
            let _ = metrics.inputs.get_or_create(&Named { input: input.as_str() });
        }
        let Self {
            reviews,
            seconds,
            rejected,
            inputs,
            questions,
            connections,
            ends,
            certificates,
            bundle_patches,
            leader,
        } = metrics.clone();
        let registry = registry.sub_registry_with_prefix("hauberk_webhook");
        registry.register("reviews", "Reviews answered, by entry, decision and reason; without dry runs", reviews);
        registry.register("review_seconds", "From a request's header to its answer, dry runs included", seconds);
        registry.register("rejected", "Connections and requests that got no decision", rejected);
        registry.register(
            "input_valid",
            "1 if what is followed is as it was last read, 0 if an older one is in force or none",
            inputs,
        );
        registry.register("namespace_questions", "Namespaces looked up beside the cache", questions);
        registry.register("connections", "Open connections", connections);
        registry.register("certificate_end_seconds", "When a certificate ends, seconds since 1970", ends);
        registry.register(
            "certificate_changes",
            "Certificates taken from the Secret (good) or not (bad)",
            certificates,
        );
        registry.register("ca_bundle_patches", "Patches of the webhook's own registration", bundle_patches);
        registry.register("leader", "1 if this replica keeps the certificates", leader);
        metrics
    }

    pub(crate) fn review(&self, entry: Entry, decided: Decided) {
        let (decision, reason) = (decided.decision(), decided.reason());
        self.reviews.get_or_create(&Review { entry: entry.name(), decision, reason }).inc();
    }

    pub(crate) fn took(&self, time: Duration) {
        self.seconds.observe(time.as_secs_f64());
    }

    pub(crate) fn rejected(&self, why: Rejected) {
        self.rejected.get_or_create(&Why { why: why.as_str() }).inc();
    }

    pub(crate) fn input(&self, input: Input, valid: bool) {
        self.inputs.get_or_create(&Named { input: input.as_str() }).set(valid.into());
    }

    pub(crate) fn namespace_question(&self, result: &'static str) {
        self.questions.get_or_create(&Outcome { result }).inc();
    }

    /// Counts an open connection until it is dropped.
    pub(crate) fn connection(&self) -> OpenConnection {
        self.connections.inc();
        OpenConnection(self.connections.clone())
    }

    pub(crate) fn ends(&self, certificate: &'static str, at: SystemTime) {
        let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.ends.get_or_create(&Certificate { certificate }).set(seconds);
    }

    pub(crate) fn certificate(&self, good: bool) {
        let result = if good { "good" } else { "bad" };
        self.certificates.get_or_create(&Outcome { result }).inc();
    }

    pub(crate) fn bundle_patch(&self, result: &'static str) {
        self.bundle_patches.get_or_create(&Outcome { result }).inc();
    }

    pub(crate) fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
    }
}

/// Moves the gauge back.
#[derive(Debug)]
pub(crate) struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The events' own counts, read when somebody asks.
#[derive(Debug)]
pub(crate) struct EventMetrics(pub(crate) Events);

impl Collector for EventMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let EventCounts { told, repeated, limited, failed } = self.0.counts();
        let mut metric = encoder.encode_descriptor(
            "hauberk_webhook_events",
            "Events: told, repeated (counted at an earlier one), limited (dropped), failed",
            None,
            prometheus_client::metrics::MetricType::Counter,
        )?;
        for (result, count) in [("told", told), ("repeated", repeated), ("limited", limited), ("failed", failed)] {
            let labels = Outcome { result };
            ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use hauberk_mesh::{RefusalReason, SkipReason};
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::decide::Undecided;

    const DOCUMENT: &str = include_str!("../../docs/metrics-control-plane.md");

    fn exposition() -> String {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        registry.register_collector(Box::new(EventMetrics(Events::new("hauberk.dev/webhook", "pod").0)));
        metrics.review(Entry::Pod, Decided::Injected);
        metrics.namespace_question("found");
        metrics.ends("leaf", SystemTime::UNIX_EPOCH);
        metrics.certificate(true);
        metrics.bundle_patch("patched");
        let mut text = String::new();
        encode(&mut text, &registry).expect("a String takes everything");
        text
    }

    #[test]
    fn the_document_lists_exactly_the_metrics() {
        let row = |line: &'static str| {
            let mut cells = line.strip_prefix("| `hauberk_webhook_")?.split('|').map(str::trim);
            Some((cells.next()?.trim_end_matches('`').to_owned(), cells.next()?.to_owned()))
        };
        let documented: BTreeMap<_, _> = DOCUMENT.lines().filter_map(row).collect();
        let text = exposition();
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE hauberk_webhook_"));
        let written: BTreeMap<_, _> = types
            .map(|line| {
                let (name, kind) = line.split_once(' ').expect("a name and a type");
                let suffix = if kind == "counter" { "_total" } else { "" };
                (format!("{name}{suffix}"), kind.to_owned())
            })
            .collect();
        assert_eq!(documented, written);
        for name in written.keys() {
            assert!(text.contains(&format!("\nhauberk_webhook_{name}")), "no sample of {name} in {text}");
        }
    }

    #[test]
    fn the_document_names_every_reason() {
        let section = DOCUMENT.split("## Webhook").nth(1).expect("it is there");
        let skipped = SkipReason::ALL.iter().map(|reason| reason.as_str());
        let refused = RefusalReason::ALL.iter().map(|reason| reason.as_str());
        let undecided =
            [Undecided::Settings, Undecided::Namespace, Undecided::Busy, Undecided::Fault].map(Undecided::as_str);
        let rejected = Rejected::ALL.map(Rejected::as_str);
        let inputs = Input::ALL.map(Input::as_str);
        for reason in skipped.chain(refused).chain(undecided).chain(rejected).chain(inputs) {
            assert!(section.contains(&format!("`{reason}`")), "{reason}");
        }
    }
}
