//! What this proxy knows of each endpoint beyond discovery's word: load, failures, TLS tickets; and the choice among
//! the endpoints of one target.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hauberk_identity::{Credentials, EndpointSessions};
use hauberk_mesh::{IdentityName, Reason};
use rustls::ClientConfig;
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::timeout,
};

use crate::{
    balance::{self, Candidate},
    discovery::{Endpoint, Target, TargetKind},
    series::Known,
};

/// A proxy that may be spoken to: its mesh port, and who it must be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PeerKey {
    pub(crate) addr: SocketAddr,
    pub(crate) identity: IdentityName,
}

/// One peer, with the tickets that it gave us. Tickets are the endpoint's own: replicas share a name, not ticket keys.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) key: PeerKey,
    /// By how many endpoints discovery names it now. Streams that are still open name nobody.
    named: AtomicUsize,
    config: Mutex<Option<(Generations, Arc<ClientConfig>)>>,
    handshakes: Semaphore,
}

/// Handshakes with one peer that are under way at once; the others wait, and take what comes back to the pool meanwhile.
/// A quarter of what a peer's mesh port lets one address have by default.
const HANDSHAKES: usize = 64;

/// Which certificates a TLS configuration or connection was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generations {
    own: u64,
    trust: u64,
}

impl Generations {
    pub(crate) fn of(credentials: &Credentials) -> Self {
        Self { own: credentials.generation(), trust: credentials.trust_generation() }
    }
}

impl Peer {
    /// Whether discovery still names it: a connection to it may be used again.
    pub(crate) fn is_named(&self) -> bool {
        self.named.load(Relaxed) > 0
    }

    /// A place for a handshake; `None` if there is none within `limit`.
    pub(crate) async fn handshake(&self, limit: Duration) -> Option<SemaphorePermit<'_>> {
        timeout(limit, self.handshakes.acquire()).await.ok().map(|place| place.expect("never closed"))
    }

    /// The configuration toward this peer. Other certificates make another, without tickets: resumption would skip
    /// the verification that the change calls for. `tickets` is how many are kept.
    pub(crate) fn config(&self, credentials: &Credentials, tickets: usize) -> Arc<ClientConfig> {
        let generations = Generations::of(credentials);
        let mut held = lock(&self.config);
        match &*held {
            Some((of, config)) if *of == generations => config.clone(),
            _ => {
                let sessions = Arc::new(EndpointSessions::new(tickets));
                let config = credentials.mesh_client(&self.key.identity, sessions);
                *held = Some((generations, config.clone()));
                config
            }
        }
    }
}

/// All peers that some endpoint names.
#[derive(Debug, Default)]
pub(crate) struct Peers(Mutex<HashMap<PeerKey, Weak<Peer>>>);

impl Peers {
    fn peer(&self, key: PeerKey) -> Arc<Peer> {
        let mut peers = lock(&self.0);
        if let Some(peer) = peers.get(&key).and_then(Weak::upgrade) {
            return peer;
        }
        let (named, config, handshakes) = (AtomicUsize::new(0), Mutex::new(None), Semaphore::new(HANDSHAKES));
        let peer = Arc::new(Peer { key: key.clone(), named, config, handshakes });
        peers.insert(key, Arc::downgrade(&peer));
        peer
    }

    /// Forgets peers that nobody has any more.
    pub(crate) fn sweep(&self) {
        lock(&self.0).retain(|_, peer| peer.strong_count() > 0);
    }

    /// Whether discovery names the peer, for some target.
    pub(crate) fn is_named(&self, key: &PeerKey) -> bool {
        lock(&self.0).get(key).and_then(Weak::upgrade).is_some_and(|peer| peer.is_named())
    }
}

/// One endpoint of a target.
#[derive(Debug)]
pub(crate) struct EndpointState {
    endpoint: Arc<Endpoint>,
    labels: Arc<BTreeMap<String, String>>,
    peer: Option<Arc<Peer>>,
    known: Arc<dyn Known>,
    open: AtomicUsize,
    failures: Mutex<(u32, Option<Instant>)>,
}

#[derive(Debug)]
struct Named;
impl Known for Named {}

impl EndpointState {
    fn new(endpoint: &Arc<Endpoint>, peers: &Peers) -> Self {
        let peer =
            endpoint.identity.clone().zip(endpoint.mesh_port).map(|(identity, port)| {
                peers.peer(PeerKey { addr: SocketAddr::new(endpoint.addr.ip(), port), identity })
            });
        Self {
            labels: Arc::new(endpoint.labels.clone()),
            endpoint: endpoint.clone(),
            peer,
            known: Arc::new(Named),
            open: AtomicUsize::new(0),
            failures: Mutex::new((0, None)),
        }
    }

    /// Address and application port.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.endpoint.addr
    }

    pub(crate) fn labels(&self) -> Arc<BTreeMap<String, String>> {
        self.labels.clone()
    }

    /// Dead once discovery names the endpoint no more.
    pub(crate) fn known(&self) -> Weak<dyn Known> {
        Arc::downgrade(&self.known)
    }

    /// The proxy of a meshed endpoint.
    pub(crate) fn peer(&self) -> Option<&Arc<Peer>> {
        self.peer.as_ref()
    }

    /// Why it is not meshed.
    pub(crate) fn reason(&self) -> Reason {
        self.endpoint.reason.unwrap_or(Reason::PeerNotMeshed)
    }

    /// Counts a stream, being opened or open, until the guard is dropped.
    pub(crate) fn load(self: &Arc<Self>) -> Load {
        self.open.fetch_add(1, Relaxed);
        Load(self.clone())
    }

    pub(crate) fn failed(&self, now: Instant) {
        let mut failures = lock(&self.failures);
        failures.0 = failures.0.saturating_add(1);
        failures.1 = Some(now + balance::cooldown(failures.0));
    }

    pub(crate) fn worked(&self) {
        *lock(&self.failures) = (0, None);
    }

    fn candidate(&self, now: Instant) -> Candidate {
        let cooling = lock(&self.failures).1.is_some_and(|until| now < until);
        Candidate { open: self.open.load(Relaxed), weight: self.endpoint.weight, cooling }
    }
}

/// One stream on an endpoint.
#[derive(Debug)]
pub(crate) struct Load(Arc<EndpointState>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// An endpoint for as long as discovery names it.
#[derive(Debug)]
struct Naming(Arc<EndpointState>);

impl Naming {
    fn new(endpoint: Arc<EndpointState>) -> Self {
        if let Some(peer) = &endpoint.peer {
            peer.named.fetch_add(1, Relaxed);
        }
        Self(endpoint)
    }
}

impl Drop for Naming {
    fn drop(&mut self) {
        if let Some(peer) = &self.0.peer {
            peer.named.fetch_sub(1, Relaxed);
        }
    }
}

/// The endpoints of one target, as discovery last named them.
#[derive(Debug)]
pub(crate) struct Balancer {
    target: watch::Receiver<Arc<Target>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    used: Instant,
    seen: Option<Arc<Target>>,
    endpoints: Vec<Naming>,
    /// `sessionAffinity: ClientIP`: this pod's endpoint, and when it was last used.
    affinity: Option<(SocketAddr, Instant)>,
}

impl Balancer {
    pub(crate) fn new(target: watch::Receiver<Arc<Target>>) -> Self {
        let state = State { used: Instant::now(), seen: None, endpoints: Vec::new(), affinity: None };
        Self { target, state: Mutex::new(state) }
    }

    /// Whether `target` is the very stream that this balancer follows.
    pub(crate) fn follows(&self, target: &watch::Receiver<Arc<Target>>) -> bool {
        self.target.same_channel(target)
    }

    /// Whether discovery has given the target up, or nobody has asked for it for `idle`.
    pub(crate) fn is_over(&self, now: Instant, idle: Duration) -> bool {
        self.target.has_changed().is_err() || now.duration_since(lock(&self.state).used) >= idle
    }

    /// Returns once discovery knows the target.
    pub(crate) async fn wait_until_known(&self) {
        // An error: discovery has given the target up, and who waits looks at what it said last.
        let _ = self.target.clone().wait_for(|target| target.kind != TargetKind::Unknown).await;
    }

    /// Takes over what discovery says now. Endpoints that are still named keep their tickets, and their load if nothing
    /// else is said of them.
    pub(crate) fn refresh(&self, peers: &Peers) -> Arc<Target> {
        let target = self.target.borrow().clone();
        let mut state = lock(&self.state);
        if !state.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &target)) {
            let mut old: HashMap<_, _> = state.endpoints.drain(..).map(|named| (named.0.addr(), named)).collect();
            let keep = |endpoint: &Arc<Endpoint>| match old.remove(&endpoint.addr) {
                Some(same) if *same.0.endpoint == **endpoint => same,
                // What it was goes only after what it is now has come: its proxy, with its tickets, is the same.
                _changed => Naming::new(Arc::new(EndpointState::new(endpoint, peers))),
            };
            state.endpoints = target.endpoints.iter().map(keep).collect();
            state.seen = Some(target.clone());
        }
        target
    }

    /// The endpoint for the next connection, among those that `may` allows.
    pub(crate) fn pick(
        &self,
        may: impl Fn(&EndpointState) -> bool,
        now: Instant,
        random: impl FnMut(usize) -> usize,
    ) -> Option<Arc<EndpointState>> {
        let mut state = lock(&self.state);
        state.used = now;
        let allowed: Vec<_> =
            state.endpoints.iter().map(|named| &named.0).filter(|endpoint| may(endpoint)).cloned().collect();
        let affinity = state.seen.as_ref().and_then(|target| target.affinity);
        let bound = affinity.and_then(|lasts| bound(state.affinity, lasts, now));
        let chosen = match allowed.iter().find(|endpoint| Some(endpoint.addr()) == bound) {
            Some(endpoint) => endpoint.clone(),
            None => {
                let candidates: Vec<_> = allowed.iter().map(|endpoint| endpoint.candidate(now)).collect();
                allowed[balance::pick(&candidates, random)?].clone()
            }
        };
        if affinity.is_some() {
            state.affinity = Some((chosen.addr(), now));
        }
        Some(chosen)
    }
}

/// The endpoint that affinity still holds to.
fn bound(affinity: Option<(SocketAddr, Instant)>, lasts: Duration, now: Instant) -> Option<SocketAddr> {
    affinity.filter(|(_, used)| now.duration_since(*used) < lasts).map(|(addr, _)| addr)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code panics while it holds an endpoint")
}

#[cfg(test)]
mod tests;
