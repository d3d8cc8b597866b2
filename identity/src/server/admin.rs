//! `/live`, `/ready`, `/metrics`.

use std::sync::Arc;

use axum::{Router, extract::State, http::StatusCode, routing::get};
use prometheus_client::{encoding::text::encode, registry::Registry};

use crate::Store;

#[derive(Clone)]
struct Shared {
    registry: Arc<Registry>,
    own: Store,
}

pub(crate) fn router(registry: Registry, own: Store) -> Router {
    Router::new()
        .route("/live", get(async || "live\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Shared { registry: registry.into(), own })
}

async fn ready(State(shared): State<Shared>) -> (StatusCode, String) {
    match shared.own.pending() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("pending: certificate: {why}\n")),
    }
}

async fn metrics(State(shared): State<Shared>) -> Result<([(&'static str, &'static str); 1], String), StatusCode> {
    let mut text = String::new();
    encode(&mut text, &shared.registry).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}
