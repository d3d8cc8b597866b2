//! `/live`, `/ready` and `/metrics` of a part of the control plane, for kubelets and scrapers; and the latches that
//! `/ready` asks. Strangers can reach it: bounded in connections and time.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Bytes, header::CONTENT_TYPE, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// A kubelet and a few scrapers need less.
const CONNECTIONS: usize = 64;
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
/// A connection is closed after this, idle or not; clients open another.
const CONNECTION_AGE: Duration = Duration::from_secs(60);
/// After an accept error, which is mostly "too many open files".
const PAUSE: Duration = Duration::from_millis(100);
/// How often the log says what is still pending.
const REMINDER: Duration = Duration::from_secs(10);

/// What has to be there before a part is ready: named, each opened once, for good. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<Vec<(&'static str, String)>>>);

/// One of them.
#[derive(Debug, Clone)]
pub struct Latch {
    all: Readiness,
    name: &'static str,
}

impl Readiness {
    /// One more thing that has to be there.
    pub fn latch(&self, name: &'static str) -> Latch {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((name, String::new()));
        Latch { all: self.clone(), name }
    }

    /// What is not there yet, and why where that is known.
    pub fn pending(&self) -> Vec<String> {
        let pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let say = |(name, why): &(&'static str, String)| {
            if why.is_empty() { (*name).to_owned() } else { format!("{name}: {why}") }
        };
        pending.iter().map(say).collect()
    }

    /// Says in the log what is pending, until nothing is.
    pub async fn remind(&self) {
        loop {
            time::sleep(REMINDER).await;
            let pending = self.pending();
            if pending.is_empty() {
                return;
            }
            warn!(pending = pending.join(", "), "not ready");
        }
    }
}

impl Latch {
    /// Why it is not there yet; no more than that, if it is.
    pub fn because(&self, why: &str) {
        let mut pending = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, held)) = pending.iter_mut().find(|(name, _)| *name == self.name) {
            why.clone_into(held);
        }
    }

    /// It is there.
    pub fn open(&self) {
        let opened = {
            let mut pending = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
            let before = pending.len();
            pending.retain(|(name, _)| *name != self.name);
            pending.len() < before
        };
        if opened {
            info!(what = self.name, pending = self.all.pending().join(", "), "is there");
        }
    }
}

/// Serves until `stop`. `pending` is what `/ready` asks: it is ready when nothing is.
pub async fn serve_admin(
    listener: TcpListener,
    registry: Arc<Registry>,
    pending: impl Fn() -> Vec<String> + Clone + Send + Sync + 'static,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut open = JoinSet::new();
    loop {
        let (stream, permit) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = open.join_next() => {
                if let Err(panic) = ended {
                    error!("a connection to the admin port failed: {panic}");
                }
                continue;
            }
            accepted = accept(&listener, &permits) => accepted,
        };
        open.spawn(connection(stream, permit, registry.clone(), pending.clone()));
    }
}

async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) => {
                warn!("the admin port cannot accept: {error}");
                time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
    registry: Arc<Registry>,
    pending: impl Fn() -> Vec<String>,
) {
    let answer = service_fn(|request: Request<_>| {
        let response = answer(request.method(), request.uri().path(), &registry, &pending);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
    // How a stranger's connection ended says nothing about this process.
    let _ = time::timeout(CONNECTION_AGE, http.serve_connection(TokioIo::new(stream), answer)).await;
}

fn answer(
    method: &Method,
    path: &str,
    registry: &Registry,
    pending: impl Fn() -> Vec<String>,
) -> Response<Full<Bytes>> {
    let (status, text) = match (method, path) {
        (&Method::GET, "/live") => (StatusCode::OK, "live\n".to_owned()),
        (&Method::GET, "/ready") => match pending().as_slice() {
            [] => (StatusCode::OK, "ready\n".to_owned()),
            pending => (StatusCode::SERVICE_UNAVAILABLE, format!("pending: {}\n", pending.join(", "))),
        },
        (&Method::GET, "/metrics") => {
            let mut text = String::new();
            match encode(&mut text, registry) {
                Ok(()) => (StatusCode::OK, text),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("metrics: {error}\n")),
            }
        }
        _ => (StatusCode::NOT_FOUND, "GET /live, /ready or /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let kind = if path == "/metrics" { kind } else { "text/plain; charset=utf-8" };
    response.headers_mut().insert(CONTENT_TYPE, kind.parse().expect("a valid header value"));
    response
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    fn ask(method: Method, path: &str, readiness: &Readiness) -> (u16, String) {
        let mut registry = Registry::default();
        registry.register("hauberk_seen", "Things", Counter::<u64>::default());
        let response = answer(&method, path, &registry, || readiness.pending());
        (response.status().as_u16(), format!("{:?}", response.into_body()))
    }

    #[test]
    fn ready_names_what_is_pending_until_all_latches_are_open() {
        let readiness = Readiness::default();
        let (certificate, settings) = (readiness.latch("certificate"), readiness.latch("settings"));
        assert_eq!(ask(Method::GET, "/live", &readiness).0, 200);
        let (status, text) = ask(Method::GET, "/ready", &readiness);
        assert!(status == 503 && text.contains("pending: certificate, settings"), "{text}");
        certificate.open();
        certificate.open();
        certificate.because("too late to matter");
        assert_eq!(readiness.pending(), ["settings"]);
        settings.because("there is no ConfigMap");
        assert_eq!(readiness.pending(), ["settings: there is no ConfigMap"]);
        settings.open();
        assert_eq!(ask(Method::GET, "/ready", &readiness).0, 200);
    }

    #[test]
    fn metrics_are_served_and_nothing_else_is() {
        let readiness = Readiness::default();
        assert!(ask(Method::GET, "/metrics", &readiness).1.contains("hauberk_seen_total 0"));
        assert_eq!(ask(Method::GET, "/connections", &readiness).0, 404);
        assert_eq!(ask(Method::POST, "/live", &readiness).0, 404);
    }
}
