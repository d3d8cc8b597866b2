//! What idle connections cost in memory and CPU, and what is left after they have closed. The proxies are fresh.

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result};

use crate::{
    app::Mode,
    cgroup::Cgroup,
    contender::Contender,
    load::Held,
    process,
    rows::Metric,
    scene::{Scene, Side},
};

/// For what is still under way after the last byte: acknowledgements, timers.
const SETTLE: Duration = Duration::from_secs(2);
/// For what is still under way after the last close: proxies may take a second to close so many, and an allocator another
/// to give back what they held.
const CLOSED: Duration = Duration::from_secs(5);
/// How long idle proxies are watched.
const IDLE: Duration = Duration::from_secs(5);
const MIB: f64 = 1024.0 * 1024.0;

/// One contender with `connections` idle connections, in pods of its own.
pub(crate) fn turn(congestion: &str, contender: Contender, connections: usize) -> Result<Vec<(Metric, f64)>> {
    let mut scene = Scene::new(congestion)?;
    let pair = scene.pair(contender, 1)?;
    scene.app.behave(Mode::Body);
    let [out, into] = [Watched::new("out", &pair.client)?, Watched::new("in", &pair.servers[0])?];
    let sockets = socket_memory()?;
    let held = Held::open(&pair, connections)?;
    thread::sleep(SETTLE);
    let each = |bytes: f64| bytes / connections as f64;
    let mut samples = vec![(Metric::Sockets, each(socket_memory()? - sockets))];
    let cpu = process::cpu(&pair.proxies())?;
    thread::sleep(IDLE);
    let cpu = process::cpu(&pair.proxies())?.saturating_sub(cpu);
    samples.push((Metric::IdleCpu, cpu.as_secs_f64() * 1e3 / IDLE.as_secs_f64()));
    let sides = [
        (&out, [Metric::AnonymousOut, Metric::CgroupOut, Metric::IdleOut, Metric::ClosedOut]),
        (&into, [Metric::AnonymousIn, Metric::CgroupIn, Metric::IdleIn, Metric::ClosedIn]),
    ];
    for (side, [anonymous, cgroup, idle, _]) in sides {
        samples.push((anonymous, each(side.anonymous()? - side.anonymous)));
        samples.push((cgroup, each(side.cgroup.usage()? as f64 - side.charged)));
        samples.push((idle, side.anonymous / MIB));
    }
    drop(held);
    thread::sleep(CLOSED);
    for (side, [_, _, _, closed]) in sides {
        samples.push((closed, (side.anonymous()? - side.anonymous) / MIB));
    }
    Ok(samples)
}

/// A proxy, and what it held when it was idle.
struct Watched {
    pids: Vec<u32>,
    cgroup: Cgroup,
    anonymous: f64,
    charged: f64,
}

impl Watched {
    fn new(name: &str, side: &Side) -> Result<Self> {
        let pids = side.proxy();
        let cgroup = Cgroup::new(name, &pids)?;
        let charged = cgroup.usage()? as f64;
        let mut watched = Self { pids, cgroup, anonymous: 0.0, charged };
        watched.anonymous = watched.anonymous()?;
        Ok(watched)
    }

    /// Bytes.
    fn anonymous(&self) -> Result<f64> {
        self.pids.iter().map(|pid| process::anonymous(*pid).map(|bytes| bytes as f64)).sum()
    }
}

/// Bytes that TCP holds in buffers: of the whole machine, applications and proxies; the kernel keeps no smaller sum.
fn socket_memory() -> Result<f64> {
    const PAGE: f64 = 4096.0;
    let text = fs::read_to_string("/proc/net/sockstat")?;
    let pages = pages(&text).with_context(|| format!("no TCP memory in /proc/net/sockstat: {text:?}"))?;
    Ok(pages as f64 * PAGE)
}

fn pages(sockstat: &str) -> Option<u64> {
    let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    tcp.split_whitespace().skip_while(|word| *word != "mem").nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_pages_of_tcp() {
        let text = "sockets: used 3\nTCP: inuse 5 orphan 0 tw 1 alloc 7 mem 42\nUDP: inuse 0 mem 9\n";
        assert_eq!(pages(text), Some(42));
        assert_eq!(pages("UDP: mem 9\n"), None);
    }
}
