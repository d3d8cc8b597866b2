//! What is open and what has closed lately: the records behind `/connections`, and the metrics of each.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use hauberk_mesh::{
    Close, CloseCause, ClosedBy, Connection, Connections, Direction, FirstBytes, Reason, TransportState,
};
use tracing::{debug, info};

use crate::{
    first_bytes::Labeler,
    records::Agreed,
    relay::{Ended, Observer},
    series::{Flow, Kind, OpenGuard, Series, Subject, Table},
};

/// All connections of a proxy.
pub(crate) struct Registry {
    table: Arc<Table>,
    recent: usize,
    next: AtomicU64,
    live: Mutex<HashMap<u64, Arc<Record>>>,
    closed: Mutex<VecDeque<Arc<Record>>>,
}

/// One connection. There may be many: names are shared, and words are made when somebody asks for them.
struct Record {
    id: u64,
    direction: Direction,
    client: SocketAddr,
    target: SocketAddr,
    opened_at_ms: u64,
    known: Mutex<Known>,
    to_server: AtomicU64,
    to_client: AtomicU64,
}

/// What is found out in its course.
#[derive(Default)]
struct Known {
    service: Option<Arc<str>>,
    endpoint: Option<SocketAddr>,
    client_identity: Option<Arc<str>>,
    server_identity: Option<Arc<str>>,
    state: Option<TransportState>,
    reason: Option<Reason>,
    tls: Option<Agreed>,
    /// Unset until they have said what they are.
    first_bytes: Option<FirstBytes>,
    sni: Option<Box<str>>,
    close: Option<Close>,
}

impl Known {
    fn first_bytes(&self) -> FirstBytes {
        self.first_bytes.unwrap_or(FirstBytes::None)
    }
}

impl Record {
    fn snapshot(&self) -> Connection {
        let owned = |text: &Option<Arc<str>>| text.as_deref().map(str::to_owned);
        let known = lock(&self.known);
        Connection {
            id: self.id,
            direction: self.direction,
            client: self.client,
            target: self.target,
            service: owned(&known.service),
            endpoint: known.endpoint,
            client_identity: owned(&known.client_identity),
            server_identity: owned(&known.server_identity),
            state: known.state,
            reason: known.reason,
            tls: known.tls.as_ref().map(Agreed::details),
            first_bytes: known.first_bytes(),
            sni: known.sni.as_deref().map(str::to_owned),
            bytes_to_server: self.to_server.load(Relaxed),
            bytes_to_client: self.to_client.load(Relaxed),
            opened_at_ms: self.opened_at_ms,
            close: known.close.clone(),
        }
    }
}

impl Registry {
    pub(crate) fn new(table: Arc<Table>, recent: usize) -> Arc<Self> {
        let next = AtomicU64::new(1);
        Arc::new(Self { table, recent, next, live: Mutex::default(), closed: Mutex::default() })
    }

    /// Begins the record of a connection that was just accepted.
    pub(crate) fn track(self: &Arc<Self>, direction: Direction, client: SocketAddr, target: SocketAddr) -> Tracked {
        let record = Arc::new(Record {
            id: self.next.fetch_add(1, Relaxed),
            direction,
            client: canonical(client),
            target: canonical(target),
            opened_at_ms: now_ms(),
            known: Mutex::default(),
            to_server: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
        });
        lock(&self.live).insert(record.id, record.clone());
        Tracked { record, registry: self.clone(), labeler: Some(Box::default()), metrics: None, closed: false }
    }

    /// How many are open.
    pub(crate) fn open(&self) -> usize {
        lock(&self.live).len()
    }

    /// The document of `/connections`.
    pub(crate) fn document(&self, identity: Option<String>) -> Connections {
        let live: Vec<_> = lock(&self.live).values().cloned().collect();
        let closed: Vec<_> = lock(&self.closed).iter().cloned().collect();
        let show = |records: Vec<Arc<Record>>| -> Vec<_> { records.iter().map(|record| record.snapshot()).collect() };
        let (mut live, closed) = (show(live), show(closed));
        live.sort_by_key(|connection| connection.id);
        Connections { identity, live, closed }
    }
}

/// One connection, from accept to close. Dropped without `close`, it was cut off: by a panic or by the drain.
pub(crate) struct Tracked {
    record: Arc<Record>,
    registry: Arc<Registry>,
    /// Until the first bytes have said what they are.
    labeler: Option<Box<Labeler>>,
    metrics: Option<Counting>,
    closed: bool,
}

/// Where the connection is counted, once it is known what it is.
struct Counting {
    series: Arc<Series>,
    _open: OpenGuard,
    mtls: bool,
    /// Once the first bytes are known; until then bytes add up in the record.
    flow: Option<Arc<Flow>>,
}

/// What a connection turned out to be.
pub(crate) struct Settled {
    /// Mesh, with the session; or not, with the reason.
    pub(crate) how: Result<Agreed, Reason>,
    /// The other side's identity.
    pub(crate) peer: Option<Arc<str>>,
    /// Our own.
    pub(crate) local: Option<Arc<str>>,
    pub(crate) endpoint: Option<Arc<crate::endpoint::EndpointState>>,
}

impl Tracked {
    /// Notes what discovery calls the target.
    pub(crate) fn service(&self, service: Arc<str>) {
        lock(&self.record.known).service = Some(service);
    }

    /// Notes why the connection will not be mTLS, for one that never gets further.
    pub(crate) fn reason(&self, reason: Reason) {
        lock(&self.record.known).reason = Some(reason);
    }

    /// The connection is open to the other side: it is counted from here on.
    pub(crate) fn settle(&mut self, settled: Settled) {
        let (mtls, direction) = (settled.how.is_ok(), self.record.direction);
        {
            let mut known = lock(&self.record.known);
            known.endpoint = settled.endpoint.as_ref().map(|endpoint| endpoint.addr());
            if mtls {
                let (peer, local) = (settled.peer.clone(), settled.local);
                (known.client_identity, known.server_identity) = match direction {
                    Direction::Inbound => (peer, local),
                    Direction::Outbound => (local, peer),
                };
                known.state = Some(TransportState::Mtls);
            }
            known.reason = settled.how.err();
            known.tls = settled.how.ok();
        }
        let subject = Subject {
            direction,
            peer: settled.peer,
            endpoint: settled.endpoint.as_ref().map(|endpoint| (endpoint.addr(), endpoint.labels())),
            reason: settled.how.err(),
        };
        let known = settled.endpoint.map(|endpoint| endpoint.known());
        let series = self.registry.table.series(subject, known);
        self.metrics = Some(Counting { _open: series.open(), series, mtls, flow: None });
        if self.labeler.is_none() {
            self.label_known();
        }
    }

    /// Ends the record.
    pub(crate) fn close(mut self, cause: CloseCause, by: ClosedBy) {
        self.end(cause, by);
    }

    /// Ends the record as the relay ended.
    pub(crate) fn relayed(self, ended: &Ended) {
        if let Some(error) = &ended.error {
            debug!(connection = self.record.id, cause = %ended.cause, by = %ended.by, %error, "connection broke");
        }
        self.close(ended.cause, ended.by);
    }

    /// What the first bytes were, so far.
    pub(crate) fn first_bytes(&self) -> FirstBytes {
        match &self.labeler {
            Some(labeler) => labeler.label(),
            None => lock(&self.record.known).first_bytes(),
        }
    }

    /// Whether the first bytes have said what they are.
    pub(crate) fn is_labelled(&self) -> bool {
        self.labeler.is_none()
    }

    fn end(&mut self, cause: CloseCause, by: ClosedBy) {
        self.closed = true;
        if let Some(mut labeler) = self.labeler.take() {
            self.write_label(labeler.finish(), None);
        }
        if let Some(flow) = self.metrics.as_ref().and_then(|metrics| metrics.flow.as_ref()) {
            flow.closed(cause, by);
        } else if self.metrics.is_none() {
            self.count_failed(cause, by);
        }
        let reason = {
            let mut known = lock(&self.record.known);
            known.close = Some(Close { cause, by, at_ms: now_ms() });
            known.reason
        };
        log(&self.record, cause, by, reason);
        lock(&self.registry.live).remove(&self.record.id);
        let mut closed = lock(&self.registry.closed);
        if closed.len() >= self.registry.recent {
            closed.pop_front();
        }
        closed.push_back(self.record.clone());
    }

    /// A connection that never got to the other side is counted all the same.
    fn count_failed(&self, cause: CloseCause, by: ClosedBy) {
        let (reason, first_bytes) = {
            let known = lock(&self.record.known);
            (known.reason, known.first_bytes())
        };
        let subject = Subject { direction: self.record.direction, peer: None, endpoint: None, reason };
        let series = self.registry.table.series(subject, None);
        drop(series.open());
        series.flow(Kind { state: plain_state(first_bytes), first_bytes }).closed(cause, by);
    }

    fn write_label(&mut self, label: FirstBytes, sni: Option<&str>) {
        {
            let mut known = lock(&self.record.known);
            known.first_bytes = Some(label);
            known.sni = sni.map(Box::from);
        }
        self.label_known();
    }

    /// The first bytes are known, and perhaps what the connection is: from here on its bytes are counted as they pass.
    fn label_known(&mut self) {
        let Some(metrics) = &mut self.metrics else { return };
        let mut known = lock(&self.record.known);
        if !metrics.mtls {
            known.state = Some(plain_state(known.first_bytes()));
        }
        let state = known.state.expect("set above, or by settle");
        let flow = metrics.series.flow(Kind { state, first_bytes: known.first_bytes() });
        flow.to_server.fetch_add(self.record.to_server.load(Relaxed), Relaxed);
        flow.to_client.fetch_add(self.record.to_client.load(Relaxed), Relaxed);
        metrics.flow = Some(flow);
    }
}

impl Observer for Tracked {
    fn to_server(&mut self, bytes: &[u8]) {
        let count = bytes.len() as u64;
        if let Some(labeler) = &mut self.labeler {
            labeler.feed(bytes);
            if labeler.settled() {
                let labeler = self.labeler.take().expect("seen above");
                self.write_label(labeler.label(), labeler.sni());
            }
        }
        self.record.to_server.fetch_add(count, Relaxed);
        if let Some(flow) = self.metrics.as_ref().and_then(|metrics| metrics.flow.as_ref()) {
            flow.to_server.fetch_add(count, Relaxed);
        }
    }

    fn to_client(&mut self, bytes: &[u8]) {
        let count = bytes.len() as u64;
        self.record.to_client.fetch_add(count, Relaxed);
        if let Some(flow) = self.metrics.as_ref().and_then(|metrics| metrics.flow.as_ref()) {
            flow.to_client.fetch_add(count, Relaxed);
        }
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if !self.closed {
            let cause = if std::thread::panicking() { CloseCause::Panic } else { CloseCause::DrainDeadline };
            self.end(cause, ClosedBy::Proxy);
        }
    }
}

fn plain_state(first_bytes: FirstBytes) -> TransportState {
    if first_bytes == FirstBytes::Tls { TransportState::OwnTls } else { TransportState::Cleartext }
}

/// Refusals are for people to find; the rest is for those who look for it.
fn log(record: &Record, cause: CloseCause, by: ClosedBy, reason: Option<Reason>) {
    let Record { id, direction, client, target, .. } = record;
    let reason = reason.map_or("", Reason::as_str);
    match cause {
        CloseCause::Clean | CloseCause::Reset => {
            debug!(connection = id, %direction, %client, %target, %cause, %by, reason, "closed");
        }
        _ => info!(connection = id, %direction, %client, %target, %cause, %by, reason, "closed"),
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code panics while it holds a record")
}
