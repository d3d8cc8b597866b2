//! A wire between two interfaces that keeps frames for a while and lets later ones overtake. It does in user space what
//! `netem` does, which not every kernel has. What is kept for how long is decided in `queue`; here are links and threads.

mod queue;

use std::{
    fs::File,
    io::{ErrorKind, PipeReader, PipeWriter, Read, Write, pipe},
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    ifaddrs::getifaddrs,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, bind, setsockopt, socket, sockopt::RcvBufForce},
};

use self::queue::Queue;
use crate::netns::Netns;

/// What the kernel keeps for a thread that waits for its turn: 100 ms of 1 Gbit/s.
const SOCKET_BUFFER: usize = 12 << 20;
/// Larger than any frame.
const LARGEST_FRAME: usize = 65_536;
/// How many frames are taken before those that are due are sent: about 1 ms.
const BATCH: usize = 64;
/// The wire's own ends, in its namespace.
const ENDS: [&str; 2] = ["node", "pod"];

/// What a wire does to the frames of each direction. The default: nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct WireOptions {
    /// How long every frame is on its way, at least.
    pub delay: Duration,
    /// By how much more a frame may be delayed, by chance. By itself it changes no order: those behind wait too.
    pub jitter: Duration,
    /// How many of a hundred frames, by chance, are late: those behind overtake them.
    pub late: u32,
    /// By how much these come later.
    pub lateness: Duration,
}

/// A wire that carries frames. Dropped, its threads have ended, and what it still kept is lost.
#[derive(Debug)]
pub(crate) struct Wire {
    /// The threads end when this is closed.
    end: Option<PipeWriter>,
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Makes the interfaces `node` and `pod`, each a namespace and a name, and carries frames from one to the other. Both
    /// are still down.
    pub(crate) fn between(node: (&Netns, &str), pod: (&Netns, &str), options: WireOptions) -> Result<Self> {
        // No address, no forwarding: its kernel says nothing by itself and ignores what it hears.
        let middle = Netns::new()?;
        for name in ["net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6"] {
            middle.sysctl(name, "1")?;
        }
        for ((netns, name), end) in [node, pod].into_iter().zip(ENDS) {
            middle.ip(&format!(
                "link add {end} type veth peer name {name} netns {}\nlink set {end} up\n",
                netns.path()
            ))?;
            whole_frames(netns, name)?;
        }
        let [at_node, at_pod] = ENDS.map(|end| middle.enter(|| open(end)));
        let (at_node, at_pod) = (Arc::new(at_node?), Arc::new(at_pod?));
        let (ended, end) = pipe()?;
        let mut wire = Self { end: Some(end), threads: Vec::new() };
        for (seed, [from, to]) in [[&at_node, &at_pod], [&at_pod, &at_node]].into_iter().enumerate() {
            let (from, to, ended) = (from.clone(), to.clone(), ended.try_clone()?);
            let queue = Queue::new(options, seed as u64);
            let carrier = thread::Builder::new().name("wire".to_owned());
            wire.threads.push(carrier.spawn(move || carry(&from, &to, &ended, queue))?);
        }
        Ok(wire)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        drop(self.end.take());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                eprintln!("a wire's thread panicked: from then on it carried nothing");
            }
        }
    }
}

/// Every frame that leaves the interface is one that a real wire could carry: with its checksum, no larger than the MTU.
/// By default both are left to whoever receives, which here is no longer the kernel itself.
fn whole_frames(netns: &Netns, name: &str) -> Result<()> {
    let output = netns.command("ethtool", None).args(["-K", name, "tx", "off"]).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ethtool -K {name} tx off: {} (make setup installs it)", errors.trim());
    Ok(())
}

/// All frames that come to the interface `name` of the calling thread's namespace; what is written there leaves by it. The
/// kernel does not give back what a socket itself has sent, and each interface has one socket.
fn open(name: &str) -> Result<File> {
    let address = getifaddrs()?
        .filter(|interface| interface.interface_name == name)
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .with_context(|| format!("there is no interface {name}"))?;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
    setsockopt(&socket, RcvBufForce, &SOCKET_BUFFER)?;
    bind(socket.as_raw_fd(), &address)?;
    Ok(socket.into())
}

/// Carries frames in one direction until `ended` is closed, or `from` is gone.
fn carry(mut from: &File, mut to: &File, ended: &PipeReader, mut queue: Queue) {
    let mut frame = vec![0; LARGEST_FRAME];
    loop {
        let mut events = [ended.as_fd(), from.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        // It can only fail by a signal, and then has no events.
        let _ = poll(&mut events, timeout(queue.due(), Instant::now()));
        if events[0].any() == Some(true) {
            return;
        }
        for _ in 0..BATCH {
            match from.read(&mut frame) {
                Ok(length) => queue.push(Instant::now(), frame[..length].to_vec()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The pod's namespace is gone, and its interface with it.
                Err(_) => return,
            }
        }
        while let Some(frame) = queue.pop(Instant::now()) {
            // What the other side cannot take is lost, as on any wire.
            let _ = to.write(&frame);
        }
    }
}

/// How long to wait for what is due then, in whole milliseconds, rounded up.
fn timeout(due: Option<Instant>, now: Instant) -> PollTimeout {
    due.map_or(PollTimeout::NONE, |due| {
        let millis = due.saturating_duration_since(now).as_nanos().div_ceil(1_000_000);
        PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
    })
}
