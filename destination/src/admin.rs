//! `/live`, `/ready` and `/metrics`, for kubelets and scrapers. Strangers can reach it: bounded in connections and time.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Bytes, header::CONTENT_TYPE, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::metrics::Metrics;

/// A kubelet and a few scrapers need less.
const CONNECTIONS: usize = 64;
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
/// A connection is closed after this, idle or not; clients open another.
const CONNECTION_AGE: Duration = Duration::from_secs(60);
/// After an accept error, which is mostly "too many open files".
const PAUSE: Duration = Duration::from_millis(100);

/// What `/ready` asks: the names of what is still pending; ready when there are none.
pub(crate) type Pending = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// Serves until `stop`.
pub(crate) async fn serve(listener: TcpListener, metrics: Metrics, pending: Pending, stop: CancellationToken) {
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
        open.spawn(connection(stream, permit, metrics.clone(), pending.clone()));
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

async fn connection(stream: TcpStream, _permit: OwnedSemaphorePermit, metrics: Metrics, pending: Pending) {
    let answer = service_fn(|request: Request<_>| {
        let response = answer(request.method(), request.uri().path(), &metrics, &pending);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
    // How a stranger's connection ended says nothing about this process.
    let _ = time::timeout(CONNECTION_AGE, http.serve_connection(TokioIo::new(stream), answer)).await;
}

fn answer(method: &Method, path: &str, metrics: &Metrics, pending: &Pending) -> Response<Full<Bytes>> {
    let (status, text) = match (method, path) {
        (&Method::GET, "/live") => (StatusCode::OK, "live\n".to_owned()),
        (&Method::GET, "/ready") => match pending().as_slice() {
            [] => (StatusCode::OK, "ready\n".to_owned()),
            pending => (StatusCode::SERVICE_UNAVAILABLE, format!("pending: {}\n", pending.join(", "))),
        },
        (&Method::GET, "/metrics") => (StatusCode::OK, metrics.text()),
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
    use super::*;

    fn ask(method: Method, path: &str, pending: &[&str]) -> (u16, String) {
        let names: Vec<String> = pending.iter().map(|name| (*name).to_owned()).collect();
        let response = answer(&method, path, &Metrics::default(), &(Arc::new(move || names.clone()) as Pending));
        let status = response.status().as_u16();
        (status, format!("{:?}", response.into_body()))
    }

    #[test]
    fn ready_names_what_is_pending() {
        assert_eq!(ask(Method::GET, "/live", &["certificate"]).0, 200);
        assert_eq!(ask(Method::GET, "/ready", &[]).0, 200);
        let (status, text) = ask(Method::GET, "/ready", &["certificate", "listener"]);
        assert!(status == 503 && text.contains("pending: certificate, listener"), "{text}");
        assert!(ask(Method::GET, "/metrics", &[]).1.contains("hauberk_destination_mesh_file_valid"));
        assert_eq!(ask(Method::GET, "/connections", &[]).0, 404);
        assert_eq!(ask(Method::POST, "/live", &[]).0, 404);
    }
}
