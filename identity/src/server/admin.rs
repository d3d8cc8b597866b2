//! `/live`, `/ready`, `/metrics`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use prometheus_client::{encoding::text::encode, registry::Registry};

/// What the start still waits for, by name, and why. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readiness(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Readiness {
    /// Sets a latch.
    pub(crate) fn pending(&self, latch: &'static str, why: &str) {
        self.held().insert(latch, why.to_owned());
    }

    /// Another reason why it is waited for, if it still is.
    pub(crate) fn why(&self, latch: &'static str, why: &str) {
        if let Some(held) = self.held().get_mut(latch) {
            why.clone_into(held);
        }
    }

    /// Opens the latch, for good.
    pub(crate) fn done(&self, latch: &'static str) {
        self.held().remove(latch);
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone)]
struct Shared {
    registry: Arc<Registry>,
    readiness: Readiness,
}

pub(crate) fn router(registry: Registry, readiness: Readiness) -> Router {
    Router::new()
        .route("/live", get(async || "live\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Shared { registry: registry.into(), readiness })
}

async fn ready(State(shared): State<Shared>) -> (StatusCode, String) {
    let pending: String =
        shared.readiness.held().iter().map(|(latch, why)| format!("pending: {latch}: {why}\n")).collect();
    if pending.is_empty() { (StatusCode::OK, "ready\n".to_owned()) } else { (StatusCode::SERVICE_UNAVAILABLE, pending) }
}

async fn metrics(State(shared): State<Shared>) -> Result<([(&'static str, &'static str); 1], String), StatusCode> {
    let mut text = String::new();
    encode(&mut text, &shared.registry).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}
