//! The streams of the destination service, each opened again when it breaks. Nothing here ends by itself: whoever runs
//! it drops it.

use std::{convert::Infallible, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use hauberk_api::networks::{WatchRequest, networks_client::NetworksClient};
use linkerd2_proxy_api::destination::{GetDestination, destination_client::DestinationClient};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tonic::{Response, Status, Streaming, transport::Channel};
use tracing::{debug, warn};

use super::{
    backoff::Backoff,
    entry::{Entry, describe},
    metrics::Metrics,
    networks::ClusterNetworks,
    state::Resolution,
    target::{Malformed, terminating},
};

/// For a stream to open, and again for its first message. Callers wait less; this gives up on a service that accepts
/// and says nothing.
const ANSWER: Duration = Duration::from_secs(10);

/// Both services, over one channel.
#[derive(Debug, Clone)]
pub(super) struct Client {
    channel: Channel,
    metrics: Metrics,
}

impl Client {
    pub(super) fn new(channel: Channel, metrics: Metrics) -> Self {
        Self { channel, metrics }
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Keeps `entry` up to date.
    pub(super) async fn follow(&self, addr: SocketAddr, entry: &Entry) {
        let (mut resolution, mut backoff) = (Resolution::default(), Backoff::default());
        loop {
            let Err(status) = self.resolve(addr, entry, &mut resolution, &mut backoff).await;
            self.broke(&addr.to_string(), &status);
            entry.broke(status.into());
            backoff.pause().await;
        }
    }

    /// Keeps `terminating` up to date; what is not said of the address does not change it.
    pub(super) async fn watch_terminating(&self, own: SocketAddr, terminating: &watch::Sender<bool>) {
        let mut backoff = Backoff::default();
        loop {
            let Err(status) = self.own_profile(own, terminating, &mut backoff).await;
            self.broke("the pod's own address", &status);
            backoff.pause().await;
        }
    }

    /// Keeps `networks` up to date.
    pub(super) async fn watch_networks(&self, networks: &watch::Sender<Arc<ClusterNetworks>>) {
        let mut backoff = Backoff::default();
        loop {
            let Err(status) = self.networks(networks, &mut backoff).await;
            self.broke("the cluster's networks", &status);
            backoff.pause().await;
        }
    }

    async fn resolve(
        &self,
        addr: SocketAddr,
        entry: &Entry,
        resolution: &mut Resolution,
        backoff: &mut Backoff,
    ) -> Result<Infallible, Status> {
        let (mut client, mut other) = (self.destination(), self.destination());
        let (mut updates, mut profiles) =
            tokio::try_join!(open(client.get(ask(addr))), open(other.get_profile(ask(addr))))?;
        resolution.reopened();
        let late = sleep(ANSWER);
        tokio::pin!(late);
        loop {
            let faults = tokio::select! {
                update = updates.message() => resolution.update(update?.ok_or_else(ended)?),
                profile = profiles.message() => Vec::from_iter(resolution.profile(profile?.ok_or_else(ended)?)),
                () = &mut late, if !resolution.is_current() => return Err(silent()),
            };
            self.left_out(addr, &faults);
            if let Some(target) = resolution.target() {
                entry.publish(target, resolution.is_current());
            }
            if resolution.is_current() {
                backoff.reset();
            }
        }
    }

    async fn own_profile(
        &self,
        own: SocketAddr,
        leaving: &watch::Sender<bool>,
        backoff: &mut Backoff,
    ) -> Result<Infallible, Status> {
        let mut client = self.destination();
        let mut profiles = open(client.get_profile(ask(own))).await?;
        loop {
            let profile = profiles.message().await?.ok_or_else(ended)?;
            backoff.reset();
            if let Some(endpoint) = profile.endpoint {
                leaving.send_if_modified(|held| std::mem::replace(held, terminating(&endpoint.metric_labels)) != *held);
            }
        }
    }

    async fn networks(
        &self,
        networks: &watch::Sender<Arc<ClusterNetworks>>,
        backoff: &mut Backoff,
    ) -> Result<Infallible, Status> {
        let mut client = NetworksClient::new(self.channel.clone());
        let mut states = open(client.watch(WatchRequest {})).await?;
        loop {
            let state = states.message().await?.ok_or_else(ended)?;
            backoff.reset();
            match ClusterNetworks::read(&state) {
                Ok(state) => drop(networks.send_if_modified(|held| {
                    let differs = **held != state;
                    if differs {
                        *held = Arc::new(state);
                    }
                    differs
                })),
                Err(fault) => {
                    self.metrics.malformed();
                    warn!("discovery: the cluster's networks stay as they were: {fault}");
                }
            }
        }
    }

    fn destination(&self) -> DestinationClient<Channel> {
        DestinationClient::new(self.channel.clone())
    }

    fn broke(&self, what: &str, status: &Status) {
        self.metrics.broken();
        debug!("discovery of {what}: {}", describe(status));
    }

    fn left_out(&self, addr: SocketAddr, faults: &[Malformed]) {
        for fault in faults {
            self.metrics.malformed();
            warn!("discovery of {addr}: left out of an update: {fault}");
        }
    }
}

fn ask(addr: SocketAddr) -> GetDestination {
    GetDestination { path: addr.to_string(), ..GetDestination::default() }
}

async fn open<T>(call: impl Future<Output = Result<Response<Streaming<T>>, Status>>) -> Result<Streaming<T>, Status> {
    timeout(ANSWER, call).await.unwrap_or_else(|_| Err(silent())).map(Response::into_inner)
}

fn ended() -> Status {
    Status::unavailable("the stream ended")
}

fn silent() -> Status {
    Status::deadline_exceeded("the destination service accepts and says nothing")
}
