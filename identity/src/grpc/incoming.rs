//! The server's side: accepts TCP, shakes hands beside each other, yields what tonic serves. Strangers hold a bounded
//! number of handshakes and connections, each address a share of it.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::{JoinError, JoinSet},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::{Server, server::Connected};
use tracing::{debug, error, warn};

use super::{Sources, Taken};
use crate::{Peer, Store};

/// Whether a client must have a certificate. One that it has is verified in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// The first call to the identity server cannot have one.
    Optional,
    /// Everything else.
    Required,
}

/// What connections may hold. A connection has some 50 KB.
#[derive(Debug, Clone)]
pub struct IncomingLimits {
    /// Open and in handshake, in all.
    pub connections: usize,
    /// Of these, from one address.
    pub per_source: usize,
    /// In handshake.
    pub handshakes: usize,
    /// Longest handshake.
    pub handshake: Duration,
}

impl Default for IncomingLimits {
    fn default() -> Self {
        Self { connections: 8192, per_source: 64, handshakes: 256, handshake: Duration::from_secs(5) }
    }
}

/// In the extensions of each request: who sent it.
#[derive(Debug, Clone)]
pub struct ConnectInfo {
    /// Its address.
    pub remote: SocketAddr,
    /// Who it is, if it has a certificate.
    pub peer: Option<Peer>,
}

/// An accepted connection.
#[derive(Debug)]
pub struct TlsIo {
    stream: TlsStream<TcpStream>,
    info: ConnectInfo,
    _place: Taken,
}

/// A tonic server with the bounds that belong to one of ours: dead clients are noticed, streams and headers bounded.
pub fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_concurrent_streams(256)
        .http2_max_header_list_size(16 * 1024)
        .http2_max_pending_accept_reset_streams(Some(20))
        .tcp_nodelay(true)
}

/// The connections that came in and proved themselves, for `serve_with_incoming`. Each is accepted with what `store`
/// holds at that time. Never ends.
pub fn incoming(
    listener: TcpListener,
    store: Store,
    auth: ClientAuth,
    limits: IncomingLimits,
) -> impl Stream<Item = io::Result<TlsIo>> {
    let sources = Sources::new(limits.connections, limits.per_source);
    let state = Incoming { listener, store, auth, limits, sources, handshakes: JoinSet::new() };
    stream::unfold(state, |mut state| async move { Some((Ok(state.next().await), state)) })
}

struct Incoming {
    listener: TcpListener,
    store: Store,
    auth: ClientAuth,
    limits: IncomingLimits,
    sources: Sources,
    handshakes: JoinSet<Option<TlsIo>>,
}

impl Incoming {
    async fn next(&mut self) -> TlsIo {
        loop {
            tokio::select! {
                Some(ended) = self.handshakes.join_next() => {
                    if let Some(io) = ended.unwrap_or_else(report) {
                        return io;
                    }
                }
                accepted = self.listener.accept(), if self.handshakes.len() < self.limits.handshakes => {
                    self.accepted(accepted).await;
                }
            }
        }
    }

    async fn accepted(&mut self, accepted: io::Result<(TcpStream, SocketAddr)>) {
        let (tcp, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Most likely no file descriptor is left: some connection has to end first.
                warn!(%error, "accept failed");
                return tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let Some(place) = self.sources.take(remote.ip()) else {
            return warn!(%remote, "connection refused: this address, or all together, hold as many as they may");
        };
        let (store, auth, longest) = (self.store.clone(), self.auth, self.limits.handshake);
        self.handshakes.spawn(async move {
            match timeout(longest, handshake(tcp, remote, store, auth, place)).await {
                Ok(Ok(io)) => Some(io),
                Ok(Err(error)) => {
                    debug!(%remote, %error, "handshake failed");
                    None
                }
                Err(_) => {
                    debug!(%remote, "handshake not ended in time");
                    None
                }
            }
        });
    }
}

async fn handshake(
    tcp: TcpStream,
    remote: SocketAddr,
    store: Store,
    auth: ClientAuth,
    place: Taken,
) -> io::Result<TlsIo> {
    tcp.set_nodelay(true)?;
    let credentials = store.ready().await;
    let config = credentials.grpc_server(auth == ClientAuth::Required).map_err(io::Error::other)?;
    let stream = TlsAcceptor::from(Arc::new(config)).accept(tcp).await?;
    let peer = match stream.get_ref().1.peer_certificates() {
        None if auth == ClientAuth::Optional => None,
        chain => Some(credentials.check_peer(chain, None, SystemTime::now()).map_err(io::Error::other)?),
    };
    Ok(TlsIo { stream, info: ConnectInfo { remote, peer }, _place: place })
}

fn report(ended: JoinError) -> Option<TlsIo> {
    error!(%ended, "a handshake panicked");
    None
}

impl Connected for TlsIo {
    type ConnectInfo = ConnectInfo;

    fn connect_info(&self) -> ConnectInfo {
        self.info.clone()
    }
}

impl AsyncRead for TlsIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
