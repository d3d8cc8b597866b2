//! What the kernel let pass without the proxy: a sample of the network namespace's socket and protocol tables.
//!
//! The rules of `init` decide there, packet by packet, and nobody reports it; so this looks at what is open from time
//! to time. What a sample misses: `docs/redirection.md`. Parsing is pure and bounded; nothing in a table can panic it.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    net::{IpAddr, SocketAddr},
    ops::AddAssign,
};

use hauberk_mesh::{Direction, PROXY_PORTS, Redirection};

/// Bypassing connections that are told apart at a time: about 70 bytes each, twice while sampling.
pub const MAX_TRACKED: usize = 16_384;

/// The longest line that is read. Those of the kernel have less than 1,000 bytes.
const MAX_LINE: u64 = 4096;

/// The first port that Linux gives to clients, unless it is told otherwise.
const FIRST_CLIENT_PORT: u16 = 32_768;

/// Not `/proc/net`: that shows the namespace of the process's first thread.
const TCP: &str = "/proc/thread-self/net/tcp";
const TCP6: &str = "/proc/thread-self/net/tcp6";
const SNMP: &str = "/proc/thread-self/net/snmp";
const SNMP6: &str = "/proc/thread-self/net/snmp6";
const SCTP: &str = "/proc/thread-self/net/sctp/snmp";

/// What went past the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BypassedProtocol {
    /// A connection that the rules let pass.
    Tcp,
    /// A datagram.
    Udp,
    /// UDP-Lite and SCTP packets, and pings.
    Other,
}

impl BypassedProtocol {
    /// The spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for BypassedProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What is new since the sample before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bypassed {
    /// Which way, seen from the pod.
    pub direction: Direction,
    /// What.
    pub protocol: BypassedProtocol,
    /// TCP: the port of the accepting side. Else 0: the kernel does not count by port.
    pub port: u16,
    /// TCP: connections. Else: datagrams.
    pub count: u64,
}

/// Why there is no sample.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// A table could not be read.
    #[error(
        "{path} could not be read ({source}): what bypasses the proxy is not counted; mount /proc in the container"
    )]
    Read {
        /// The table.
        path: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A table is not in the form that kernels have written for decades.
    #[error("line {line} of {path} is not understood: what bypasses the proxy is not counted on this kernel")]
    Malformed {
        /// The table.
        path: &'static str,
        /// The line, from 1.
        line: usize,
    },
}

/// Remembers what it has counted. Reading takes a few milliseconds for 10,000 sockets, and blocks.
#[derive(Debug)]
pub struct Sampler {
    rules: Redirection,
    seen: HashSet<Pair>,
    untracked: u64,
    datagrams: Option<Datagrams>,
}

/// Local and remote address of a connection.
type Pair = (SocketAddr, SocketAddr);

impl Sampler {
    /// For the network namespace of the calling thread, whose rules are `redirection`.
    pub fn new(redirection: Redirection) -> Self {
        Self { rules: redirection, seen: HashSet::new(), untracked: 0, datagrams: None }
    }

    /// What is new since the last call. The first call counts every connection that is open, and no datagram. After
    /// an error, the next sample counts what this one would have.
    pub fn sample(&mut self) -> Result<Vec<Bypassed>, SampleError> {
        let mut round = Round::new(&self.rules, &self.seen);
        // The kernel walks the connections of the whole machine for each of these. Where no rule skips anything, only
        // link-local ones pass, which are IPv6.
        if skips(&self.rules) {
            read(TCP, true, |table| round.tcp(table))?;
        }
        read(TCP6, false, |table| round.tcp(table))?;
        let mut now = Datagrams::default();
        read(SNMP, true, |table| now.snmp(table))?;
        read(SNMP6, false, |table| now.snmp6(table))?;
        read(SCTP, false, |table| now.snmp6(table))?;
        let Round { seen, found, untracked, .. } = round;
        (self.seen, self.untracked) = (seen, untracked);
        let before = self.datagrams.replace(now).unwrap_or(now);
        Ok(connections(found).chain(now.since(before)).collect())
    }

    /// How many connections the last sample left uncounted because [`MAX_TRACKED`] were open already. They are counted
    /// once there is room, if they are still open then.
    pub fn untracked(&self) -> u64 {
        self.untracked
    }
}

fn skips(rules: &Redirection) -> bool {
    !(rules.skip_inbound_ports.is_empty() && rules.skip_outbound_ports.is_empty() && rules.skip_subnets.is_empty())
}

/// One look at the TCP tables.
struct Round<'a> {
    rules: &'a Redirection,
    before: &'a HashSet<Pair>,
    /// How many new ones may be remembered: the old ones that are still open never have to give way.
    room: usize,
    seen: HashSet<Pair>,
    found: BTreeMap<(Direction, u16), u64>,
    untracked: u64,
}

impl<'a> Round<'a> {
    fn new(rules: &'a Redirection, before: &'a HashSet<Pair>) -> Self {
        let room = MAX_TRACKED.saturating_sub(before.len());
        Self { rules, before, room, seen: HashSet::new(), found: BTreeMap::new(), untracked: 0 }
    }

    /// One table. The kernel lists the listening sockets of a family first, then its connections.
    fn tcp(&mut self, table: impl BufRead) -> Result<(), Broken> {
        let mut listening = HashSet::new();
        each_line(table, |number, line| {
            if number == 1 {
                return Some(());
            }
            let socket = Socket::parse(line)?;
            match socket.state {
                State::Listen => drop(listening.insert(socket.local.port())),
                State::Connected => self.connection(&socket, &listening),
                State::Other => (),
            }
            Some(())
        })
    }

    fn connection(&mut self, socket: &Socket, listening: &HashSet<u16>) {
        let Some((direction, port)) = passes(self.rules, socket, listening) else { return };
        let pair = (socket.local, socket.remote);
        if self.before.contains(&pair) {
            self.seen.insert(pair);
        } else if self.room == 0 {
            self.untracked += 1;
        } else if self.seen.insert(pair) {
            self.room -= 1;
            // The proxy's own are remembered uncounted: once closed, the kernel no longer tells whose they were.
            if socket.uid != self.rules.proxy_uid {
                self.found.entry((direction, port)).or_default().add_assign(1);
            }
        }
    }
}

/// The direction and the accepting side's port, if the rules let this connection pass.
fn passes(rules: &Redirection, socket: &Socket, listening: &HashSet<u16>) -> Option<(Direction, u16)> {
    let (local, remote) = (socket.local, socket.remote);
    let stays_here = remote.ip().is_loopback() || local.ip() == remote.ip();
    if stays_here {
        return None;
    }
    let skipped = rules.skip_subnets.contains(remote.ip());
    if accepts(local.port(), remote.port(), listening) {
        let ours = PROXY_PORTS.contains(&local.port());
        let passes = !ours && (skipped || rules.skip_inbound_ports.contains(local.port()));
        return passes.then_some((Direction::Inbound, local.port()));
    }
    let link_local = matches!(remote.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local());
    let passes = skipped || link_local || rules.skip_outbound_ports.contains(remote.port());
    passes.then_some((Direction::Outbound, remote.port()))
}

/// Whether the local side accepted. Where nothing listens any more, ports that clients are given tell.
fn accepts(local: u16, remote: u16, listening: &HashSet<u16>) -> bool {
    listening.contains(&local) || (local < FIRST_CLIENT_PORT && remote >= FIRST_CLIENT_PORT)
}

fn connections(found: BTreeMap<(Direction, u16), u64>) -> impl Iterator<Item = Bypassed> {
    found.into_iter().map(|((direction, port), count)| Bypassed {
        direction,
        protocol: BypassedProtocol::Tcp,
        port,
        count,
    })
}

/// A line of `/proc/net/tcp` or `tcp6`.
#[derive(Debug, PartialEq, Eq)]
struct Socket {
    local: SocketAddr,
    remote: SocketAddr,
    state: State,
    uid: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Listen,
    /// Both sides have agreed, at some time.
    Connected,
    /// Not yet, or no more.
    Other,
}

impl Socket {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, remote) = (address(fields.next()?)?, address(fields.next()?)?);
        let state = match u8::from_str_radix(fields.next()?, 16).ok()? {
            // ESTABLISHED, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING
            1 | 4 | 5 | 6 | 8 | 9 | 11 => State::Connected,
            10 => State::Listen,
            _ => State::Other,
        };
        Some(Self { local, remote, state, uid: fields.nth(3)?.parse().ok()? })
    }
}

/// `0100007F:1F90`: words of 32 bits as they lie in this machine's memory, in hexadecimal, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match ip.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let bytes = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
            IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// Counters of the namespace, since it was made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Datagrams {
    udp_in: u64,
    udp_out: u64,
    other_in: u64,
    other_out: u64,
}

impl Datagrams {
    /// A line of names, then a line of values, both starting with the protocol.
    fn snmp(&mut self, table: impl BufRead) -> Result<(), Broken> {
        let mut names = String::new();
        each_line(table, |number, line| {
            if number % 2 == 1 {
                line.clone_into(&mut names);
                return Some(());
            }
            let mut pairs = names.split_ascii_whitespace().zip(line.split_ascii_whitespace());
            let (protocol, same) = pairs.next()?;
            pairs.filter(|_| protocol == same).try_for_each(|(name, value)| self.count(protocol, name, value))
        })
    }

    /// A name and a value on each line.
    fn snmp6(&mut self, table: impl BufRead) -> Result<(), Broken> {
        each_line(table, |_, line| {
            let (name, value) = line.split_once(char::is_whitespace)?;
            self.count("", name, value.trim())
        })
    }

    fn count(&mut self, protocol: &str, name: &str, value: &str) -> Option<()> {
        let counter = match (protocol, name) {
            ("Udp:", "InDatagrams") | ("", "Udp6InDatagrams") => &mut self.udp_in,
            ("Udp:", "OutDatagrams") | ("", "Udp6OutDatagrams") => &mut self.udp_out,
            ("UdpLite:", "InDatagrams")
            | ("Icmp:", "InEchos" | "InEchoReps")
            | ("", "UdpLite6InDatagrams" | "Icmp6InEchos" | "Icmp6InEchoReplies" | "SctpInSCTPPacks") => {
                &mut self.other_in
            }
            ("UdpLite:", "OutDatagrams")
            | ("Icmp:", "OutEchos" | "OutEchoReps")
            | ("", "UdpLite6OutDatagrams" | "Icmp6OutEchos" | "Icmp6OutEchoReplies" | "SctpOutSCTPPacks") => {
                &mut self.other_out
            }
            _ => return Some(()),
        };
        *counter = counter.saturating_add(value.parse().ok()?);
        Some(())
    }

    fn since(self, before: Self) -> impl Iterator<Item = Bypassed> {
        let all = [
            (Direction::Inbound, BypassedProtocol::Udp, self.udp_in, before.udp_in),
            (Direction::Outbound, BypassedProtocol::Udp, self.udp_out, before.udp_out),
            (Direction::Inbound, BypassedProtocol::Other, self.other_in, before.other_in),
            (Direction::Outbound, BypassedProtocol::Other, self.other_out, before.other_out),
        ];
        let new = all.into_iter().map(|(direction, protocol, now, before)| Bypassed {
            direction,
            protocol,
            port: 0,
            count: now.saturating_sub(before),
        });
        new.filter(|bypassed| bypassed.count > 0)
    }
}

/// Why a table was not read to its end.
#[derive(Debug)]
enum Broken {
    Io(io::Error),
    Line(usize),
}

/// A table that need not exist counts as empty: kernels without IPv6 or SCTP have no such file.
fn read(
    path: &'static str,
    must_exist: bool,
    parse: impl FnOnce(BufReader<File>) -> Result<(), Broken>,
) -> Result<(), SampleError> {
    let file = match File::open(path) {
        Err(error) if !must_exist && error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|source| SampleError::Read { path, source })?,
    };
    parse(BufReader::with_capacity(64 * 1024, file)).map_err(|broken| match broken {
        Broken::Io(source) => SampleError::Read { path, source },
        Broken::Line(line) => SampleError::Malformed { path, line },
    })
}

/// Calls `parse` with each line and its number, from 1, until it says that it does not understand one.
fn each_line(mut table: impl BufRead, mut parse: impl FnMut(usize, &str) -> Option<()>) -> Result<(), Broken> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let length = table.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(Broken::Io)?;
        if length == 0 {
            break;
        }
        let whole = line.ends_with(b"\n") || (length as u64) < MAX_LINE;
        let text = std::str::from_utf8(&line).ok().filter(|_| whole);
        text.and_then(|text| parse(number, text)).ok_or(Broken::Line(number))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
