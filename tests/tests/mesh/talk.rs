//! Short conversations whose both ends are known, and what proxies say of them afterwards.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
    thread,
    time::Duration,
};

use hauberk_lab::Pod;
use hauberk_mesh::{CloseCause, ClosedBy, Connection, Direction, Reason};
use socket2::{Domain, Protocol, Socket, Type};

use crate::common::{LIMIT, Server, closed};

/// What every visitor says.
pub(crate) const HELLO: &[u8] = b"hello from a visitor";

/// After which a word is late.
const MOMENT: Duration = Duration::from_millis(100);

/// One connection of a client, as the client saw it.
#[derive(Debug)]
pub(crate) struct Visit {
    /// The client's socket: the `client` of a proxy's record.
    pub(crate) local: SocketAddr,
    /// What the server said.
    pub(crate) heard: Vec<u8>,
    /// How the connection broke, if it did not end.
    pub(crate) broken: Option<io::ErrorKind>,
}

impl Visit {
    /// The name of the pod that answered.
    pub(crate) fn host(&self) -> String {
        assert_eq!(self.broken, None, "{self:?}");
        String::from_utf8(self.heard.clone()).expect("a name")
    }
}

/// A server that tells each visitor the pod's name, reads what the visitor says to its end, and ends.
pub(crate) fn host(pod: &Pod, port: u16) -> Server {
    Server::start(pod, port, serve_as(pod))
}

/// The same on any address that the pod may have.
pub(crate) fn host_anywhere(pod: &Pod, port: u16) -> Server {
    Server::listen(pod, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port), serve_as(pod))
}

/// How [`host`] serves.
pub(crate) fn serve_as(pod: &Pod) -> impl Fn(TcpStream) + Send + Sync + Clone + 'static {
    let name = pod.name().to_owned();
    move |mut stream| {
        // A visitor that breaks off is the visitor's test.
        let _ = stream.write_all(name.as_bytes()).and_then(|()| io::copy(&mut stream, &mut io::sink()));
        let _ = stream.shutdown(Shutdown::Write);
    }
}

/// Connects, says hello, ends, and hears who is there.
pub(crate) fn visit(pod: &Pod, to: SocketAddr) -> Visit {
    tell(pod, to, HELLO)
}

/// The same in other words.
pub(crate) fn tell(pod: &Pod, to: SocketAddr, words: &[u8]) -> Visit {
    let from = pod.ips().iter().find(|ip| ip.is_ipv4() == to.is_ipv4());
    tell_from(pod, *from.expect("the pod has an address of that family"), to, words)
}

/// The same from an address of the pod's that the mesh need not know.
pub(crate) fn tell_from(pod: &Pod, from: IpAddr, to: SocketAddr, words: &[u8]) -> Visit {
    tell_by(pod.enter(|| socket(to)), from, to, words)
}

/// A socket of the calling thread's namespace.
pub(crate) fn socket(to: SocketAddr) -> Socket {
    Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).expect("descriptors are free")
}

/// The same, a piece at a time, each a moment after the one before.
pub(crate) fn tell_slowly(pod: &Pod, to: SocketAddr, pieces: &[&[u8]]) -> Visit {
    converse(pod.enter(|| socket(to)), pod.ip(), to, |stream| {
        pieces.iter().try_for_each(|piece| {
            thread::sleep(MOMENT);
            stream.write_all(piece)
        })
    })
}

/// The same by a new `socket`.
pub(crate) fn tell_by(socket: Socket, from: IpAddr, to: SocketAddr, words: &[u8]) -> Visit {
    converse(socket, from, to, |stream| stream.write_all(words))
}

/// Connects, talks, ends, and listens. The socket is bound first, so that its address is known also where it is refused
/// at once.
fn converse(
    socket: Socket,
    from: IpAddr,
    to: SocketAddr,
    talk: impl FnOnce(&mut TcpStream) -> io::Result<()>,
) -> Visit {
    let local = SocketAddr::new(from, unused_port());
    socket.bind(&local.into()).expect("the address is the pod's and the port is free");
    let mut heard = Vec::new();
    let ended = socket.connect_timeout(&to.into(), LIMIT).and_then(|()| {
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(LIMIT))?;
        talk(&mut stream)?;
        // After a reset this fails in its own way: reading says what happened.
        let _ = stream.shutdown(Shutdown::Write);
        stream.read_to_end(&mut heard).map(drop)
    });
    Visit { local, heard, broken: ended.err().map(|error| error.kind()) }
}

/// A port that no visit had before, so that records of visits are told apart; below those that the kernel gives out.
fn unused_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    10_000 + NEXT.fetch_add(1, Relaxed) % 20_000
}

/// The start of a TLS session, as far as anyone who only passes it on can tell: a ClientHello for that server name.
pub(crate) fn client_hello(name: &str) -> Vec<u8> {
    let vector = |length_bytes: usize, body: &[u8]| {
        let length = (body.len() as u32).to_be_bytes();
        [&length[4 - length_bytes..], body].concat()
    };
    let host = [&[0][..], &vector(2, name.as_bytes())].concat();
    let server_name = [&[0, 0][..], &vector(2, &vector(2, &host))].concat();
    let versions = [0, 43, 0, 3, 2, 3, 4];
    let extensions = vector(2, &[&server_name[..], &versions].concat());
    let suites = vector(2, &[0x13, 0x01]);
    let body = [&[3, 3][..], &[7; 32], &[0], &suites, &[1, 0], &extensions].concat();
    let message = [&[1][..], &vector(3, &body)].concat();
    [&[22, 3, 1][..], &vector(2, &message)].concat()
}

/// What `pod`'s proxy says of the connection that `client` opened, once that has closed.
pub(crate) fn record(pod: &Pod, direction: Direction, client: SocketAddr) -> Connection {
    closed(pod, &format!("{direction} record of {client}"), |it| it.direction == direction && it.client == client)
}

/// Checks that `pod`'s proxy reset the connection of `visit`: the client saw a reset and no byte; the record, the log and
/// the metrics say why.
pub(crate) fn assert_refused(
    pod: &Pod,
    direction: Direction,
    visit: &Visit,
    (cause, reason): (CloseCause, Option<Reason>),
    what: &str,
) {
    let client = visit.local;
    let seen = (visit.heard.as_slice(), visit.broken);
    assert_eq!(seen, (&[][..], Some(io::ErrorKind::ConnectionReset)), "{what}: RST, and no byte before");
    let record = record(pod, direction, client);
    let close = record.close.as_ref().expect("closed");
    assert_eq!((close.cause, close.by, record.reason), (cause, ClosedBy::Proxy, reason), "{what}: {record:?}");
    assert_eq!((record.state, record.bytes_to_client), (None, 0), "{what}: {record:?}");
    let reason = reason.map_or("", Reason::as_str);
    let log = pod.with_proxy(|proxy| Ok(proxy.log())).expect("it runs");
    let said = [format!("client={client} "), format!("cause={cause} "), format!("reason={reason:?}")];
    let logged = log.lines().any(|line| said.iter().all(|part| line.contains(part.as_str())));
    assert!(logged, "{what}: no line with {said:?} in\n{log}");
    let labels = [("direction", direction.as_str()), ("cause", cause.as_str()), ("by", "proxy"), ("reason", reason)];
    let counted = Samples::of(pod).sum("hauberk_connections_closed_total", &labels);
    let of_kind = |it: &&Connection| {
        let close = it.close.as_ref().map(|close| (close.cause, close.by));
        it.direction == direction && it.reason == record.reason && close == Some((cause, ClosedBy::Proxy))
    };
    let records = pod.connections().expect("it answers").closed.iter().filter(of_kind).count();
    assert_eq!(counted, records as f64, "{what}: each is counted once");
}

/// The samples of a proxy's metrics.
#[derive(Debug)]
pub(crate) struct Samples(pub(crate) Vec<Sample>);

/// One line of metrics.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Samples {
    /// What `pod`'s proxy counts now.
    pub(crate) fn of(pod: &Pod) -> Self {
        Self::parse(&pod.metrics().expect("the proxy answers"))
    }

    /// Reads an exposition.
    pub(crate) fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        Self(samples.map(|line| Sample::parse(line).unwrap_or_else(|| panic!("not a sample: {line:?}"))).collect())
    }

    /// The sum of all samples of that name which have all of these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.with(name, labels).map(|sample| sample.value).sum()
    }

    /// The samples of that name which have all of these labels.
    pub(crate) fn with(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Sample> {
        let has = |sample: &Sample| labels.iter().all(|(key, value)| sample.label(key) == *value);
        self.0.iter().filter(move |sample| sample.name == name && has(sample))
    }
}

impl Sample {
    /// The label's value; a label that is not there is empty, as Prometheus sees it.
    pub(crate) fn label(&self, key: &str) -> &str {
        self.labels.get(key).map_or("", String::as_str)
    }

    /// `name{key="value",…} number`. Values here have no escaped quotes.
    fn parse(line: &str) -> Option<Self> {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.strip_suffix('}')?.split("\",").filter(|label| !label.is_empty()).map(|label| {
            let (key, value) = label.split_once("=\"")?;
            Some((key.to_owned(), value.strip_suffix('"').unwrap_or(value).to_owned()))
        });
        Some(Self { name: name.to_owned(), labels: labels.collect::<Option<_>>()?, value: value.parse().ok()? })
    }
}
