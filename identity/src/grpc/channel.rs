//! The client's side.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hauberk_mesh::IdentityName;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

use crate::{Credentials, Store, credentials::grpc_client, server_name};

/// TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(5);
/// A server that is gone without a word is noticed after the sum of both.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);

/// A channel to `server` at `addr` that connects when first used, and again after a failure. Each connection believes
/// the roots that `store` then holds and presents the certificate that it then holds, if any; it ends when the store holds
/// another, so that none outlives its certificate: calls under way fail, and are made again. Inside a runtime only.
pub fn channel(addr: SocketAddr, server: IdentityName, store: Store) -> Channel {
    let connect = tower::service_fn(move |_: Uri| connect(addr, server.clone(), store.clone()));
    Endpoint::from_shared(format!("http://{addr}"))
        .expect("an address makes a URI")
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_ANSWER)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connect)
}

async fn connect(addr: SocketAddr, server: IdentityName, store: Store) -> io::Result<TokioIo<Mortal>> {
    let tcp = TcpStream::connect(addr).await?;
    tcp.set_nodelay(true)?;
    let mut held = store.subscribe();
    let own = held.borrow_and_update().clone();
    let config = grpc_client(&server, &store.trust(), own.as_deref());
    let tls = TlsConnector::from(Arc::new(config)).connect(server_name(&server), tcp).await?;
    let replaced = own.map(|own| Box::pin(replaced(held, own)) as Replaced);
    Ok(TokioIo::new(Mortal { tls, replaced }))
}

type Replaced = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Waits until another certificate or trust bundle is held than that of `own`, or none. Certificates are renewed long
/// before they end, each at a moment of its own: so connections are too.
async fn replaced(mut held: watch::Receiver<Option<Arc<Credentials>>>, own: Arc<Credentials>) {
    let generations = |held: &Credentials| (held.generation(), held.trust_generation());
    let same =
        |held: &Option<Arc<Credentials>>| held.as_deref().is_some_and(|held| generations(held) == generations(&own));
    if held.wait_for(|held| !same(held)).await.is_err() {
        // The store has gone: nothing will replace it.
        std::future::pending().await
    }
}

/// A connection that ends, as if the server had ended it, once its certificate is replaced. Without one it has no end.
struct Mortal {
    tls: TlsStream<TcpStream>,
    replaced: Option<Replaced>,
}

impl AsyncRead for Mortal {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(replaced) = &mut self.replaced
            && replaced.as_mut().poll(cx).is_ready()
        {
            self.replaced = Some(Box::pin(std::future::ready(())));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Mortal {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
