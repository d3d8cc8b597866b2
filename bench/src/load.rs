//! The load: the same for every contender, in threads of this process whose sockets are the client pod's.

mod bulk;
mod connects;
mod hold;
mod trips;

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicU8, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::process;

pub(crate) use bulk::bulk;
pub(crate) use connects::{connects, exchange_once, first_bytes};
pub(crate) use hold::Held;
pub(crate) use trips::trips;

/// How long to load before counting, and how long to count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) warm_up: Duration,
    pub(crate) length: Duration,
}

/// What a load is aimed at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Aim<'a> {
    /// Connections take them in turn.
    pub(crate) targets: &'a [SocketAddr],
    /// Whose CPU time counts.
    pub(crate) proxies: &'a [u32],
    pub(crate) window: Window,
}

/// What was counted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measured {
    /// Bytes, round trips or connections.
    pub(crate) count: u64,
    /// The same over all of the load, from its first step to its last.
    pub(crate) total: u64,
    pub(crate) elapsed: Duration,
    /// Of the proxies.
    pub(crate) cpu: Duration,
    /// One entry for each round trip, nanoseconds; empty where that means nothing.
    pub(crate) nanos: Vec<u32>,
}

/// Where a load is: workers look at it between two steps.
#[derive(Debug, Default)]
struct Phase(AtomicU8);

impl Phase {
    const COUNTING: u8 = 1;
    const OVER: u8 = 2;

    fn counting(&self) -> bool {
        self.0.load(Relaxed) == Self::COUNTING
    }

    fn over(&self) -> bool {
        self.0.load(Relaxed) == Self::OVER
    }

    fn end(&self) {
        self.0.store(Self::OVER, Relaxed);
    }

    /// Lets the workers run for the window; `count` says how far they are.
    fn observe(&self, aim: Aim<'_>, count: impl Fn() -> u64) -> Result<Measured> {
        let observed = || {
            thread::sleep(aim.window.warm_up);
            let (cpu, before, begin) = (process::cpu(aim.proxies)?, count(), Instant::now());
            self.0.store(Self::COUNTING, Relaxed);
            thread::sleep(aim.window.length);
            let (elapsed, after) = (begin.elapsed(), count());
            let cpu = process::cpu(aim.proxies)?.saturating_sub(cpu);
            ensure!(after > before, "nothing came through in {elapsed:?}");
            Ok(Measured { count: after - before, elapsed, cpu, ..Measured::default() })
        };
        let observed = observed();
        self.end();
        observed
    }
}

/// Latencies of one worker. Bounded: of what comes above, nothing is kept.
#[derive(Debug)]
struct Latencies(Vec<u32>);

impl Latencies {
    const MOST: usize = 1 << 22;

    fn new() -> Self {
        Self(Vec::with_capacity(1 << 16))
    }

    fn note(&mut self, since: Instant) {
        if self.0.len() < Self::MOST {
            self.0.push(u32::try_from(since.elapsed().as_nanos()).unwrap_or(u32::MAX));
        }
    }
}
