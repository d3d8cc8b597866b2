//! New connections: many at once, or one after the other to a server that speaks first.

use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::timeout,
};

use super::{Aim, Measured, Phase};
use crate::app::PATIENCE;

/// `clients` at once, each: connect, one byte there and back, the server's end. `count` is connections.
pub(crate) fn connects(aim: Aim<'_>, clients: usize) -> Result<Measured> {
    let shared = Arc::new(Shared { targets: aim.targets.to_vec(), ..Shared::default() });
    thread::scope(|scope| {
        let worker = scope.spawn(|| run(clients, &shared));
        let measured = shared.phase.observe(aim, || shared.done.load(Relaxed));
        worker.join().map_err(|_| anyhow!("a client panicked"))??;
        measured
    })
}

#[derive(Default)]
struct Shared {
    targets: Vec<SocketAddr>,
    next: AtomicUsize,
    phase: Phase,
    done: AtomicU64,
}

fn run(clients: usize, shared: &Arc<Shared>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut running = JoinSet::new();
        for _ in 0..clients {
            running.spawn(client(shared.clone()));
        }
        while let Some(client) = running.join_next().await {
            client??;
        }
        Ok(())
    })
}

async fn client(shared: Arc<Shared>) -> Result<()> {
    while !shared.phase.over() {
        let target = shared.targets[shared.next.fetch_add(1, Relaxed) % shared.targets.len()];
        let exchanged = timeout(PATIENCE, exchange(target)).await;
        exchanged.context("a connection stands still")?.with_context(|| format!("a connection to {target}"))?;
        shared.done.fetch_add(1, Relaxed);
    }
    Ok(())
}

/// The server closes first: the client's port is free at once, and TIME_WAIT is where it costs no port.
async fn exchange(target: SocketAddr) -> Result<()> {
    let mut stream = tokio::net::TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&[1]).await?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer[..1]).await?;
    ensure!(stream.read(&mut answer[1..]).await? == 0, "more than one byte came back");
    Ok(())
}

/// One connection there and back.
pub(crate) fn exchange_once(target: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime
        .block_on(async { timeout(PATIENCE, exchange(target)).await })?
        .with_context(|| format!("a connection to {target}"))
}

/// From the connect to the server's first bytes, `times` times, one after the other; nanoseconds.
pub(crate) fn first_bytes(target: SocketAddr, times: usize) -> Result<Vec<u32>> {
    (0..times).map(|_| first_byte(target).map(|took| took.as_nanos().try_into().unwrap_or(u32::MAX))).collect()
}

fn first_byte(target: SocketAddr) -> Result<Duration> {
    let begin = Instant::now();
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE).with_context(|| format!("greeting of {target}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    ensure!(stream.read(&mut [0; 512]).context("no greeting")? > 0, "{target} ended without a greeting");
    Ok(begin.elapsed())
}
