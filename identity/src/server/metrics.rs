//! What the identity server counts.

use std::{sync::atomic::AtomicU64, time::SystemTime};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{Ca, Refusal, kubernetes::FaultKind};

/// Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    issued: Counter,
    refused: Family<Reason, Counter>,
    reloads: Family<Reload, Counter>,
    generation: Gauge<u64, AtomicU64>,
    streams: Gauge<u64, AtomicU64>,
    adopted: Gauge<u64, AtomicU64>,
    ends: Family<Certificate, Gauge<u64, AtomicU64>>,
    faults: Family<Fault, Gauge>,
    leads: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reload {
    what: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Certificate {
    certificate: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fault {
    fault: &'static str,
}

impl Metrics {
    /// Metrics that are served from `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        for reason in Refusal::REASONS {
            let _ = metrics.refused.get_or_create(&Reason { reason });
        }
        for fault in FaultKind::ALL {
            let _ = metrics.faults.get_or_create(&Fault { fault: fault.label() });
        }
        let registry = registry.sub_registry_with_prefix("hauberk_identity");
        let Self { issued, refused, reloads, generation, streams, adopted, ends, faults, leads } = metrics.clone();
        registry.register("certificates_issued", "Leafs signed", issued);
        registry.register("certificates_refused", "Calls of Certify refused, by reason", refused);
        registry.register("reloads", "Changed files taken over (good) or not (bad)", reloads);
        registry.register("trust_generation", "Generation of the trust bundle", generation);
        registry.register("trust_streams", "Open streams of Trust.Watch", streams);
        registry.register(
            "trust_generation_adopted_lowest",
            "Lowest generation that a stream's caller adopted",
            adopted,
        );
        registry.register("certificate_end_seconds", "When a certificate of ours ends, seconds since 1970", ends);
        registry.register("ca_fault", "Whether the CA in Secrets has this fault", faults);
        registry.register("leader", "Whether this replica leads", leads);
        metrics
    }

    pub(crate) fn issued(&self) {
        self.issued.inc();
    }

    pub(crate) fn refused(&self, refusal: &Refusal) {
        self.refused.get_or_create(&Reason { reason: refusal.reason() }).inc();
    }

    pub(crate) fn reloaded(&self, what: &'static str, good: bool) {
        let outcome = if good { "good" } else { "bad" };
        self.reloads.get_or_create(&Reload { what, outcome }).inc();
    }

    pub(crate) fn trust(&self, generation: u64) {
        self.generation.set(generation);
    }

    pub(crate) fn followers(&self, streams: usize, lowest: Option<u64>) {
        self.streams.set(streams as u64);
        self.adopted.set(lowest.unwrap_or_else(|| self.generation.get()));
    }

    pub(crate) fn ends(&self, certificate: &'static str, at: SystemTime) {
        let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.ends.get_or_create(&Certificate { certificate }).set(seconds);
    }
    /// Generation and ends, as they are in force.
    pub(crate) fn of_ca(&self, ca: &Ca) {
        self.trust(ca.bundle().generation());
        self.ends("issuer", ca.issuer_not_after());
        if let Some(end) = ca.root_not_after() {
            self.ends("root", end);
        }
    }

    /// Of the faults `among`, there is `found` and no other.
    pub(crate) fn faults(&self, found: Option<FaultKind>, among: &[FaultKind]) {
        for fault in among {
            self.faults.get_or_create(&Fault { fault: fault.label() }).set((found == Some(*fault)).into());
        }
    }

    pub(crate) fn leads(&self, leads: bool) {
        self.leads.set(leads.into());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prometheus_client::encoding::text::encode;

    use super::*;

    const DOCUMENT: &str = include_str!("../../../docs/metrics-control-plane.md");

    #[test]
    fn the_document_lists_exactly_the_metrics_reasons_and_faults() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        // Written once something has happened.
        metrics.reloaded("ca", true);
        metrics.ends("own", SystemTime::now());
        let mut text = String::new();
        encode(&mut text, &registry).expect("a String takes everything");
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let suffix = |kind| if kind == "counter" { "_total" } else { "" };
        let written: BTreeSet<_> = types.map(|(name, kind)| format!("| `{name}{}` | {kind} |", suffix(kind))).collect();
        let rows = DOCUMENT.lines().filter(|line| line.starts_with("| `hauberk_identity_"));
        let documented: BTreeSet<_> = rows.map(|row| row.split_inclusive('|').take(3).collect::<String>()).collect();
        assert_eq!(documented, written);
        for label in Refusal::REASONS.iter().copied().chain(FaultKind::ALL.map(FaultKind::label)) {
            assert!(DOCUMENT.contains(&format!("`{label}`")), "{label}");
        }
    }
}
