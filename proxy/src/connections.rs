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
    Close, CloseCause, ClosedBy, Connection, Connections, Direction, FirstBytes, Reason, TlsDetails, TransportState,
};
use tracing::{debug, info};

use crate::{
    first_bytes::Labeler,
    relay::{Ended, Observer},
    series::{Flow, Kind, OpenGuard, Series, Subject, Table},
};

/// All connections of a proxy.
pub(crate) struct Registry {
    table: Arc<Table>,
    recent: usize,
    next: AtomicU64,
    live: Mutex<HashMap<u64, Arc<Record>>>,
    closed: Mutex<VecDeque<Connection>>,
}

struct Record {
    known: Mutex<Connection>,
    to_server: AtomicU64,
    to_client: AtomicU64,
}

impl Record {
    fn snapshot(&self) -> Connection {
        let mut connection = lock(&self.known).clone();
        connection.bytes_to_server = self.to_server.load(Relaxed);
        connection.bytes_to_client = self.to_client.load(Relaxed);
        connection
    }
}

impl Registry {
    pub(crate) fn new(table: Arc<Table>, recent: usize) -> Arc<Self> {
        let next = AtomicU64::new(1);
        Arc::new(Self { table, recent, next, live: Mutex::default(), closed: Mutex::default() })
    }

    /// Begins the record of a connection that was just accepted.
    pub(crate) fn track(self: &Arc<Self>, direction: Direction, client: SocketAddr, target: SocketAddr) -> Tracked {
        let id = self.next.fetch_add(1, Relaxed);
        let known = Connection {
            id,
            direction,
            client: canonical(client),
            target: canonical(target),
            service: None,
            endpoint: None,
            client_identity: None,
            server_identity: None,
            state: None,
            reason: None,
            tls: None,
            first_bytes: FirstBytes::None,
            sni: None,
            bytes_to_server: 0,
            bytes_to_client: 0,
            opened_at_ms: now_ms(),
            close: None,
        };
        let record =
            Arc::new(Record { known: Mutex::new(known), to_server: AtomicU64::new(0), to_client: AtomicU64::new(0) });
        lock(&self.live).insert(id, record.clone());
        Tracked { id, record, registry: self.clone(), labeler: Some(Box::default()), metrics: None, closed: false }
    }

    /// How many are open.
    pub(crate) fn open(&self) -> usize {
        lock(&self.live).len()
    }

    /// The document of `/connections`.
    pub(crate) fn document(&self, identity: Option<String>) -> Connections {
        let live: Vec<_> = lock(&self.live).values().cloned().collect();
        let mut live: Vec<_> = live.iter().map(|record| record.snapshot()).collect();
        live.sort_by_key(|connection| connection.id);
        Connections { identity, live, closed: lock(&self.closed).iter().cloned().collect() }
    }
}

/// One connection, from accept to close. Dropped without `close`, it was cut off: by a panic or by the drain.
pub(crate) struct Tracked {
    id: u64,
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
    pub(crate) how: Result<TlsDetails, Reason>,
    /// The other side's identity.
    pub(crate) peer: Option<Arc<str>>,
    /// Our own.
    pub(crate) local: Option<Arc<str>>,
    pub(crate) endpoint: Option<Arc<crate::endpoint::EndpointState>>,
}

impl Tracked {
    /// Notes what discovery calls the target.
    pub(crate) fn service(&self, service: &str) {
        lock(&self.record.known).service = Some(service.to_owned());
    }

    /// Notes why the connection will not be mTLS, for one that never gets further.
    pub(crate) fn reason(&self, reason: Reason) {
        lock(&self.record.known).reason = Some(reason);
    }

    /// The connection is open to the other side: it is counted from here on.
    pub(crate) fn settle(&mut self, settled: Settled) {
        let mtls = settled.how.is_ok();
        let direction = {
            let mut known = lock(&self.record.known);
            known.endpoint = settled.endpoint.as_ref().map(|endpoint| endpoint.addr());
            let (peer, local) = (settled.peer.as_deref(), settled.local.as_deref());
            let (client, server) = match known.direction {
                Direction::Inbound => (peer, local),
                Direction::Outbound => (local, peer),
            };
            if mtls {
                known.client_identity = client.map(str::to_owned);
                known.server_identity = server.map(str::to_owned);
                known.state = Some(TransportState::Mtls);
            }
            known.reason = settled.how.as_ref().err().copied();
            known.tls = settled.how.as_ref().ok().cloned();
            known.direction
        };
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
            debug!(connection = self.id, cause = %ended.cause, by = %ended.by, %error, "connection broke");
        }
        self.close(ended.cause, ended.by);
    }

    /// What the first bytes were, so far.
    pub(crate) fn first_bytes(&self) -> FirstBytes {
        match &self.labeler {
            Some(labeler) => labeler.label(),
            None => lock(&self.record.known).first_bytes,
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
        lock(&self.record.known).close = Some(Close { cause, by, at_ms: now_ms() });
        let connection = self.record.snapshot();
        log(&connection);
        lock(&self.registry.live).remove(&self.id);
        let mut closed = lock(&self.registry.closed);
        if closed.len() >= self.registry.recent {
            closed.pop_front();
        }
        closed.push_back(connection);
    }

    /// A connection that never got to the other side is counted all the same.
    fn count_failed(&self, cause: CloseCause, by: ClosedBy) {
        let (subject, first_bytes) = {
            let known = lock(&self.record.known);
            (
                Subject { direction: known.direction, peer: None, endpoint: None, reason: known.reason },
                known.first_bytes,
            )
        };
        let series = self.registry.table.series(subject, None);
        drop(series.open());
        series.flow(Kind { state: plain_state(first_bytes), first_bytes }).closed(cause, by);
    }

    fn write_label(&mut self, label: FirstBytes, sni: Option<&str>) {
        {
            let mut known = lock(&self.record.known);
            known.first_bytes = label;
            known.sni = sni.map(str::to_owned);
        }
        self.label_known();
    }

    /// The first bytes are known, and perhaps what the connection is: from here on its bytes are counted as they pass.
    fn label_known(&mut self) {
        let Some(metrics) = &mut self.metrics else { return };
        let mut known = lock(&self.record.known);
        if !metrics.mtls {
            known.state = Some(plain_state(known.first_bytes));
        }
        let state = known.state.expect("set above, or by settle");
        let flow = metrics.series.flow(Kind { state, first_bytes: known.first_bytes });
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
fn log(connection: &Connection) {
    let Connection { id, direction, client, target, reason, close, .. } = connection;
    let Some(Close { cause, by, .. }) = close else { return };
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
