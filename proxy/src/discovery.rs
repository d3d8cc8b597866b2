//! Discovery: who answers at an address, asked of the destination service and followed from then on. Answers that are
//! held go on counting while the service is away, but for those that time makes wrong.
//!
//! One task for each address, owned by the driver; readers hold a `watch::Receiver`.

mod backoff;
mod entries;
mod entry;
mod follow;
mod metrics;
mod networks;
mod state;
mod target;
#[cfg(test)]
mod tests;

use std::{future::Future, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use hauberk_mesh::{Limits, Networks};
use prometheus_client::registry::Registry;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time,
};
use tonic::transport::Channel;
use tracing::error;

pub(crate) use self::state::Resolution;
use self::{
    entries::{Entries, View},
    follow::Client,
    metrics::Metrics,
};
pub use self::{
    networks::ClusterNetworks,
    target::{Endpoint, Target, TargetKind},
};

/// Why nothing can be said of an address.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum Unavailable {
    /// No answer in time.
    #[error("discovery said nothing about {addr} within {waited:?} ({last}): is the destination service running?")]
    TimedOut {
        /// The address.
        addr: SocketAddr,
        /// The limit `discovery`.
        waited: Duration,
        /// How the last attempt failed.
        last: String,
    },
    /// The service answers, and will not say.
    #[error("discovery refused to answer for {addr}: {why}")]
    Refused {
        /// The address.
        addr: SocketAddr,
        /// What it said.
        why: String,
    },
    /// As many addresses are in use as may be.
    #[error("{held} addresses are in use, none can be given up for {addr}: raise the limit discovery_addresses")]
    Full {
        /// The address.
        addr: SocketAddr,
        /// How many are held.
        held: usize,
    },
    /// The driver has ended.
    #[error("discovery has stopped")]
    Stopped,
}

/// A handle; clones share what is known.
#[derive(Debug, Clone)]
pub struct Discovery(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    entries: Arc<Entries>,
    networks: watch::Sender<Arc<ClusterNetworks>>,
    client: Client,
    limits: Limits,
    /// Tasks for the driver. One for each address at most, and two for terminating and the like.
    tasks: mpsc::Sender<Task>,
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Discovery {
    /// Discovery over `channel`, and its driver: nothing is asked before that runs, everything ends when it is dropped.
    /// `networks` count until the service has told of others.
    pub fn new(channel: Channel, limits: &Limits, networks: Networks) -> (Self, impl Future<Output = ()> + use<>) {
        let (tasks, queue) = mpsc::channel(limits.discovery_addresses.saturating_add(16));
        let networks = ClusterNetworks { networks, ..ClusterNetworks::default() };
        let shared = Arc::new(Shared {
            entries: Arc::new(Entries::new(limits.discovery_addresses)),
            networks: watch::Sender::new(Arc::new(networks)),
            client: Client::new(channel, Metrics::default()),
            limits: limits.clone(),
            tasks,
        });
        let watching = shared.clone();
        let networks: Task = Box::pin(async move { watching.client.watch_networks(&watching.networks).await });
        (Self(shared), drive(queue, networks))
    }

    /// What is known of `addr`, now and later. A new address waits for its first answer, at most the limit `discovery`;
    /// so does one whose answer no longer counts. Whoever holds the receiver keeps the address from being given up.
    pub async fn target(&self, addr: SocketAddr) -> Result<watch::Receiver<Arc<Target>>, Unavailable> {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        let View { target, mut status } = match self.0.entries.find(addr) {
            Some(found) => found,
            None => self.open(addr)?,
        };
        let (waited, stale) = (self.0.limits.discovery, self.0.limits.stale_unmeshed);
        let settled = async {
            let settled = status.wait_for(|status| status.settles(stale)).await;
            settled.map(|status| status.refusal()).map_err(|_| Unavailable::Stopped)
        };
        let refusal = match time::timeout(waited, settled).await {
            Ok(settled) => settled?,
            Err(_) => return Err(Unavailable::TimedOut { addr, waited, last: status.borrow().last_failure() }),
        };
        refusal.map_or(Ok(target), |why| Err(Unavailable::Refused { addr, why }))
    }

    /// Whether the pod that has `own` is being deleted, as discovery knows it. `own` is its address with the mesh port.
    pub fn terminating(&self, own: SocketAddr) -> watch::Receiver<bool> {
        let sender = watch::Sender::new(false);
        let receiver = sender.subscribe();
        let shared = self.0.clone();
        let task: Task = Box::pin(async move {
            tokio::select! {
                () = sender.closed() => {}
                () = shared.client.watch_terminating(own, &sender) => {}
            }
        });
        if self.0.tasks.try_send(task).is_err() {
            error!("discovery has no room to follow the pod's own address {own}: its removal will not be noticed");
        }
        receiver
    }

    /// What lies inside the cluster.
    pub fn networks(&self) -> watch::Receiver<Arc<ClusterNetworks>> {
        self.0.networks.subscribe()
    }

    /// Adds discovery's own metrics: addresses held, sessions that broke, endpoints left out.
    pub fn register(&self, registry: &mut Registry) {
        self.0.client.metrics().register(registry);
    }

    fn open(&self, addr: SocketAddr) -> Result<View, Unavailable> {
        let full = |held| Unavailable::Full { addr, held };
        let permit = self.0.tasks.try_reserve().map_err(|error| match error {
            mpsc::error::TrySendError::Full(()) => full(self.0.entries.len()),
            mpsc::error::TrySendError::Closed(()) => Unavailable::Stopped,
        })?;
        let (view, new) = self.0.entries.open(addr, self.0.client.metrics()).map_err(full)?;
        if let Some(opened) = new {
            let (client, idle) = (self.0.client.clone(), self.0.limits.discovery_idle);
            permit.send(Box::pin(async move {
                tokio::select! {
                    () = opened.given_up(idle) => {}
                    () = client.follow(addr, opened.entry()) => {}
                }
            }));
        }
        Ok(view)
    }
}

async fn drive(mut queue: mpsc::Receiver<Task>, networks: Task) {
    let mut tasks = JoinSet::new();
    tasks.spawn(networks);
    loop {
        tokio::select! {
            Some(task) = queue.recv() => drop(tasks.spawn(task)),
            Some(ended) = tasks.join_next() => if let Err(panic) = ended {
                error!("a task of discovery failed: {panic}");
            },
            else => return,
        }
    }
}
