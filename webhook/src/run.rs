//! The process: connects to the API server, binds, follows what it needs, serves, and ends when told.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hauberk_kubernetes::{Events, Lease, LeaseTimes, Readiness, serve_admin};
use hauberk_mesh::WEBHOOK_ACCOUNT;
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinError, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    app::App,
    certificate::{self, Keeper, Lifetimes, Serving},
    known::{self, Source},
    metrics::{EventMetrics, Metrics},
    namespaces,
    server::{self, Limits},
};

/// From the end of the drain to the end of all.
const END: Duration = Duration::from_secs(5);
/// Who tells events.
const CONTROLLER: &str = "hauberk.dev/webhook";

/// What the webhook is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where reviews are answered, over TLS.
    pub listen: SocketAddr,
    /// Admin.
    pub admin: SocketAddr,
    /// Which replica this is: the pod's name.
    pub instance: String,
    /// Where the mesh's values are read from.
    pub source: Source,
    /// Names and addresses in the certificate, besides the Service's.
    pub extra_names: Vec<String>,
    /// Of certificates.
    pub lifetimes: Lifetimes,
    /// Of leadership.
    pub lease: LeaseTimes,
    /// Of connections.
    pub limits: Limits,
}

/// Why the webhook cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A listener.
    #[error("{addr}: {source}")]
    Bind {
        /// Where.
        addr: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The values do not fit together.
    #[error("{0}")]
    Invalid(String),
    /// A part of it ended or panicked.
    #[error("a part of the webhook ended: {0}")]
    Ended(String),
}

/// A webhook that is bound and not running yet.
#[derive(Debug)]
pub struct Webhook {
    config: Config,
    listener: TcpListener,
    admin: TcpListener,
}

impl Webhook {
    /// Checks what it was told, then binds.
    pub async fn bind(config: Config) -> Result<Self, RunError> {
        config.lifetimes.check().map_err(RunError::Invalid)?;
        let [listener, admin] = [bind(config.listen).await?, bind(config.admin).await?];
        Ok(Self { config, listener, admin })
    }

    /// Where reviews are answered, and admin.
    pub fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.listener.local_addr()?, self.admin.local_addr()?))
    }

    /// Serves until `stop`, and for the drain after it. A part that ends before, or panics, is an error.
    pub async fn run(self, client: Client, stop: CancellationToken) -> Result<(), RunError> {
        let Self { config, listener, admin } = self;
        let Config { instance, source, lifetimes, limits, .. } = config;
        info!(listen = %config.listen, admin = %config.admin, instance, "starting");
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let readiness = Readiness::default();
        let (events, teller) = Events::new(CONTROLLER, &instance);
        registry.register_collector(Box::new(EventMetrics(events.clone())));

        // These run through the drain: reviews still come. The loops among them are dropped at the end.
        let mut parts = JoinSet::new();
        let ended = CancellationToken::new();
        let known = known::follow(&mut parts, &client, &source, &readiness, &metrics);
        let (namespaces, fill) = namespaces::follow(&client, readiness.latch("namespaces"), metrics.clone());
        parts.spawn(fill);
        let serving = Arc::new(Serving::default());
        let (last, held) = watch::channel(None);
        let latch = readiness.latch("certificate");
        let namespace = source.namespace.clone();
        let follow = certificate::follow(client.clone(), namespace, serving.clone(), last, latch, metrics.clone());
        parts.spawn(follow);
        parts.spawn(named("events", teller.run(client.clone(), ended.clone())));
        let latches = readiness.clone();
        let pending = move || latches.pending();
        parts.spawn(named("admin", serve_admin(admin, Arc::new(registry), pending, ended.clone())));
        let app = Arc::new(App::new(known, namespaces, events, metrics.clone()));
        let serve = named("reviews", server::serve(listener, serving.config(), app, limits, stop.clone()));
        let mut serve = std::pin::pin!(serve);

        // Another leads while this one drains.
        let (lease, leadership) =
            Lease::new(client.clone(), &source.namespace, WEBHOOK_ACCOUNT, &instance, config.lease);
        let names = [service_names(&source.namespace), config.extra_names].concat();
        let keeper = Keeper { client, namespace: source.namespace, names, lifetimes, last: held, metrics };
        parts.spawn(keeper.run(leadership));
        let mut leading = JoinSet::new();
        leading.spawn(lease.run(stop.clone()));
        let mut reminder = std::pin::pin!(async {
            readiness.remind().await;
            std::future::pending::<()>().await;
        });

        let outcome = tokio::select! {
            biased;
            _ = &mut serve => if stop.is_cancelled() { Ok(()) } else { Err("reviews ended".to_owned()) },
            Some(part) = parts.join_next() => Err(part.map_or_else(panicked, |part| format!("{part} ended"))),
            () = &mut reminder => Ok(()),
        };
        stop.cancel();
        ended.cancel();
        let given_back = async { while leading.join_next().await.is_some() {} };
        if timeout(END, given_back).await.is_err() {
            warn!("the Lease is left to run out");
        }
        outcome.map_err(RunError::Ended)
    }
}

/// The names by which API servers reach the Service.
fn service_names(namespace: &str) -> Vec<String> {
    vec![format!("{WEBHOOK_ACCOUNT}.{namespace}.svc"), format!("{WEBHOOK_ACCOUNT}.{namespace}")]
}

async fn bind(addr: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(addr).await.map_err(|source| RunError::Bind { addr, source })
}

async fn named(name: &'static str, part: impl Future<Output = ()>) -> &'static str {
    part.await;
    name
}

fn panicked(error: JoinError) -> String {
    error!(%error, "a part of the webhook panicked");
    error.to_string()
}
