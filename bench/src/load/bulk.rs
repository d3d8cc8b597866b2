//! Bytes from server to client, as many as go through: a blocking thread for each connection.

use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};

use super::{Aim, Measured, Phase};
use crate::app::{CHUNK, PATIENCE};

/// Reads from `connections` connections; `count` is bytes.
pub(crate) fn bulk(aim: Aim<'_>, connections: usize) -> Result<Measured> {
    let streams: Vec<_> = aim.targets.iter().cycle().take(connections).map(|target| connect(*target)).collect();
    let streams = streams.into_iter().collect::<Result<Vec<_>>>()?;
    let (phase, bytes) = (Phase::default(), AtomicU64::new(0));
    thread::scope(|scope| {
        let readers: Vec<_> = streams.into_iter().map(|s| scope.spawn(|| drain(s, &phase, &bytes))).collect();
        let measured = phase.observe(aim, || bytes.load(Relaxed));
        for reader in readers {
            reader.join().map_err(|_| anyhow!("a reader panicked"))??;
        }
        measured
    })
}

/// A connection through which the first byte has come.
fn connect(target: SocketAddr) -> Result<TcpStream> {
    let connected = || {
        let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_exact(&mut [0])?;
        Ok::<_, std::io::Error>(stream)
    };
    connected().with_context(|| format!("bulk from {target}"))
}

fn drain(mut stream: TcpStream, phase: &Phase, bytes: &AtomicU64) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    while !phase.over() {
        let count = stream.read(&mut buffer).context("bulk")?;
        ensure!(count > 0, "the server ended a bulk connection");
        bytes.fetch_add(count as u64, Relaxed);
    }
    Ok(())
}
