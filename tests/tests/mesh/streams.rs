//! What tests of single connections need beyond `common`: both ends in the test's hand, how a direction ended, records
//! and metrics of one connection.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use hauberk_lab::{Lab, Pod, PodOptions, ServiceOptions};
use hauberk_mesh::{CloseCause, Connection, Connections, Direction, HandshakeKind};

use crate::common::{LIMIT, Server, closed, dial};

/// A port of a pod whose connections the test serves itself, one after the other.
pub(crate) struct Port {
    addr: SocketAddr,
    accepted: Receiver<TcpStream>,
    _server: Server,
}

impl Port {
    /// Listens on `port` of `pod`'s address.
    pub(crate) fn listen(pod: &Pod, port: u16) -> Self {
        Self::listen_at(pod, pod.at(port))
    }

    /// The same at any address of the pod.
    pub(crate) fn listen_at(pod: &Pod, addr: SocketAddr) -> Self {
        let (sender, accepted) = channel();
        // The test may have ended meanwhile.
        let server = Server::listen(pod, addr, move |stream| drop(sender.send(stream)));
        Self { addr, accepted, _server: server }
    }

    /// Where it is.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The next connection, with a limit on every wait.
    pub(crate) fn accept(&self) -> TcpStream {
        let stream = self.accepted.recv_timeout(LIMIT).expect("a connection arrives");
        limit(&stream);
        stream
    }

    /// Whether no connection has come that was not accepted yet.
    pub(crate) fn is_quiet(&self) -> bool {
        self.accepted.try_recv().is_err()
    }

    /// A connection from `client`, and its other end.
    pub(crate) fn connection(&self, client: &Pod) -> (TcpStream, TcpStream) {
        let stream = dial(client, self.addr).expect("the proxy accepts");
        (stream, self.accept())
    }
}

/// A limit on every wait.
pub(crate) fn limit(stream: &TcpStream) {
    stream.set_read_timeout(Some(LIMIT)).expect("not zero");
    stream.set_write_timeout(Some(LIMIT)).expect("not zero");
    stream.set_nodelay(true).expect("a TCP socket");
}

/// Writes until nothing more is taken; how much was.
pub(crate) fn fill(mut stream: &TcpStream) -> u64 {
    stream.set_write_timeout(Some(Duration::from_secs(1))).expect("not zero");
    let (chunk, mut taken) = (pattern(65_536), 0);
    loop {
        match stream.write(&chunk) {
            Ok(count) => taken += count as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return taken,
            Err(error) => panic!("{error}"),
        }
    }
}

/// How a direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// End of file.
    Clean,
    /// ECONNRESET.
    Reset,
}

/// Everything that still comes, and how it ended.
pub(crate) fn rest(stream: &mut impl Read) -> (Vec<u8>, End) {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => (bytes, End::Clean),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (bytes, End::Reset),
        Err(error) => panic!("after {} bytes: {error}", bytes.len()),
    }
}

/// What a client gets that connects, says `first` and waits for the end. A reset may come at any of these.
pub(crate) fn attempt(pod: &Pod, to: SocketAddr, first: &[u8]) -> io::Result<(Vec<u8>, End)> {
    let connected = dial(pod, to).and_then(|mut stream| stream.write_all(first).map(|()| stream));
    match connected {
        Ok(mut stream) => Ok(rest(&mut stream)),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Ok((Vec::new(), End::Reset)),
            _ => Err(error),
        },
    }
}

/// Exactly so many bytes.
pub(crate) fn take(stream: &mut impl Read, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).expect("the bytes come");
    bytes
}

/// Closes with a reset.
pub(crate) fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a TCP socket");
}

/// Sends `message` from one end and reads it at the other.
pub(crate) fn pass(mut from: &TcpStream, mut to: &TcpStream, message: &[u8]) {
    from.write_all(message).expect("the connection is open");
    assert_eq!(take(&mut to, message.len()), message);
}

/// So many bytes, no two places alike.
pub(crate) fn pattern(count: usize) -> Vec<u8> {
    let word = |i: usize| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..count.div_ceil(8)).flat_map(word).take(count).collect()
}

/// The record of the application's last connection to `target`, once none is open. (Its own address would not do: the
/// kernel gives a redirected connection another port where two would look alike.)
pub(crate) fn last_outbound(client: &Pod, target: SocketAddr) -> Connection {
    let wanted = |record: &&Connection| record.direction == Direction::Outbound && record.target == target;
    let last = |all: &Connections| match all.live.iter().any(|record| wanted(&record)) {
        true => None,
        false => all.closed.iter().rfind(wanted).cloned(),
    };
    client.wait_connections(&format!("the last connection to {target} closes"), last).expect("a record")
}

/// The record of the only connection that this pod's proxy has had to `target` in this direction, once it has closed.
pub(crate) fn only(pod: &Pod, direction: Direction, target: SocketAddr) -> Connection {
    let wanted = |record: &Connection| record.direction == direction && record.target == target;
    let found = closed(pod, &format!("the {direction} connection to {target} closes"), wanted);
    let all = pod.connections().expect("the proxy answers");
    let count = all.live.iter().chain(&all.closed).filter(|record| wanted(record)).count();
    assert_eq!(count, 1, "{direction} connections to {target}");
    found
}

/// [`only`] of the inbound ones.
pub(crate) fn inbound(server: &Pod, target: SocketAddr) -> Connection {
    only(server, Direction::Inbound, target)
}

/// How it ended.
pub(crate) fn cause(record: &Connection) -> CloseCause {
    record.close.as_ref().expect("closed").cause
}

/// By what handshake its mesh connection came about.
pub(crate) fn handshake(record: &Connection) -> HandshakeKind {
    record.tls.as_ref().expect("a mesh connection").handshake
}

/// The sum of a metric's samples that have all of `labels`.
pub(crate) fn metric(pod: &Pod, name: &str, labels: &[(&str, &str)]) -> f64 {
    let text = pod.metrics().expect("the proxy answers");
    let samples = text.lines().filter_map(|line| {
        let (of, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        // Another metric may begin with the same name.
        let of = if of.is_empty() { "" } else { of.strip_prefix('{')?.strip_suffix('}')? };
        let of = format!(",{of},");
        let all = labels.iter().all(|(key, value)| of.contains(&format!(",{key}=\"{value}\",")));
        all.then(|| value.parse::<f64>().expect("a number"))
    });
    samples.sum()
}

/// `name` of namespace `shop`, with an account of that name and a proxy.
pub(crate) fn meshed(name: &str) -> PodOptions {
    PodOptions::new(name).namespace("shop").account(name).meshed()
}

/// A lab with its control plane, and these pods, whose proxies run if they are meshed.
pub(crate) fn lab_of<const N: usize>(pods: [PodOptions; N]) -> (Lab, [Pod; N]) {
    lab_with(pods, [], |_| true)
}

/// The same with these services, and with proxies in those of the meshed pods only that `has_proxy` names. All is known
/// before the first proxy asks for it.
pub(crate) fn lab_with<const N: usize>(
    pods: [PodOptions; N],
    services: impl IntoIterator<Item = ServiceOptions>,
    has_proxy: impl Fn(&Pod) -> bool,
) -> (Lab, [Pod; N]) {
    let lab = Lab::new().expect("root and iproute2");
    let pods = pods.map(|options| lab.pod(options).expect("a pod"));
    services.into_iter().for_each(|service| lab.service(service).expect("valid"));
    lab.start_control_plane().expect("the control plane starts");
    for pod in pods.iter().filter(|pod| pod.is_meshed() && has_proxy(pod)) {
        lab.start_proxy(pod).expect("the proxy starts");
    }
    (lab, pods)
}
