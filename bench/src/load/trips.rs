//! Round trips of 64 bytes: one connection from a blocking thread, several from one thread with epoll.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result, anyhow};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::timeout,
};

use super::{Aim, Latencies, Measured, Phase};
use crate::app::PATIENCE;

const MESSAGE: [u8; 64] = [0x5a; 64];

/// One message under way on each of `connections` connections; `count` is round trips.
pub(crate) fn trips(aim: Aim<'_>, connections: usize) -> Result<Measured> {
    let shared = Arc::new(Shared::default());
    let targets: Vec<_> = aim.targets.iter().copied().cycle().take(connections).collect();
    thread::scope(|scope| {
        let worker = scope.spawn(|| match targets[..] {
            [target] => blocking(target, &shared),
            _ => evented(&targets, &shared),
        });
        let measured = shared.phase.observe(aim, || shared.trips.load(Relaxed));
        let nanos = worker.join().map_err(|_| anyhow!("a client panicked"))??;
        Ok(Measured { nanos, total: shared.trips.load(Relaxed), ..measured? })
    })
}

#[derive(Default)]
struct Shared {
    phase: Phase,
    trips: AtomicU64,
}

impl Shared {
    fn done(&self, latencies: &mut Latencies, begin: Instant) {
        self.trips.fetch_add(1, Relaxed);
        if self.phase.counting() {
            latencies.note(begin);
        }
    }
}

fn blocking(target: SocketAddr, shared: &Shared) -> Result<Vec<u32>> {
    let mut stream =
        TcpStream::connect_timeout(&target, PATIENCE).with_context(|| format!("round trips to {target}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut answer, mut latencies) = ([0; MESSAGE.len()], Latencies::new());
    while !shared.phase.over() {
        let begin = Instant::now();
        stream.write_all(&MESSAGE)?;
        stream.read_exact(&mut answer).context("no answer")?;
        shared.done(&mut latencies, begin);
    }
    Ok(latencies.0)
}

fn evented(targets: &[SocketAddr], shared: &Arc<Shared>) -> Result<Vec<u32>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut clients = JoinSet::new();
        for target in targets {
            clients.spawn(client(*target, shared.clone()));
        }
        let mut all = Vec::new();
        while let Some(client) = clients.join_next().await {
            all.extend(client??);
        }
        Ok(all)
    })
}

async fn client(target: SocketAddr, shared: Arc<Shared>) -> Result<Vec<u32>> {
    let connected = timeout(PATIENCE, tokio::net::TcpStream::connect(target)).await?;
    let mut stream = connected.with_context(|| format!("round trips to {target}"))?;
    stream.set_nodelay(true)?;
    let mut latencies = Latencies::new();
    let run = async {
        let mut answer = [0; MESSAGE.len()];
        while !shared.phase.over() {
            let begin = Instant::now();
            stream.write_all(&MESSAGE).await?;
            stream.read_exact(&mut answer).await.context("no answer")?;
            shared.done(&mut latencies, begin);
        }
        Ok(())
    };
    // No timer for each message: one for all.
    timeout(PATIENCE * 6, run).await.context("round trips stand still")?.map(|()| latencies.0)
}
