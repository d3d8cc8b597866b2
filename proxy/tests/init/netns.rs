//! Two network namespaces, a pod's and a peer's, joined by a veth pair; listeners that say which of them was reached.
//!
//! Needs root, and fails without it. Nothing outside the namespaces is touched.

use std::{
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    process::{Command, Output},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    unistd::{Uid, setfsuid},
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Nothing here takes this long unless it is broken.
const LIMIT: Duration = Duration::from_secs(5);

/// A network namespace without a name. It goes with its last user.
pub(crate) struct Netns {
    file: File,
    lock: tempfile::TempDir,
}

impl Netns {
    pub(crate) fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace; these tests need root");
            File::open("/proc/thread-self/ns/net").expect("the new namespace")
        };
        let file = thread::scope(|scope| scope.spawn(make).join()).expect("a thread");
        let netns = Self { file, lock: tempfile::tempdir().expect("a directory") };
        // No waiting for duplicate addresses to turn up.
        netns.sh("echo 0 | tee /proc/sys/net/ipv6/conf/{all,default}/accept_dad; ip link set lo up");
        netns
    }

    /// Runs `work` on a thread inside. Sockets that it makes stay inside; so do programs that it starts.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).expect("the namespace");
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join()).expect("the work inside")
    }

    pub(crate) fn output(&self, command: &mut Command) -> Output {
        // The lock of iptables-legacy is the host's, else: tests would wait for each other.
        command.env("XTABLES_LOCKFILE", self.lock_file());
        self.enter(|| command.output().expect("the program is installed"))
    }

    pub(crate) fn lock_file(&self) -> std::path::PathBuf {
        self.lock.path().join("xtables.lock")
    }

    /// What `script` prints. It must succeed.
    pub(crate) fn sh(&self, script: &str) -> String {
        let output = self.output(Command::new("bash").args(["-euo", "pipefail", "-c", script]));
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Which port `uid` reaches when it dials `target`, and for what that port takes it.
    pub(crate) fn ask(&self, uid: u32, target: SocketAddr) -> Reached {
        self.ask_from(uid, None, target)
    }

    pub(crate) fn ask_from(&self, uid: u32, source: Option<IpAddr>, target: SocketAddr) -> Reached {
        match self.dial(uid, source, target) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Reached::Refused,
            Err(error) => panic!("{target}: {error}"),
            Ok(stream) => Reached::parse(&first_line(&stream)),
        }
    }

    pub(crate) fn dial(&self, uid: u32, source: Option<IpAddr>, target: SocketAddr) -> std::io::Result<TcpStream> {
        self.enter(|| {
            // Of this thread alone: the uid that the kernel notes on new sockets.
            setfsuid(Uid::from_raw(uid));
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
            if let Some(source) = source {
                socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))?;
            }
            socket.connect_timeout(&SockAddr::from(target), LIMIT)?;
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(LIMIT))?;
            Ok(stream)
        })
    }

    pub(crate) fn listen(&self, addrs: &[&str]) -> Vec<Listener> {
        addrs.iter().map(|addr| Listener::new(self, addr.parse().expect("an address"))).collect()
    }
}

/// The first line that a listener sends.
pub(crate) fn first_line(stream: &TcpStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("the listener says what it is");
    line
}

/// What answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// Nothing.
    Refused,
    /// The listener of this port, as it was dialled.
    Port(u16),
    /// The listener of this port, by redirection from this address.
    Redirected(u16, SocketAddr),
}

impl Reached {
    pub(crate) fn parse(line: &str) -> Self {
        let (port, original) = line.trim().split_once(' ').expect("a port and an address");
        let port = port.parse().expect("a port");
        original.parse().map_or(Self::Port(port), |original| Self::Redirected(port, original))
    }
}

/// Tells each client its own port and the original destination, if that was another; then sends back what it gets.
pub(crate) struct Listener {
    socket: Arc<Socket>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    fn new(netns: &Netns, addr: SocketAddr) -> Self {
        let bind = || {
            let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            if addr.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.bind(&SockAddr::from(addr))?;
            socket.listen(64)?;
            std::io::Result::Ok(Arc::new(socket))
        };
        let socket = netns.enter(bind).unwrap_or_else(|error| panic!("{addr}: {error}"));
        let accepting = socket.clone();
        let thread = thread::spawn(move || {
            while let Ok((client, _)) = accepting.accept() {
                thread::spawn(move || serve(client));
            }
        });
        Self { socket, thread: Some(thread) }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Wakes the thread out of accept.
        self.socket.shutdown(std::net::Shutdown::Both).expect("a listening socket");
        self.thread.take().map(JoinHandle::join);
    }
}

fn serve(client: Socket) {
    let local = client.local_addr().ok().and_then(|addr| addr.as_socket()).expect("an address");
    let original = if local.is_ipv4() { client.original_dst_v4() } else { client.original_dst_v6() };
    let original = original.ok().and_then(|addr| addr.as_socket()).filter(|original| *original != local);
    let original = original.map_or("-".to_owned(), |original| original.to_string());
    let mut stream = TcpStream::from(client);
    let mut buffer = [0; 256];
    let mut sent = stream.write_all(format!("{} {original}\n", local.port()).as_bytes());
    while let (Ok(()), Ok(length @ 1..)) = (sent, stream.read(&mut buffer)) {
        sent = stream.write_all(&buffer[..length]);
    }
}

/// A pod (10.77.0.2, fd77::2) and a peer (10.77.0.1, fd77::1, and 10.79.0.1, fd79::1 in a network of their own).
pub(crate) struct Pair {
    pub(crate) pod: Netns,
    pub(crate) peer: Netns,
}

impl Pair {
    pub(crate) fn ipv4_only() -> Self {
        let (pod, peer) = (Netns::new(), Netns::new());
        pod.sh(&format!(
            "ip link add eth0 type veth peer name eth0 netns {}
             ip addr add 10.77.0.2/24 dev eth0
             ip link set eth0 up
             ip route add 10.79.0.0/24 via 10.77.0.1",
            peer.path()
        ));
        peer.sh("ip addr add 10.77.0.1/24 dev eth0; ip addr add 10.79.0.1/24 dev eth0; ip link set eth0 up");
        Self { pod, peer }
    }

    pub(crate) fn dual_stack() -> Self {
        let pair = Self::ipv4_only();
        pair.pod.sh("ip addr add fd77::2/64 dev eth0 nodad; ip route add fd79::/64 via fd77::1");
        pair.peer.sh("ip addr add fd77::1/64 dev eth0 nodad; ip addr add fd79::1/64 dev eth0 nodad");
        pair
    }
}
