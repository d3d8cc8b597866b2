//! What discovery counts.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// Counters and gauges; clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Metrics {
    addresses: Gauge,
    broken: Counter,
    malformed: Counter,
}

/// One address held, until dropped.
#[derive(Debug)]
pub(super) struct Held(Gauge);

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("discovery");
        registry.register("addresses", "Addresses whose answer is held", self.addresses.clone());
        registry.register("broken", "Streams to the destination service that failed or ended", self.broken.clone());
        registry.register(
            "malformed",
            "Parts of updates left out because they could not be read",
            self.malformed.clone(),
        );
    }

    pub(super) fn held(&self) -> Held {
        self.addresses.inc();
        Held(self.addresses.clone())
    }

    pub(super) fn broken(&self) {
        self.broken.inc();
    }

    pub(super) fn malformed(&self) {
        self.malformed.inc();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}
