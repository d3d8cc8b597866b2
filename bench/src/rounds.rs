//! Rounds: in each, every contender of a group is measured once, one right after the other, in an order that moves on
//! from round to round. What disturbs the machine for longer than one turn so disturbs all of them, and the ratios
//! within one round are comparable.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    app::Mode,
    contender::{Contender, Family},
    discovery,
    load::{self, Aim, Measured, Window},
    memory, profile,
    rows::{Group, Metric},
    scene::{Pair, Scene},
    stats::percentile,
    syscalls,
};

/// Clients that open connections at once.
const CLIENTS: usize = 16;

/// Rounds of what starts from fresh pods: slow, and steady.
pub(crate) const FRESH_ROUNDS: usize = 6;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) rounds: usize,
    pub(crate) window: Window,
    /// Greetings of one turn.
    pub(crate) greetings: usize,
    /// Whether system calls are counted too.
    syscalls: bool,
    /// An eighth of the idle connections.
    pub(crate) quick: bool,
}

impl Extent {
    pub(crate) fn full(rounds: usize) -> Self {
        Self { rounds, window: window(300, 2000), greetings: 300, syscalls: true, quick: false }
    }

    pub(crate) fn quick(rounds: usize) -> Self {
        Self { rounds, window: window(150, 600), greetings: 100, syscalls: true, quick: true }
    }
}

fn window(warm_up: u64, length: u64) -> Window {
    Window { warm_up: Duration::from_millis(warm_up), length: Duration::from_millis(length) }
}

/// What was measured: one value for each round.
pub(crate) type Samples = BTreeMap<(Contender, Metric), Vec<f64>>;

/// All rounds of `group`.
pub(crate) fn run(scene: &mut Scene, group: Group, extent: Extent) -> Result<Samples> {
    let contenders = group.contenders();
    // Before the first round, so that no contender is measured while the pods of another are made.
    if !fresh(group) {
        contenders.iter().try_for_each(|contender| scene.pair(*contender, replicas(group)).map(drop))?;
    }
    let mut samples = Samples::new();
    let rounds = if fresh(group) { extent.rounds.min(FRESH_ROUNDS) } else { extent.rounds };
    for round in 0..rounds {
        let (late, early) = contenders.split_at(round % contenders.len());
        for &contender in early.iter().chain(late) {
            let what = || format!("{} of {}, round {}", group.name(), contender.name(), round + 1);
            for (metric, value) in turn(scene, group, contender, extent).with_context(what)? {
                samples.entry((contender, metric)).or_default().push(value);
            }
        }
    }
    Ok(samples)
}

/// One more turn of each of ours, profiled into `dir`.
pub(crate) fn profile(scene: &mut Scene, group: Group, extent: Extent, dir: &Path) -> Result<()> {
    let ours = group.contenders().iter().filter(|contender| contender.family() == Family::Hauberk);
    for &contender in ours.filter(|_| !fresh(group)) {
        let name = format!("{}-{}", group.name(), contender.name());
        let proxies = scene.pair(contender, replicas(group))?.proxies();
        // What counts system calls would be in the way here.
        let extent = Extent { syscalls: false, ..extent };
        profile::take(&proxies, dir, &name, || turn(scene, group, contender, extent).map(drop))?;
    }
    Ok(())
}

/// Whether every turn has pods of its own.
fn fresh(group: Group) -> bool {
    matches!(group, Group::Memory(_) | Group::Discovery(_))
}

fn replicas(group: Group) -> usize {
    match group {
        Group::Connects(replicas) => replicas,
        _ => 1,
    }
}

/// One contender's turn.
fn turn(scene: &mut Scene, group: Group, contender: Contender, extent: Extent) -> Result<Vec<(Metric, f64)>> {
    match group {
        Group::Memory(connections) => {
            let connections = if extent.quick { connections / 8 } else { connections };
            return memory::turn(scene.congestion(), contender, connections);
        }
        Group::Discovery(endpoints) => return discovery::turn(scene.congestion(), endpoints),
        _ => {}
    }
    let pair = scene.pair(contender, replicas(group))?;
    let proxies = pair.proxies();
    let aim = Aim { targets: &pair.targets, proxies: &proxies, window: extent.window };
    let pod = &pair.client.pod;
    scene.app.behave(mode(group));
    Ok(match group {
        Group::Bulk(connections) => {
            let measured = pod.enter(|| load::bulk(aim, connections))?;
            vec![(Metric::Rate, rate(&measured) / 1e6), (Metric::Cpu, cpu(&measured) * 1e9)]
        }
        Group::Trips(connections) => {
            let mut measured = pod.enter(|| load::trips(aim, connections))?;
            let mut samples = vec![(Metric::Rate, rate(&measured)), (Metric::Cpu, cpu(&measured) * 1e6)];
            samples.extend(percentiles(&mut measured.nanos));
            if extent.syscalls {
                samples.extend(count_syscalls(&pair, aim, connections)?);
            }
            samples
        }
        Group::Connects(_) => {
            let measured = pod.enter(|| load::connects(aim, CLIENTS))?;
            let mut samples = vec![(Metric::Rate, rate(&measured)), (Metric::Cpu, cpu(&measured) * 1e3)];
            if contender.family() == Family::Hauberk {
                samples.push((Metric::FullShare, full_share(&pod.metrics()?)?));
            }
            samples
        }
        Group::Greeting => {
            percentiles(&mut pod.enter(|| load::first_bytes(pair.targets[0], extent.greetings))?).to_vec()
        }
        Group::MariaDb => {
            let target = scene.mariadb(contender)?;
            percentiles(&mut pod.enter(|| load::first_bytes(target, extent.greetings))?).to_vec()
        }
        Group::Memory(_) | Group::Discovery(_) => unreachable!("these have pods of their own"),
    })
}

fn mode(group: Group) -> Mode {
    match group {
        Group::Bulk(_) => Mode::Bulk,
        Group::Trips(1) => Mode::EchoThread,
        Group::Trips(_) => Mode::Echo,
        Group::Connects(_) => Mode::EchoOnce,
        _ => Mode::Greet,
    }
}

/// System calls per message and proxy, in a pass of its own: counting costs a little.
fn count_syscalls(pair: &Pair, aim: Aim<'_>, connections: usize) -> Result<Option<(Metric, f64)>> {
    if aim.proxies.is_empty() {
        return Ok(None);
    }
    let load = || pair.client.pod.enter(|| load::trips(aim, connections));
    let (calls, measured) = syscalls::count(aim.proxies, load)?;
    let sides = 2.0;
    Ok(Some((Metric::Syscalls, calls as f64 / measured.total as f64 / sides)))
}

/// How many of a proxy's outbound handshakes so far were full ones, in percent.
fn full_share(metrics: &str) -> Result<f64> {
    let count = |result: &str| {
        let series = format!("hauberk_handshakes_total{{direction=\"outbound\",result=\"{result}\",fault=\"\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&series));
        value.map_or(Ok(0.0), |value| value.parse::<f64>().with_context(|| format!("{series}{value}")))
    };
    let (full, resumed) = (count("full")?, count("resumed")?);
    ensure!(full > 0.0, "the proxy's metrics have no full handshake: has the metric another name now?");
    Ok(100.0 * full / (full + resumed))
}

fn rate(measured: &Measured) -> f64 {
    measured.count as f64 / measured.elapsed.as_secs_f64()
}

/// CPU seconds of the proxies for each unit.
fn cpu(measured: &Measured) -> f64 {
    measured.cpu.as_secs_f64() / measured.count as f64
}

/// In microseconds.
fn percentiles(nanos: &mut [u32]) -> [(Metric, f64); 2] {
    [(Metric::P50, 0.5), (Metric::P99, 0.99)].map(|(metric, share)| (metric, f64::from(percentile(nanos, share)) / 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_full_handshakes_is_read_from_the_metrics() {
        let line = |result: &str, count: u32| {
            format!("hauberk_handshakes_total{{direction=\"outbound\",result=\"{result}\",fault=\"\"}} {count}\n")
        };
        assert_eq!(full_share(&(line("full", 1) + &line("resumed", 3))).expect("both are there"), 25.0);
        assert_eq!(full_share(&line("full", 2)).expect("none was resumed"), 100.0);
        assert!(full_share("hauberk_other 1\n").is_err());
    }
}
