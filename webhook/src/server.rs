//! The HTTPS port: whom it lets in for how long, and which path is which question. What is answered is `app.rs`'s.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONNECTION, CONTENT_TYPE, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::{
    app::App,
    metrics::Rejected,
    registration::Entry,
    sources::{Shares, Sources, Visitor},
};

/// What strangers may take of the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all. An API server opens one for each review that it waits for.
    pub connections: usize,
    /// Of one address.
    pub connections_of_one: usize,
    /// Largest body. An API server takes objects of 3 MiB, and JSON may be longer than what it was sent.
    pub body: usize,
    /// Bytes of bodies that are held for one address, and in all.
    pub bytes: (usize, usize),
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the first request.
    pub first_request: Duration,
    /// For a body, from its header on; API servers wait for 5 s in all.
    pub whole_body: Duration,
    /// Of an idle connection. API servers close theirs after 90 s; were we first, a review could get lost on the way.
    pub idle: Duration,
    /// Whether a connection may carry more than one review. Without, each pays for a handshake.
    pub keep_alive: bool,
    /// From the signal on, new connections are still taken for so long: API servers learn late that we go.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_of_one: 1024,
            body: 8 << 20,
            bytes: (32 << 20, 64 << 20),
            handshake: Duration::from_secs(5),
            first_request: Duration::from_secs(5),
            whole_body: Duration::from_secs(4),
            idle: Duration::from_secs(150),
            keep_alive: true,
            drain: Duration::from_secs(10),
        }
    }
}

/// After an accept error, which is mostly "too many open files".
const PAUSE: Duration = Duration::from_millis(100);
/// For answers that are being written when the drain is over.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Serves until `stop`, and for the drain after it.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    app: Arc<App>,
    limits: Limits,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(limits.connections));
    let (bytes, all_bytes) = limits.bytes;
    let sources = Sources::new(Shares { connections: limits.connections_of_one, bytes, all_bytes });
    let (acceptor, closing) = (TlsAcceptor::from(tls), CancellationToken::new());
    let mut open = JoinSet::new();
    let drained = async {
        stop.cancelled().await;
        sleep(limits.drain).await;
    };
    tokio::pin!(drained);
    loop {
        let (tcp, peer, permit) = tokio::select! {
            biased;
            () = &mut drained => break,
            Some(ended) = open.join_next() => {
                if let Err(panic) = ended {
                    error!("a connection failed: {panic}");
                }
                continue;
            }
            accepted = accept(&listener, &permits) => accepted,
        };
        let Some(visitor) = sources.visit(peer.ip()) else {
            app.metrics.rejected(Rejected::Connections);
            continue;
        };
        let port = Port { app: app.clone(), visitor, limits, stop: stop.clone(), asked: AtomicBool::new(false) };
        let (acceptor, closing) = (acceptor.clone(), closing.clone());
        open.spawn(async move {
            let _permit = permit;
            let _counted = port.app.metrics.connection();
            connection(tcp, acceptor, port.into(), closing).await;
        });
    }
    drop(listener);
    closing.cancel();
    let ended = async { while open.join_next().await.is_some() {} };
    if timeout(LAST_ANSWERS, ended).await.is_err() {
        warn!("connections are still open; closing");
    }
}

async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, permit),
            Err(error) => {
                warn!("the port of reviews cannot accept: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

/// What the requests of one connection share.
struct Port {
    app: Arc<App>,
    visitor: Arc<Visitor>,
    limits: Limits,
    stop: CancellationToken,
    asked: AtomicBool,
}

async fn connection(tcp: TcpStream, acceptor: TlsAcceptor, port: Arc<Port>, closing: CancellationToken) {
    let limits = port.limits;
    let tls = match timeout(limits.handshake, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            debug!(%error, "no TLS handshake");
            return port.app.metrics.rejected(Rejected::Handshake);
        }
        Err(_) => return port.app.metrics.rejected(Rejected::Handshake),
    };
    let shared = port.clone();
    let service = service_fn(move |request| {
        let port = shared.clone();
        async move { Ok::<_, Infallible>(port.handle(request).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    // Hyper counts this from the end of the answer before.
    http.timer(TokioTimer::new()).header_read_timeout(limits.idle).keep_alive(limits.keep_alive);
    let connection = http.serve_connection(TokioIo::new(tls), service);
    tokio::pin!(connection);
    let (mut first, mut closed) = (true, false);
    let first_request = sleep(limits.first_request);
    tokio::pin!(first_request);
    loop {
        tokio::select! {
            // How a stranger's connection ended says nothing about this process.
            _ = &mut connection => return,
            () = closing.cancelled(), if !closed => {
                closed = true;
                connection.as_mut().graceful_shutdown();
            }
            () = &mut first_request, if first => {
                first = false;
                if !port.asked.load(Ordering::Relaxed) {
                    return port.app.metrics.rejected(Rejected::Silent);
                }
            }
        }
    }
}

impl Port {
    async fn handle(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        self.asked.store(true, Ordering::Relaxed);
        let entry = Entry::ALL.into_iter().find(|entry| entry.path() == request.uri().path());
        let mut response = match (request.method(), entry) {
            (&Method::POST, Some(entry)) => self.review(entry, request.into_body()).await,
            (&Method::GET, None) if request.uri().path() == "/healthz" => text(StatusCode::OK, "ok"),
            (_, Some(_)) => text(StatusCode::METHOD_NOT_ALLOWED, "reviews are sent by POST"),
            (_, None) => text(StatusCode::NOT_FOUND, "POST a review to the path of an entry of the registration"),
        };
        // Where an answer leaves part of its request unread, or we go, the connection is no good for another.
        if response.status() != StatusCode::OK || self.stop.is_cancelled() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn review(&self, entry: Entry, body: Incoming) -> Response<Full<Bytes>> {
        let started = Instant::now();
        let mut held = self.visitor.nothing();
        let read = read(body, self.limits.body, |bytes| held.more(bytes));
        let body = match timeout(self.limits.whole_body, read).await {
            Ok(Ok(body)) => body,
            Ok(Err(Unread::TooLarge)) => {
                self.app.metrics.rejected(Rejected::TooLarge);
                let message = format!("a review of more than {} bytes is not read", self.limits.body);
                return text(StatusCode::PAYLOAD_TOO_LARGE, &message);
            }
            Ok(Err(Unread::NoRoom)) => {
                self.app.metrics.rejected(Rejected::Memory);
                return text(StatusCode::SERVICE_UNAVAILABLE, "too many reviews at once: try again");
            }
            Ok(Err(Unread::Broken)) | Err(_) => {
                self.app.metrics.rejected(Rejected::Slow);
                return text(StatusCode::REQUEST_TIMEOUT, "the review did not come whole in time");
            }
        };
        let answer = self.app.answer(entry, &body).await;
        self.app.metrics.took(started.elapsed());
        match answer {
            Ok(answer) => {
                let mut response = Response::new(Full::from(answer));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            Err(why) => text(StatusCode::BAD_REQUEST, &why),
        }
    }
}

enum Unread {
    TooLarge,
    NoRoom,
    Broken,
}

/// The whole body; each piece is accounted for before it is kept. What is not kept is read to its end nevertheless:
/// were the connection closed over it, the answer would be lost.
async fn read(mut body: Incoming, most: usize, mut more: impl FnMut(usize) -> bool) -> Result<Vec<u8>, Unread> {
    let mut whole = Vec::new();
    let mut fault = None;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Unread::Broken)?.into_data() else { continue };
        if fault.is_some() {
            continue;
        }
        if whole.len() + data.len() > most {
            fault = Some(Unread::TooLarge);
        } else if !more(data.len()) {
            fault = Some(Unread::NoRoom);
        } else {
            whole.extend_from_slice(&data);
            continue;
        }
        whole = Vec::new();
    }
    fault.map_or(Ok(whole), Err)
}

fn text(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{message}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
