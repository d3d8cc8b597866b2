//! Kubernetes as the one source of the hub: watches of Pods, Services, EndpointSlices, Nodes and Namespaces, the rows
//! that are kept of them, and what has to be said again when one changes. Only `watch` talks to the API server.

mod coverage;
mod join;
mod prune;
mod relist;
mod rows;
#[cfg(test)]
mod tests;
mod watch;
mod world;

use std::{fmt, pin::Pin, sync::Arc};

use futures_util::{FutureExt as _, Stream, StreamExt as _};
use hauberk_kubernetes::{Latch, Readiness};
use hauberk_mesh::{Networks, TrustDomain};
use kube::Client;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{Index, hub::Hub, metrics::Metrics};
pub(crate) use coverage::Unmeshed;
use world::World;

/// The kinds of objects that are watched, as the latches are named.
const KINDS: [&str; 5] = ["pods", "services", "endpointslices", "nodes", "namespaces"];
/// What is there already is taken together; above this, readers hear in between.
const BATCH: usize = 1000;

/// The cluster as its API server tells it.
pub struct KubernetesSource {
    seen: Pin<Box<dyn Stream<Item = watch::Result> + Send>>,
    world: World,
    metrics: Metrics,
    latches: Vec<(&'static str, Latch)>,
}

impl KubernetesSource {
    /// Watches through `client`. `networks` are those of pods, Services and nodes, as far as they are known.
    pub fn new(
        client: &Client,
        domain: &TrustDomain,
        networks: Networks,
        metrics: Metrics,
        readiness: &Readiness,
    ) -> Self {
        let latches = KINDS.map(|kind| (kind, readiness.latch(kind))).into();
        Self { seen: Box::pin(watch::everything(client, domain)), world: World::new(networks), metrics, latches }
    }

    /// Waits until all has been listed once: before that nothing can be answered. None if `stop` comes first.
    pub async fn first(&mut self, stop: &CancellationToken) -> Option<Arc<Hub>> {
        while !self.world.unsynced().is_empty() {
            stop.run_until_cancelled(self.take()).await?;
            let unsynced = self.world.unsynced();
            self.latches.iter().filter(|(kind, _)| !unsynced.contains(kind)).for_each(|(_, latch)| latch.open());
        }
        let index = Index::of(self.world.flush());
        info!("the cluster has been listed");
        self.note();
        Some(Hub::new(index))
    }

    /// Follows the cluster until `stop`.
    pub async fn follow(mut self, hub: Arc<Hub>, stop: CancellationToken) {
        while stop.run_until_cancelled(self.take()).await.is_some() {
            let changes = self.world.flush();
            if !changes.is_empty() {
                hub.update(changes);
            }
            self.note();
        }
    }

    /// Waits for something, and takes what else is there.
    async fn take(&mut self) {
        let first = self.seen.next().await;
        self.apply(first);
        for _ in 0..BATCH {
            let Some(more) = self.seen.next().now_or_never() else { return };
            self.apply(more);
        }
    }

    fn apply(&mut self, came: Option<watch::Result>) {
        match came.expect("watches never end") {
            Ok(seen) => self.world.apply(seen),
            Err((kind, error)) => {
                warn!(kind, "the API server cannot be followed, what is known goes on counting: {error}");
                self.metrics.watch_failed(kind);
            }
        }
    }

    fn note(&mut self) {
        for fault in self.world.take_faults() {
            warn!("{fault}");
        }
        self.metrics.nameless(self.world.nameless());
        self.metrics.unmeshed(&self.world.unmeshed());
    }
}

impl fmt::Debug for KubernetesSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesSource").field("world", &self.world).finish_non_exhaustive()
    }
}
