//! What all connections of a proxy share, and the housekeeping of it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use hauberk_identity::{Credentials, Store};
use hauberk_mesh::{Direction, MESH_PORT, ProxySpec};
use tokio::{net::TcpStream, sync::Semaphore, task::spawn_blocking, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    bypass::Sampler,
    connections::{Registry, Tracked},
    discovery::Discovery,
    endpoint::{Balancer, Generations, PeerKey, Peers},
    metrics::Metrics,
    pool::{Bounds, Pool},
    secure::RecordLayer,
    socket::{self, ConnectError, OwnRoutes, Route},
    upstream::{CurrentGenerations, MeshConn},
};

/// What all connections of a proxy share.
pub(crate) struct Proxy {
    pub(crate) spec: ProxySpec,
    pub(crate) layer: RecordLayer,
    pub(crate) store: Store,
    pub(crate) discovery: Discovery,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) connections: Arc<Registry>,
    pub(crate) peers: Peers,
    pub(crate) pool: Pool<PeerKey, MeshConn>,
    pub(crate) generations: Arc<CurrentGenerations>,
    /// Cancelled when the pod is going to end: mesh connections are not kept for another stream.
    pub(crate) leaving: CancellationToken,
    /// Cancelled when the proxy begins to drain: mesh peers are told to go elsewhere.
    pub(crate) draining: CancellationToken,
    /// Places for mesh connections that have opened a stream.
    pub(crate) mesh_connections: Semaphore,
    own_routes: OwnRoutes,
    balancers: Mutex<HashMap<SocketAddr, Arc<Balancer>>>,
    /// Addresses that nobody knew, each with the end of the time that it got to become known.
    waited: Mutex<HashMap<SocketAddr, Instant>>,
}

impl Proxy {
    pub(crate) fn new(
        spec: ProxySpec,
        layer: RecordLayer,
        store: Store,
        discovery: Discovery,
        metrics: Arc<Metrics>,
    ) -> Self {
        let draining = CancellationToken::new();
        let limits = &spec.limits;
        let bounds = Bounds { per_peer: limits.pool_per_peer, total: limits.pool_total, idle: limits.pool_idle };
        Self {
            store,
            discovery,
            connections: Registry::new(metrics.table.clone(), limits.recent),
            metrics,
            leaving: draining.child_token(),
            draining,
            peers: Peers::default(),
            pool: Pool::new(bounds),
            generations: Arc::default(),
            mesh_connections: Semaphore::new(limits.inbound),
            own_routes: OwnRoutes::default(),
            balancers: Mutex::default(),
            waited: Mutex::default(),
            layer,
            spec,
        }
    }

    /// Begins the record of a connection.
    pub(crate) fn track(&self, direction: Direction, client: SocketAddr, target: SocketAddr) -> Tracked {
        self.connections.track(direction, client, target)
    }

    /// Connects to an address of this pod.
    pub(crate) async fn connect_own(&self, addr: SocketAddr, direction: Direction) -> Result<TcpStream, ConnectError> {
        let route = self.own_routes.route(addr.ip()).await;
        self.connect(addr, route, direction).await
    }

    /// Connects to an application, or to somebody without a proxy, and notes how long it took.
    pub(crate) async fn connect(
        &self,
        addr: SocketAddr,
        route: Route,
        direction: Direction,
    ) -> Result<TcpStream, ConnectError> {
        let begin = Instant::now();
        let connected = socket::connect(addr, route, self.spec.limits.connect).await;
        if let Ok(tcp) = &connected {
            socket::arm_reset(tcp);
            self.metrics.connected(direction, begin.elapsed());
        }
        connected
    }

    /// The certificate, awaited as long as a handshake may take.
    pub(crate) async fn credentials(&self) -> Option<Arc<Credentials>> {
        match self.store.current() {
            Some(credentials) => Some(credentials),
            None => timeout(self.spec.limits.handshake, self.store.ready()).await.ok(),
        }
    }

    /// The balancer of `target`, following discovery's stream.
    pub(crate) async fn balancer(&self, target: SocketAddr) -> Result<Arc<Balancer>, crate::discovery::Unavailable> {
        let stream = self.discovery.target(target).await?;
        let mut balancers = lock(&self.balancers);
        match balancers.get(&target) {
            Some(balancer) if balancer.follows(&stream) => Ok(balancer.clone()),
            _ => {
                let balancer = Arc::new(Balancer::new(stream));
                balancers.insert(target, balancer.clone());
                Ok(balancer)
            }
        }
    }

    /// Until when connections to `target`, which nobody knows, wait for it to become known: its time begins with the
    /// first of them, and never again. Bounded: what was forgotten gets its time again.
    pub(crate) fn unknown_until(&self, target: SocketAddr) -> Instant {
        let limits = &self.spec.limits;
        let mut waited = lock(&self.waited);
        if waited.len() >= limits.discovery_addresses && !waited.contains_key(&target) {
            waited.clear();
        }
        *waited.entry(target).or_insert_with(|| Instant::now() + limits.unknown_in_cluster)
    }

    /// Follows certificate changes: connections made with others are not used again.
    pub(crate) async fn follow_certificates(&self) {
        let mut changes = self.store.subscribe();
        loop {
            let current = changes.borrow_and_update().clone();
            if let Some(credentials) = current {
                self.generations.set(Generations::of(&credentials));
                self.pool.sweep(Instant::now());
                let (name, expires) = (credentials.name().as_str(), credentials.not_after());
                self.metrics.certificate(name, expires, credentials.generation(), credentials.trust_generation());
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until discovery says that this pod is being deleted.
    pub(crate) async fn follow_own_end(&self) {
        let Ok(own) = socket::own_address(self.spec.destination_addr) else { return std::future::pending().await };
        let mut terminating = self.discovery.terminating(SocketAddr::new(own, MESH_PORT));
        if terminating.wait_for(|terminating| *terminating).await.is_ok() {
            info!("the pod is being deleted: mesh connections are not kept any more");
            self.leaving.cancel();
        }
        std::future::pending().await
    }

    /// Once a second: lets go of what left, was idle too long, or is out of date.
    pub(crate) async fn housekeeping(&self) {
        let mut ticks = tokio::time::interval(std::time::Duration::from_secs(1));
        loop {
            ticks.tick().await;
            let now = Instant::now();
            lock(&self.balancers).retain(|_, balancer| {
                balancer.refresh(&self.peers);
                !balancer.is_over(now, self.spec.limits.discovery_idle)
            });
            self.peers.sweep();
            self.pool.forget(|peer| !self.peers.is_named(peer));
            self.pool.sweep(now);
            self.metrics.table.sweep(now, self.spec.limits.series_idle);
            self.metrics.pool_idle.set(self.pool.len() as i64);
        }
    }

    /// Samples what passes without the proxy. Reading the tables blocks, so it has a thread of its own.
    pub(crate) async fn sample_bypass(&self) {
        let mut sampler = Sampler::new(self.spec.redirection.clone());
        let mut ticks = tokio::time::interval(self.spec.limits.bypass_sample);
        loop {
            ticks.tick().await;
            let (back, sampled) = spawn_blocking(|| {
                let sampled = sampler.sample();
                (sampler, sampled)
            })
            .await
            .expect("sampling does not panic, and is not cancelled before this task");
            sampler = back;
            match sampled {
                Ok(bypassed) => bypassed.into_iter().for_each(|found| {
                    self.metrics.bypassed(found.direction, found.protocol.as_str(), found.port, found.count);
                }),
                Err(error) => warn!(%error, "cannot sample what bypasses the proxy"),
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code panics while it holds this")
}
