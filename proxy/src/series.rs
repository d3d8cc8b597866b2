//! Per-peer metrics: one table of series, bounded, from which series of endpoints that left are dropped.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hauberk_mesh::{CloseCause, ClosedBy, Direction, FirstBytes, Reason, TransportState};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, LabelSetEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// What a series is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Subject {
    pub(crate) direction: Direction,
    /// The other side's identity, from its certificate.
    pub(crate) peer: Option<Arc<str>>,
    /// Outbound: the endpoint, and what discovery says of it.
    pub(crate) endpoint: Option<(SocketAddr, Arc<BTreeMap<String, String>>)>,
    pub(crate) reason: Option<Reason>,
}

/// One series: what is open, and what flowed.
#[derive(Debug)]
pub(crate) struct Series {
    opened: AtomicU64,
    open: AtomicI64,
    flows: Mutex<HashMap<Kind, Arc<Flow>>>,
    /// While somebody else holds one of these, the endpoint is known to discovery: each service that it belongs to names
    /// it by itself.
    named: Mutex<Vec<Weak<dyn Known>>>,
    used: Mutex<Instant>,
}

/// Held as long as discovery names an endpoint.
pub(crate) trait Known: fmt::Debug + Send + Sync {}

/// What is known of a connection once the client's first bytes have passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Kind {
    pub(crate) state: TransportState,
    pub(crate) first_bytes: FirstBytes,
}

/// Bytes and ends of the connections of one kind.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    pub(crate) to_server: AtomicU64,
    pub(crate) to_client: AtomicU64,
    closed: Mutex<BTreeMap<(CloseCause, ClosedBy), u64>>,
}

/// All series of a proxy.
#[derive(Debug)]
pub(crate) struct Table {
    most: usize,
    series: Mutex<HashMap<Subject, Arc<Series>>>,
}

impl Series {
    /// Counts a connection as opened, and as open until the guard is dropped.
    pub(crate) fn open(self: &Arc<Self>) -> OpenGuard {
        self.opened.fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
        OpenGuard(self.clone())
    }

    pub(crate) fn flow(&self, kind: Kind) -> Arc<Flow> {
        lock(&self.flows).entry(kind).or_default().clone()
    }

    fn name(&self, by: Weak<dyn Known>) {
        let mut named = lock(&self.named);
        if !named.iter().any(|known| known.ptr_eq(&by)) {
            named.retain(|known| known.strong_count() > 0);
            named.push(by);
        }
    }

    /// Whether this is about an endpoint that has left. What is about no endpoint stays.
    fn expired(&self, now: Instant, idle: Duration) -> bool {
        let named = lock(&self.named);
        let left = !named.is_empty() && named.iter().all(|known| known.strong_count() == 0);
        left && self.open.load(Relaxed) == 0 && now.duration_since(*lock(&self.used)) >= idle
    }
}

impl Flow {
    pub(crate) fn closed(&self, cause: CloseCause, by: ClosedBy) {
        *lock(&self.closed).entry((cause, by)).or_default() += 1;
    }
}

/// One open connection of a series.
#[derive(Debug)]
pub(crate) struct OpenGuard(Arc<Series>);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
        *lock(&self.0.used) = Instant::now();
    }
}

impl Table {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, series: Mutex::new(HashMap::new()) }
    }

    /// The series of `subject`. Where the table is full, one that stands for all others of its direction and reason.
    pub(crate) fn series(&self, mut subject: Subject, known: Option<Weak<dyn Known>>) -> Arc<Series> {
        let mut table = lock(&self.series);
        if !table.contains_key(&subject) && table.len() >= self.most {
            subject.peer = Some("other".into());
            subject.endpoint = None;
        }
        let new = || Series {
            opened: AtomicU64::new(0),
            open: AtomicI64::new(0),
            flows: Mutex::new(HashMap::new()),
            named: Mutex::default(),
            used: Mutex::new(Instant::now()),
        };
        let of_endpoint = subject.endpoint.is_some();
        let series = table.entry(subject).or_insert_with(|| Arc::new(new())).clone();
        if let Some(known) = known.filter(|_| of_endpoint) {
            series.name(known);
        }
        series
    }

    /// Drops the series of endpoints that discovery names no more, once they were unused for `idle`.
    pub(crate) fn sweep(&self, now: Instant, idle: Duration) {
        lock(&self.series).retain(|_, series| !series.expired(now, idle));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code panics while it holds a series")
}

struct Labels<'a> {
    subject: &'a Subject,
    kind: Option<Kind>,
    close: Option<(CloseCause, ClosedBy)>,
}

impl EncodeLabelSet for Labels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        use prometheus_client::encoding::EncodeLabel;
        let mut put = |key: &str, value: &str| (key, value).encode(encoder.encode_label());
        put("direction", self.subject.direction.as_str())?;
        put("peer_identity", self.subject.peer.as_deref().unwrap_or_default())?;
        put("reason", self.subject.reason.map_or("", Reason::as_str))?;
        if let Some((addr, labels)) = &self.subject.endpoint {
            put("endpoint", &addr.to_string())?;
            // Several may become one name; with a label twice in one line Prometheus would drop the whole page.
            let named: BTreeMap<_, _> = labels.iter().map(|(key, value)| (endpoint_label(key), value)).collect();
            for (name, value) in named {
                put(&name, value)?;
            }
        }
        if let Some(kind) = self.kind {
            put("state", kind.state.as_str())?;
            put("first_bytes", kind.first_bytes.as_str())?;
        }
        if let Some((cause, by)) = self.close {
            put("cause", cause.as_str())?;
            put("by", by.as_str())?;
        }
        Ok(())
    }
}

/// Discovery's label under a name that Prometheus takes and that none of ours can be.
fn endpoint_label(key: &str) -> String {
    let name = key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' });
    "endpoint_".chars().chain(name).collect()
}

impl Collector for Table {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let table: Vec<_> =
            lock(&self.series).iter().map(|(subject, series)| (subject.clone(), series.clone())).collect();
        let plain = |subject| Labels { subject, kind: None, close: None };

        let help = "Connections, and streams of mesh connections, that were opened";
        let mut metric = encoder.encode_descriptor("connections_opened", help, None, MetricType::Counter)?;
        for (subject, series) in &table {
            let value = ConstCounter::new(series.opened.load(Relaxed));
            value.encode(metric.encode_family(&plain(subject))?)?;
        }

        let help = "Connections, and streams of mesh connections, that are open now";
        let mut metric = encoder.encode_descriptor("connections_open", help, None, MetricType::Gauge)?;
        for (subject, series) in &table {
            let value = ConstGauge::new(series.open.load(Relaxed));
            value.encode(metric.encode_family(&plain(subject))?)?;
        }

        let flows: Vec<_> = table
            .iter()
            .flat_map(|(subject, series)| {
                lock(&series.flows).iter().map(|(kind, flow)| (subject, *kind, flow.clone())).collect::<Vec<_>>()
            })
            .collect();
        type Bytes = fn(&Flow) -> u64;
        let up: Bytes = |flow| flow.to_server.load(Relaxed);
        let down: Bytes = |flow| flow.to_client.load(Relaxed);
        for (name, help, bytes) in [
            ("bytes_to_server", "Application bytes from clients to servers", up),
            ("bytes_to_client", "Application bytes from servers to clients", down),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (subject, kind, flow) in &flows {
                let labels = Labels { subject, kind: Some(*kind), close: None };
                ConstCounter::new(bytes(flow)).encode(metric.encode_family(&labels)?)?;
            }
        }

        let help = "Connections, and streams of mesh connections, that ended";
        let mut metric = encoder.encode_descriptor("connections_closed", help, None, MetricType::Counter)?;
        for (subject, kind, flow) in &flows {
            for (close, count) in lock(&flow.closed).iter() {
                let labels = Labels { subject, kind: Some(*kind), close: Some(*close) };
                ConstCounter::new(*count).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::{encoding::text, registry::Registry};

    #[derive(Debug)]
    struct Endpoint;
    impl Known for Endpoint {}

    fn subject(peer: &str, endpoint: Option<&str>) -> Subject {
        let labels = Arc::new(BTreeMap::from([("app.kubernetes.io/name".to_owned(), "a \"b\"".to_owned())]));
        Subject {
            direction: Direction::Outbound,
            peer: Some(peer.into()),
            endpoint: endpoint.map(|addr| (addr.parse().expect("an address"), labels)),
            reason: None,
        }
    }

    fn exposition(table: Arc<Table>) -> String {
        let mut registry = Registry::with_prefix("hauberk");
        registry.register_collector(Box::new(table));
        let mut out = String::new();
        text::encode(&mut out, &registry).expect("a String takes everything");
        out
    }

    #[test]
    fn a_connection_shows_in_every_family_with_its_labels() {
        let table = Arc::new(Table::new(10));
        let series = table.series(subject("web", Some("10.1.0.2:80")), None);
        let guard = series.open();
        let flow = series.flow(Kind { state: TransportState::Mtls, first_bytes: FirstBytes::Http1 });
        flow.to_server.fetch_add(7, Relaxed);
        let labels = r#"direction="outbound",peer_identity="web",reason="",endpoint="10.1.0.2:80",endpoint_app_kubernetes_io_name="a \"b\"""#;
        let text = exposition(table.clone());
        assert!(text.contains(&format!("hauberk_connections_opened_total{{{labels}}} 1\n")), "{text}");
        assert!(text.contains(&format!("hauberk_connections_open{{{labels}}} 1\n")), "{text}");
        let kind = r#"state="mtls",first_bytes="http1""#;
        assert!(text.contains(&format!("hauberk_bytes_to_server_total{{{labels},{kind}}} 7\n")), "{text}");
        drop(guard);
        flow.closed(CloseCause::Clean, ClosedBy::Client);
        let text = exposition(table);
        assert!(text.contains(&format!("hauberk_connections_open{{{labels}}} 0\n")), "{text}");
        let close = r#"cause="clean",by="client""#;
        assert!(text.contains(&format!("hauberk_connections_closed_total{{{labels},{kind},{close}}} 1\n")), "{text}");
    }

    #[test]
    fn series_of_endpoints_that_left_go_and_others_stay() {
        let table = Table::new(10);
        let known: Arc<dyn Known> = Arc::new(Endpoint);
        let left = table.series(subject("a", Some("10.1.0.2:80")), Some(Arc::downgrade(&known)));
        table.series(subject("client", None), None);
        let (idle, later) = (Duration::from_secs(60), Instant::now() + Duration::from_secs(61));
        let guard = left.open();
        table.sweep(later, idle);
        assert_eq!(lock(&table.series).len(), 2, "discovery names it");
        drop(known);
        table.sweep(later, idle);
        assert_eq!(lock(&table.series).len(), 2, "a connection is open");
        drop(guard);
        table.sweep(Instant::now(), idle);
        assert_eq!(lock(&table.series).len(), 2, "it was used just now");
        table.sweep(Instant::now() + idle, idle);
        assert_eq!(lock(&table.series).keys().map(|s| s.peer.as_deref()).collect::<Vec<_>>(), [Some("client")]);
    }

    #[test]
    fn an_endpoint_has_left_when_nobody_names_it_any_more() {
        let table = Table::new(1);
        let [one, other]: [Arc<dyn Known>; 2] = [Arc::new(Endpoint), Arc::new(Endpoint)];
        let idle = Duration::from_secs(60);
        for known in [&one, &other, &one] {
            drop(table.series(subject("a", Some("10.1.0.2:80")), Some(Arc::downgrade(known))).open());
            drop(table.series(subject("b", Some("10.1.0.3:80")), Some(Arc::downgrade(known))).open());
        }
        drop(one);
        table.sweep(Instant::now() + idle, idle);
        assert_eq!(lock(&table.series).len(), 2, "another service names it");
        drop(other);
        table.sweep(Instant::now() + idle, idle);
        let left: Vec<_> = lock(&table.series).keys().map(|subject| subject.peer.clone()).collect();
        assert_eq!(left, [Some("other".into())], "what stands for many stays");
    }

    #[test]
    fn what_is_over_the_bound_is_counted_as_other() {
        let table = Arc::new(Table::new(3));
        for peer in 0..100 {
            drop(table.series(subject(&peer.to_string(), Some("10.1.0.2:80")), None).open());
        }
        assert_eq!(lock(&table.series).len(), 4);
        let text = exposition(table);
        assert!(text.contains(r#"opened_total{direction="outbound",peer_identity="other",reason=""} 97"#), "{text}");
    }
}
