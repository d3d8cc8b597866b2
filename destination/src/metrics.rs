//! What the destination service counts, in Prometheus' text form.

use std::sync::Arc;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::kubernetes;

/// Counters and gauges, and the registry that prints them.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    valid: Gauge,
    loads: Family<Load, Counter>,
    nameless: Gauge,
    unmeshed: Family<Unmeshed, Gauge>,
    watch_failures: Family<Watch, Counter>,
    streams: Family<Stream, Gauge>,
    refused: Family<Refusal, Counter>,
}

/// The calls that open streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Get,
    GetProfile,
    WatchNetworks,
}

/// Why a call got no stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It asked for what cannot be.
    Invalid,
    /// The bound on streams is reached.
    TooMany,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Load {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Unmeshed {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Watch {
    resource: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stream {
    call: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    why: &'static str,
}

/// Counts one open stream for as long as it lives.
#[derive(Debug)]
pub(crate) struct OpenStream(Gauge);

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("hauberk_destination");
        let (valid, loads, nameless) = (Gauge::default(), Family::default(), Gauge::default());
        let (streams, refused) = (Family::default(), Family::default());
        let (unmeshed, watch_failures) = (Family::default(), Family::default());
        registry.register(
            "mesh_file_valid",
            "1 if the mesh file as it is now is in force, 0 if an older one is",
            valid.clone(),
        );
        registry.register("mesh_file_loads", "Changes of the mesh file that were read", Family::clone(&loads));
        registry.register(
            "nameless_pods",
            "Meshed pods left out, as their account can have no identity",
            nameless.clone(),
        );
        registry.register(
            "unmeshed_pods",
            "Pods without a proxy that their namespace or their own label wants to have one",
            Family::clone(&unmeshed),
        );
        registry.register(
            "watch_failures",
            "Lists and watches of the API server that failed",
            Family::clone(&watch_failures),
        );
        registry.register("streams", "Open streams", Family::clone(&streams));
        registry.register("refused", "Calls that got no stream", Family::clone(&refused));
        Self { registry: Arc::new(registry), valid, loads, nameless, unmeshed, watch_failures, streams, refused }
    }
}

impl Metrics {
    /// What `/metrics` prints.
    pub(crate) fn registry(&self) -> Arc<Registry> {
        self.registry.clone()
    }

    /// All of them, as `/metrics` prints them.
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }

    /// Notes that the file was read, and whether it counts.
    pub(crate) fn mesh_file(&self, valid: bool) {
        self.valid.set(valid.into());
        self.loads.get_or_create(&Load { result: if valid { "valid" } else { "invalid" } }).inc();
    }

    /// Notes how many pods are left out.
    pub(crate) fn nameless(&self, pods: usize) {
        self.nameless.set(pods as i64);
    }

    /// Notes how many pods are not meshed that should be.
    pub(crate) fn unmeshed(&self, pods: &[(kubernetes::Unmeshed, usize)]) {
        for (why, pods) in pods {
            self.unmeshed.get_or_create(&Unmeshed { reason: why.as_str() }).set(*pods as i64);
        }
    }

    /// Counts a list or watch that failed.
    pub(crate) fn watch_failed(&self, resource: &'static str) {
        self.watch_failures.get_or_create(&Watch { resource }).inc();
    }

    /// Counts a stream until what it returns is dropped.
    pub(crate) fn stream(&self, call: Call) -> OpenStream {
        let call = match call {
            Call::Get => "get",
            Call::GetProfile => "get-profile",
            Call::WatchNetworks => "watch-networks",
        };
        let gauge = self.streams.get_or_create_owned(&Stream { call });
        gauge.inc();
        OpenStream(gauge)
    }

    /// Counts a call that got no stream.
    pub(crate) fn refused(&self, why: Refused) {
        let why = match why {
            Refused::Invalid => "invalid",
            Refused::TooMany => "too-many",
        };
        self.refused.get_or_create(&Refusal { why }).inc();
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_document_lists_exactly_the_metrics_and_reasons() {
        let document = include_str!("../../docs/metrics.md");
        let (_, document) = document.split_once("# Metrics of destination").expect("a section");
        let (metrics, reasons) = document.split_once("Reasons of").expect("two tables");
        let first = |table: &str| -> BTreeSet<String> {
            let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
            rows.filter_map(|row| Some(row.split_once('`')?.0.to_owned())).collect()
        };
        let counted = Metrics::default();
        let _stream = counted.stream(Call::Get);
        counted.refused(Refused::TooMany);
        counted.unmeshed(&[(kubernetes::Unmeshed::Mirror, 1)]);
        counted.watch_failed("pods");
        counted.mesh_file(true);
        let text = counted.text();
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE hauberk_destination_"));
        let written = types.filter_map(|line| line.split_once(' ')).map(|(name, kind)| {
            let suffix = if kind == "counter" { "_total" } else { "" };
            format!("{name}{suffix}")
        });
        assert_eq!(first(metrics), written.collect());
        assert_eq!(first(reasons), kubernetes::Unmeshed::ALL.map(|why| why.as_str().to_owned()).into());
    }
}
