//! The closed list of what a run measures. A run that lacks one of these has failed.

use crate::contender::Contender::{self, *};

/// What is run together, contender after contender in each round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    /// Bytes from server to client over so many connections.
    Bulk(usize),
    /// 64-byte round trips over so many connections.
    Trips(usize),
    /// New connections from 16 clients to so many replicas.
    Connects(usize),
    /// Time to the first bytes of a server that speaks first.
    Greeting,
    /// The same of a real one.
    MariaDb,
    /// So many idle connections, each of which has carried 1 MB.
    Memory(usize),
    /// So many endpoints of a service that the proxy has not asked for yet.
    Discovery(usize),
}

/// Idle connections: the first also says what an idle proxy costs, the second what is left after they have closed.
const FEW: usize = 1000;
const MANY: usize = 8000;

impl Group {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Bulk(connections) => format!("bulk-{connections}"),
            Self::Trips(connections) => format!("rtt-{connections}"),
            Self::Connects(replicas) => format!("connect-{replicas}"),
            Self::Greeting => "greeting".to_owned(),
            Self::MariaDb => "mariadb".to_owned(),
            Self::Memory(connections) => format!("memory-{connections}"),
            Self::Discovery(endpoints) => format!("discovery-{endpoints}"),
        }
    }

    /// Whom it measures.
    pub(crate) fn contenders(self) -> &'static [Contender] {
        match self {
            Self::Bulk(_) | Self::Trips(_) | Self::Greeting => &[Direct, Haproxy, Nginx, Hauberk],
            Self::Connects(_) => &[Direct, Haproxy, HaproxyFull, Nginx, Hauberk, HauberkResumed, HauberkFull],
            Self::MariaDb => &[Direct, Hauberk],
            Self::Memory(_) => &[Haproxy, Nginx, Hauberk, Floor],
            Self::Discovery(_) => &[Hauberk],
        }
    }
}

/// One number of one contender in one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Metric {
    Rate,
    Cpu,
    P50,
    P99,
    Syscalls,
    FullShare,
    /// Of the client's side, for each connection; below of the servers' side.
    AnonymousOut,
    AnonymousIn,
    CgroupOut,
    CgroupIn,
    Sockets,
    IdleOut,
    IdleIn,
    IdleCpu,
    ClosedOut,
    ClosedIn,
    FirstAnswer,
    ProxyMemory,
    DestinationMemory,
}

/// What the issue asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Target {
    /// Ours over the peer's: at least, by the low end of the interval.
    RatioAtLeast(f64),
    /// Ours over the peer's: at most, by the high end of the interval.
    RatioAtMost(f64),
    /// Ours: at most, by the worst round.
    AtMost(f64),
    /// Ours less the peer's: at most, by the worst round.
    MoreAtMost(f64),
}

/// One row of the results.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) group: Group,
    pub(crate) metric: Metric,
    /// Stable: group, then what.
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) ours: Contender,
    /// None where there is nothing to compare with.
    pub(crate) against: Option<Contender>,
    pub(crate) target: Option<Target>,
}

/// Every row of a run under the first setting; or, of a `second` one, what it can change.
pub(crate) fn rows(second: bool) -> Vec<Row> {
    let mut rows = Rows::default();
    [1, 8, 64].into_iter().for_each(|connections| rows.bulk(connections));
    [1, 32].into_iter().for_each(|connections| rows.trips(connections));
    if !second {
        [1, 3, 10].into_iter().for_each(|replicas| rows.connects(replicas));
        rows.greetings();
        [FEW, MANY].into_iter().for_each(|connections| rows.memory(connections));
        [1, 100, 10_000].into_iter().for_each(|endpoints| rows.discovery(endpoints));
    }
    rows.0
}

const PEERS: [Contender; 3] = [Direct, Haproxy, Nginx];
const PROXIES: [Contender; 2] = [Haproxy, Nginx];

#[derive(Default)]
struct Rows(Vec<Row>);

impl Rows {
    fn add(
        &mut self,
        group: Group,
        what: &str,
        unit: &'static str,
        metric: Metric,
        (ours, against): (Contender, impl Into<Option<Contender>>),
        target: Option<Target>,
    ) {
        let (name, against) = (format!("{}/{what}", group.name()), against.into());
        self.0.push(Row { group, metric, name, unit, ours, against, target });
    }

    fn bulk(&mut self, connections: usize) {
        let group = Group::Bulk(connections);
        let rate = Target::RatioAtLeast(if connections == 1 { 1.8 } else { 1.4 });
        for peer in PEERS {
            self.add(group, "rate", "MB/s", Metric::Rate, (Hauberk, peer), asked(peer, rate));
        }
        for peer in PROXIES {
            let target = asked(peer, Target::RatioAtMost(0.6));
            self.add(group, "cpu", "CPU s/GB", Metric::Cpu, (Hauberk, peer), target);
        }
    }

    fn trips(&mut self, connections: usize) {
        let (group, one) = (Group::Trips(connections), connections == 1);
        for peer in PEERS {
            let rate = asked(peer, Target::RatioAtLeast(1.0)).filter(|_| !one);
            let p50 = asked(peer, Target::RatioAtMost(0.9)).filter(|_| one);
            self.add(group, "rate", "1/s", Metric::Rate, (Hauberk, peer), rate);
            self.add(group, "p50", "µs", Metric::P50, (Hauberk, peer), p50);
            self.add(group, "p99", "µs", Metric::P99, (Hauberk, peer), None);
        }
        for peer in PROXIES {
            let cpu = asked(peer, Target::RatioAtMost(0.7)).filter(|_| !one);
            self.add(group, "cpu", "CPU µs/message", Metric::Cpu, (Hauberk, peer), cpu);
            // The budget is 6 and 4.2; opening and closing the connections is counted too.
            let budget = asked(peer, Target::AtMost(if one { 6.05 } else { 4.25 }));
            self.add(group, "syscalls", "per message and proxy", Metric::Syscalls, (Hauberk, peer), budget);
        }
    }

    fn connects(&mut self, replicas: usize) {
        let group = Group::Connects(replicas);
        for (how, ours, least) in
            [("reused", Hauberk, 8.0), ("resumed", HauberkResumed, 2.5), ("full", HauberkFull, 2.2)]
        {
            let full = (ours == HauberkFull).then_some(HaproxyFull);
            let (rate, cpu) = (format!("{how}-rate"), format!("{how}-cpu"));
            for peer in PEERS.into_iter().chain(full) {
                let target = asked(peer, Target::RatioAtLeast(least));
                self.add(group, &rate, "1/s", Metric::Rate, (ours, peer), target);
            }
            for peer in PROXIES.into_iter().chain(full) {
                self.add(group, &cpu, "CPU ms/connection", Metric::Cpu, (ours, peer), None);
            }
            // That each does what its name says.
            let share = format!("{how}-full-handshakes");
            self.add(group, &share, "% of handshakes", Metric::FullShare, (ours, None), None);
        }
    }

    fn greetings(&mut self) {
        for peer in PEERS {
            self.add(Group::Greeting, "p50", "µs", Metric::P50, (Hauberk, peer), None);
            self.add(Group::Greeting, "p99", "µs", Metric::P99, (Hauberk, peer), None);
        }
        let target = Some(Target::MoreAtMost(1000.0));
        self.add(Group::MariaDb, "p50", "µs", Metric::P50, (Hauberk, Direct), target);
        self.add(Group::MariaDb, "p99", "µs", Metric::P99, (Hauberk, Direct), None);
    }

    fn memory(&mut self, connections: usize) {
        let group = Group::Memory(connections);
        let each = "B/connection";
        for peer in PROXIES {
            let most = asked(peer, Target::AtMost(5.0 * 1024.0));
            self.add(group, "anonymous-out", each, Metric::AnonymousOut, (Hauberk, peer), most);
            self.add(group, "anonymous-in", each, Metric::AnonymousIn, (Hauberk, peer), most);
            self.add(group, "cgroup-out", each, Metric::CgroupOut, (Hauberk, peer), None);
            self.add(group, "cgroup-in", each, Metric::CgroupIn, (Hauberk, peer), None);
            self.add(group, "sockets", each, Metric::Sockets, (Hauberk, peer), None);
            if connections == FEW {
                let most = asked(peer, Target::AtMost(8.0));
                self.add(group, "idle-proxy-out", "MiB", Metric::IdleOut, (Hauberk, peer), most);
                self.add(group, "idle-proxy-in", "MiB", Metric::IdleIn, (Hauberk, peer), most);
                self.add(group, "idle-cpu", "CPU ms/s", Metric::IdleCpu, (Hauberk, peer), None);
            } else {
                let most = asked(peer, Target::AtMost(4.0));
                self.add(group, "closed-out", "MiB above idle", Metric::ClosedOut, (Hauberk, peer), most);
                self.add(group, "closed-in", "MiB above idle", Metric::ClosedIn, (Hauberk, peer), most);
            }
        }
        self.add(group, "anonymous-in", each, Metric::AnonymousIn, (Hauberk, Floor), None);
    }

    fn discovery(&mut self, endpoints: usize) {
        let group = Group::Discovery(endpoints);
        self.add(group, "first-answer", "ms", Metric::FirstAnswer, (Hauberk, None), None);
        self.add(group, "proxy", "MiB", Metric::ProxyMemory, (Hauberk, None), None);
        self.add(group, "destination", "MiB", Metric::DestinationMemory, (Hauberk, None), None);
    }
}

/// The issue's targets are against haproxy with session reuse.
fn asked(peer: Contender, target: Target) -> Option<Target> {
    (peer == Haproxy).then_some(target)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_row_is_there_once_and_of_contenders_that_are_measured() {
        for second in [false, true] {
            let rows = rows(second);
            let unique: BTreeSet<_> = rows.iter().map(|row| (&row.name, row.against)).collect();
            assert_eq!(unique.len(), rows.len());
            for row in &rows {
                let measured = row.group.contenders();
                assert!(measured.contains(&row.ours), "{}", row.name);
                assert!(row.against.is_none_or(|peer| measured.contains(&peer)), "{}", row.name);
            }
        }
    }

    #[test]
    fn the_rows_that_the_issue_names_are_there() {
        let rows = rows(false);
        for name in [
            "bulk-1/rate",
            "bulk-8/cpu",
            "bulk-64/rate",
            "rtt-1/syscalls",
            "rtt-32/p99",
            "rtt-32/cpu",
            "connect-1/reused-rate",
            "connect-3/resumed-rate",
            "connect-10/full-rate",
            "greeting/p50",
            "mariadb/p50",
            "memory-1000/anonymous-in",
            "memory-8000/cgroup-out",
            "memory-8000/sockets",
            "memory-1000/idle-proxy-out",
            "memory-1000/idle-cpu",
            "memory-8000/closed-in",
            "discovery-1/first-answer",
            "discovery-100/proxy",
            "discovery-10000/destination",
        ] {
            assert!(rows.iter().any(|row| row.name == name), "{name}");
        }
    }
}
