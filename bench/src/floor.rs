//! The least that TLS by rustls costs: a server that takes a connection, answers one byte with the body, and idles.
//! A process of its own, so that its memory can be seen; with the proxies' own configuration.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc, time::SystemTime};

use anyhow::{Context, Result};
use hauberk_identity::{Credentials, SecretKey, TrustBundle};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    app,
    scene::{OWN, ROOTS, identity},
};

/// What the process is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Where to listen.
    listen: SocketAddr,
    /// Where key and certificates are.
    dir: PathBuf,
}

/// Serves until it is killed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let credentials = credentials(&options.dir, "server")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(options.listen).await?;
        let mut open = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    open.spawn(serve(accepted?.0, TlsAcceptor::from(credentials.mesh_server())));
                }
                Some(_) = open.join_next() => {}
            }
        }
    })
}

/// What `scene` has put into `dir` for `account`.
pub(crate) fn credentials(dir: &std::path::Path, account: &str) -> Result<Arc<Credentials>> {
    let read = |name| fs::read(dir.join(name)).with_context(|| format!("{name} in {}", dir.display()));
    let (own, roots) = (read(OWN)?, read(ROOTS)?);
    let certificates = pem::parse_many(&own)?.into_iter().filter(|block| block.tag() == "CERTIFICATE");
    let chain = certificates.map(|block| block.into_contents().into()).collect();
    let trust = TrustBundle::from_pem(1, &roots)?;
    let key = SecretKey::from_pem(&own)?;
    Ok(Arc::new(Credentials::new(&identity(account), &key, chain, &trust, 1, SystemTime::now())?))
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut tls = acceptor.accept(stream).await?;
    let mut buffer = [0; 1024];
    tls.read_exact(&mut buffer[..1]).await?;
    app::send_body(&mut tls).await?;
    tls.flush().await?;
    while tls.read(&mut buffer).await? > 0 {}
    Ok(())
}
