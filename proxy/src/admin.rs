//! What people and Prometheus ask. The pod's address answers `/live`, `/ready` and `/metrics`; loopback alone answers
//! `/connections`.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Bytes, header::CONTENT_TYPE, server::conn::http1};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{encoding::text, registry::Registry};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinError, JoinSet, yield_now},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{metrics::ADMIN, proxy::Proxy};

/// Connections at once on one listener.
const CONNECTIONS: usize = 64;
/// For a request's header, and for a connection as a whole.
const HEADER: Duration = Duration::from_secs(5);
const WHOLE: Duration = Duration::from_secs(60);
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Whoever reaches the pod's address.
    Everyone,
    /// Whoever is in the pod.
    Local,
}

/// What the answers are made of.
pub(crate) struct Admin {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) registry: Registry,
}

/// Answers until `stop`. An answer takes no time, so where there are too many connections the oldest waits for its client
/// and goes: whoever is slow keeps nobody else from asking.
pub(crate) async fn serve(admin: Arc<Admin>, listener: TcpListener, audience: Audience, stop: CancellationToken) {
    let mut open = JoinSet::new();
    let mut order = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(ended) = open.join_next() => { note(ended); continue }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, _)) => {
                order.push_back(open.spawn(connection(admin.clone(), tcp, audience)));
                make_room(&mut order, &admin);
                // Those that came together get their answers before they are too many.
                yield_now().await;
            }
            Err(error) => {
                warn!(%error, "cannot accept on an admin port");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(admin: Arc<Admin>, tcp: TcpStream, audience: Audience) {
    let service = hyper::service::service_fn(move |request| {
        let response = admin.answer(&request, audience);
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(tcp), service);
    // Whatever went wrong, the asker knows it.
    let _ = timeout(WHOLE, connection).await;
}

fn make_room(order: &mut VecDeque<AbortHandle>, admin: &Admin) {
    if order.len() > CONNECTIONS {
        order.retain(|connection| !connection.is_finished());
    }
    if order.len() > CONNECTIONS
        && let Some(oldest) = order.pop_front()
    {
        oldest.abort();
        admin.proxy.metrics.limit_reached(ADMIN);
    }
}

fn note(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && !error.is_cancelled()
    {
        warn!(%error, "an admin connection's task failed");
    }
}

impl Admin {
    fn answer<B>(&self, request: &Request<B>, audience: Audience) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "use GET\n".to_owned());
        }
        match (request.uri().path(), audience) {
            ("/live", _) => plain(StatusCode::OK, "live\n".to_owned()),
            ("/ready", _) => match self.pending() {
                None => plain(StatusCode::OK, "ready\n".to_owned()),
                Some(pending) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {pending}\n")),
            },
            ("/metrics", _) => {
                let mut out = String::new();
                text::encode(&mut out, &self.registry).expect("a String takes everything");
                typed(OPENMETRICS, out)
            }
            ("/connections", Audience::Local) => {
                let identity = self.proxy.store.current().map(|credentials| credentials.name().to_string());
                let document = self.proxy.connections.document(identity);
                typed("application/json", serde_json::to_string(&document).expect("the document is plain data"))
            }
            _ => plain(StatusCode::NOT_FOUND, "not here\n".to_owned()),
        }
    }

    /// What start-up still waits for. The listeners are bound before this is asked.
    fn pending(&self) -> Option<String> {
        let why = self.proxy.store.pending()?;
        (self.proxy.spec.tls != hauberk_mesh::TlsMode::Disabled).then(|| format!("the certificate: {why}"))
    }
}

fn plain(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response
}

fn typed(kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
