//! Sockets as the data path needs them: options, original destinations, connects that say what went wrong, resets.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use hauberk_mesh::{ADMIN_PORT, CloseCause, FailReason};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

/// Silence before a probe; below conntrack's 60 s for half-closed flows, also after lost probes.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Connections that fell silent in the same moment are probed in different seconds: thousands of probes at once are more
/// than a kernel's queue holds, and what is lost of them looks like a peer that is gone.
const SPREAD: u32 = 8;
/// Between probes that are not answered.
const KEEPALIVE_AGAIN: Duration = Duration::from_secs(3);
/// Probes without an answer until a peer's node is taken for gone: so many that a few lost packets end no connection.
const PROBES: u32 = 5;
/// The same within a pod, where the kernel itself says when a peer dies: as many as it takes.
const PROBES_IN_POD: u32 = 127;
/// Waiting in the kernel while the proxy is busy elsewhere.
const BACKLOG: i32 = 4096;

/// Which interface a connection leaves by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// To somebody else, wherever the routing table says.
    Any,
    /// To the pod's own addresses, by the routing table.
    Own,
    /// To the pod's own addresses, by the loopback device. The kernel uses tuples in TIME_WAIT again only when the
    /// socket is bound to it; binding needs no privilege. It works where the routing table leads the pod's own
    /// addresses over that device, which `hauberk-proxy init` sees to.
    Loopback,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OtherEnd {
    /// An application of this pod.
    InPod,
    /// Somebody whose node may go without a word.
    Elsewhere,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("connection refused by {0}")]
    Refused(SocketAddr),
    #[error("no route to {0}: {1}")]
    Unreachable(SocketAddr, io::Error),
    #[error("{0} did not answer within {1:?}")]
    TimedOut(SocketAddr, Duration),
    #[error("every local port toward {0} is in use")]
    PortsExhausted(SocketAddr),
    #[error("this proxy has as many descriptors open as it may: none is left for {0}")]
    NoDescriptor(SocketAddr),
    #[error("connecting to {0}: {1}")]
    Io(SocketAddr, io::Error),
}

impl ConnectError {
    fn new(addr: SocketAddr, error: io::Error) -> Self {
        use io::ErrorKind::*;
        match error.kind() {
            ConnectionRefused | ConnectionReset => Self::Refused(addr),
            HostUnreachable | NetworkUnreachable | NetworkDown | PermissionDenied => Self::Unreachable(addr, error),
            TimedOut => Self::TimedOut(addr, Duration::ZERO),
            AddrNotAvailable => Self::PortsExhausted(addr),
            _ if out_of_descriptors(&error) => Self::NoDescriptor(addr),
            _ => Self::Io(addr, error),
        }
    }

    pub(crate) fn cause(&self) -> CloseCause {
        match self {
            Self::Refused(_) => CloseCause::ConnectRefused,
            Self::Unreachable(..) => CloseCause::ConnectUnreachable,
            Self::TimedOut(..) => CloseCause::ConnectTimeout,
            Self::PortsExhausted(_) => CloseCause::LocalPortsExhausted,
            Self::NoDescriptor(_) => CloseCause::LimitReached,
            Self::Io(..) => CloseCause::IoError,
        }
    }

    /// What the peer's proxy is told.
    pub(crate) fn fail_reason(&self) -> FailReason {
        match self {
            Self::Refused(_) => FailReason::Refused,
            Self::TimedOut(..) => FailReason::TimedOut,
            // "At its limit": another endpoint may have room.
            Self::NoDescriptor(_) => FailReason::Draining,
            Self::Unreachable(..) | Self::PortsExhausted(_) | Self::Io(..) => FailReason::Unreachable,
        }
    }
}

/// Connects within `limit`.
pub(crate) async fn connect(addr: SocketAddr, route: Route, limit: Duration) -> Result<TcpStream, ConnectError> {
    let socket = unconnected(addr, route).map_err(|error| ConnectError::new(addr, error))?;
    match timeout(limit, socket.connect(addr)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(ConnectError::new(addr, error)),
        Err(_) => Err(ConnectError::TimedOut(addr, limit)),
    }
}

/// How to reach the pod's own addresses, found out once for each.
#[derive(Debug, Default)]
pub(crate) struct OwnRoutes(Mutex<HashMap<IpAddr, Route>>);

impl OwnRoutes {
    /// A pod has a few addresses; whoever makes up more gets no cache.
    const MOST: usize = 64;
    /// Over loopback an answer takes microseconds.
    const PROBE: Duration = Duration::from_millis(100);

    /// The route to `ip`, an address of this pod: over the loopback device if a connection to our own admin port gets
    /// through that way.
    pub(crate) async fn route(&self, ip: IpAddr) -> Route {
        if let Some(route) = self.lock().get(&ip) {
            return *route;
        }
        let probe = connect(SocketAddr::new(ip, ADMIN_PORT), Route::Loopback, Self::PROBE).await;
        let route = if probe.is_ok() { Route::Loopback } else { Route::Own };
        let mut known = self.lock();
        if known.len() < Self::MOST {
            known.insert(ip, route);
        }
        route
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Route>> {
        self.0.lock().expect("no code panics while it holds this")
    }
}

fn unconnected(addr: SocketAddr, route: Route) -> io::Result<TcpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if route == Route::Loopback {
        socket.bind_device(Some(b"lo"))?;
    }
    tune(SockRef::from(&socket), if route == Route::Any { OtherEnd::Elsewhere } else { OtherEnd::InPod })?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// The options of every connection: no delay, and keepalive as a bound on silence. That on what is not acknowledged is
/// [`crate::silence`]'s.
fn tune(socket: SockRef<'_>, end: OtherEnd) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let retries = if end == OtherEnd::InPod { PROBES_IN_POD } else { PROBES };
    socket.set_tcp_keepalive(&keepalive().with_interval(KEEPALIVE_AGAIN).with_retries(retries))
}

fn keepalive() -> TcpKeepalive {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let later = NEXT.fetch_add(1, Relaxed) % SPREAD;
    TcpKeepalive::new().with_time(KEEPALIVE + Duration::from_secs(later.into()))
}

/// Gives an accepted connection a time of its own for its probes, instead of its listener's.
pub(crate) fn spread_probes(stream: &TcpStream) {
    // Fails only on a socket that is gone already.
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive());
}

/// A listener whose connections are made for the data path, by options that they inherit from it. `armed`: they are those
/// of applications, which a proxy that dies resets ([`arm_reset`]).
pub(crate) fn listen_tuned(addr: SocketAddr, end: OtherEnd, armed: bool) -> io::Result<TcpListener> {
    let listener = listen(addr)?;
    let socket = SockRef::from(&listener);
    if armed {
        socket.set_linger(Some(Duration::ZERO))?;
    }
    tune(socket, end)?;
    Ok(listener)
}

/// A listener of one family: an IPv6 one takes no mapped IPv4, so that original destinations are read by family.
pub(crate) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The address of this host on the way to `peer`. Sends nothing.
pub(crate) fn own_address(peer: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
}

/// Where a redirected connection of `client` was going. An error if it was not redirected.
pub(crate) fn original_dst(stream: &TcpStream, client: SocketAddr) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let addr = match client.ip() {
        IpAddr::V4(_) => socket.original_dst_v4()?,
        IpAddr::V6(_) => socket.original_dst_v6()?,
    };
    addr.as_socket().ok_or_else(|| io::Error::other("the original destination is no IP address"))
}

/// EMFILE or ENFILE: this process, or the machine, has as many files open as it may.
pub(crate) fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}

/// Makes the close that follows a reset, whoever closes: unsent bytes are dropped and the peer gets RST. A connection of
/// an application is armed from its beginning until both directions have ended, so that no death of this process looks
/// like an end.
pub(crate) fn arm_reset(stream: &TcpStream) {
    // Fails only on a socket that is gone already, which is what was wanted.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Makes the close that follows an orderly one.
pub(crate) fn disarm_reset(stream: &TcpStream) {
    // Fails only on a socket that is gone already.
    let _ = SockRef::from(stream).set_linger(None);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[tokio::test]
    async fn accepted_connections_inherit_what_their_listener_was_told() {
        let (zero, pod, elsewhere) =
            (Some(Duration::ZERO), (OtherEnd::InPod, PROBES_IN_POD), (OtherEnd::Elsewhere, PROBES));
        for (armed, linger, (end, probes)) in [(true, zero, pod), (true, zero, elsewhere), (false, None, elsewhere)] {
            let listener = listen_tuned("127.0.0.1:0".parse().expect("an address"), end, armed).expect("a free port");
            let addr = listener.local_addr().expect("it listens");
            let route = if end == OtherEnd::InPod { Route::Own } else { Route::Any };
            let (accepted, client) = tokio::join!(listener.accept(), connect(addr, route, KEEPALIVE));
            let (accepted, client) = (accepted.expect("accepted").0, client.expect("connected"));
            let told = |stream: &TcpStream| {
                let socket = SockRef::from(stream);
                let first = socket.tcp_keepalive_time().expect("an option");
                assert!((KEEPALIVE..KEEPALIVE * 2).contains(&first), "conntrack forgets later: {first:?}");
                let options = (socket.tcp_nodelay(), socket.keepalive(), socket.tcp_user_timeout());
                let options = (options.0.expect("one"), options.1.expect("one"), options.2.expect("one"));
                let again = (socket.tcp_keepalive_interval(), socket.tcp_keepalive_retries());
                (options, again.0.expect("an option"), again.1.expect("an option"))
            };
            let expected = ((true, true, None), KEEPALIVE_AGAIN, probes);
            assert_eq!((told(&accepted), told(&client)), (expected, expected));
            assert_eq!(SockRef::from(&accepted).linger().expect("an option"), linger);
            disarm_reset(&accepted);
            assert_eq!(SockRef::from(&accepted).linger().expect("an option"), None);
        }
    }

    #[tokio::test]
    async fn accepted_connections_are_not_all_probed_in_the_same_second() {
        let any = "127.0.0.1:0".parse().expect("an address");
        let listener = listen_tuned(any, OtherEnd::Elsewhere, true).expect("a free port");
        let addr = listener.local_addr().expect("it listens");
        let mut seconds = BTreeSet::new();
        for _ in 0..4 * SPREAD {
            let (accepted, client) = tokio::join!(listener.accept(), connect(addr, Route::Any, KEEPALIVE));
            client.expect("connected");
            let (accepted, _) = accepted.expect("accepted");
            spread_probes(&accepted);
            seconds.insert(SockRef::from(&accepted).tcp_keepalive_time().expect("an option"));
        }
        assert!(seconds.len() > 2, "{seconds:?}");
    }
}
