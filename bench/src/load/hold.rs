//! Connections that have carried something and now idle.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result, ensure};
use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    runtime::Runtime,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    app::{BODY, PATIENCE},
    scene::{Pair, identity},
};

/// Under way at once while connections are opened.
const AT_ONCE: usize = 32;

/// Open connections. Dropped, they close.
#[derive(Debug)]
pub(crate) struct Held {
    _streams: Vec<Stream>,
    _runtime: Runtime,
}

#[derive(Debug)]
enum Stream {
    Plain { _tcp: TcpStream },
    Tls { _tls: Box<TlsStream<TcpStream>> },
}

impl Held {
    /// `count` connections of `pair`, each of which has carried [`BODY`] bytes.
    pub(crate) fn open(pair: &Pair, count: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (target, tls) = (pair.targets[0], pair.tls.clone());
        let streams = pair.client.pod.enter(|| runtime.block_on(open(target, tls, count)))?;
        Ok(Self { _streams: streams, _runtime: runtime })
    }
}

async fn open(target: SocketAddr, tls: Option<Arc<ClientConfig>>, count: usize) -> Result<Vec<Stream>> {
    let (mut opening, mut open) = (JoinSet::new(), Vec::with_capacity(count));
    for begun in 0..count {
        if begun >= AT_ONCE {
            open.push(next(&mut opening).await?);
        }
        let tls = tls.clone();
        opening
            .spawn(async move { timeout(PATIENCE, connect(target, tls)).await.context("a connection stands still")? });
    }
    while open.len() < count {
        open.push(next(&mut opening).await?);
    }
    Ok(open)
}

async fn next(opening: &mut JoinSet<Result<Stream>>) -> Result<Stream> {
    opening.join_next().await.context("nothing is being opened")??
}

async fn connect(target: SocketAddr, tls: Option<Arc<ClientConfig>>) -> Result<Stream> {
    let mut tcp = TcpStream::connect(target).await.with_context(|| format!("an idle connection to {target}"))?;
    let Some(config) = tls else {
        carry(&mut tcp).await?;
        return Ok(Stream::Plain { _tcp: tcp });
    };
    let name = hauberk_identity::server_name(&identity("server"));
    let mut tls = TlsConnector::from(config).connect(name, tcp).await?;
    carry(&mut tls).await?;
    Ok(Stream::Tls { _tls: Box::new(tls) })
}

async fn carry(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<()> {
    stream.write_all(&[1]).await?;
    stream.flush().await?;
    let (mut buffer, mut got) = (vec![0; 64 * 1024], 0);
    while got < BODY {
        let count = stream.read(&mut buffer).await?;
        ensure!(count > 0, "the connection ended after {got} of {BODY} bytes");
        got += count;
    }
    Ok(())
}
