//! The process: binds, serves, follows the files, keeps its own certificate fresh, and ends when told.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use hauberk_mesh::{IDENTITY_ACCOUNT, IdentityName, InvalidIdentity, TrustDomain};
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinError, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    Ca, CaFault, Certify, CertifyLimits, Lifetimes, LocalTokens, MeshPods, Metrics, PodsFault, TokensFault, TrustWatch,
    admin, ca::State,
};
use crate::{
    Store,
    agent::until,
    grpc::{self, ClientAuth, IncomingLimits},
    renew_at,
};

/// How often the files are looked at.
const POLL: Duration = Duration::from_secs(1);
/// Between two tries at a new issuer.
const ISSUER_RETRY: Duration = Duration::from_secs(60);
/// From the signal to the end, whatever clients do.
const DRAIN: Duration = Duration::from_secs(5);

/// What the server is told.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// `mesh.yaml`.
    pub services: PathBuf,
    /// Of the CA and of the token issuer.
    pub dir: PathBuf,
    /// gRPC.
    pub listen: SocketAddr,
    /// Admin.
    pub admin: SocketAddr,
    /// Control namespace and trust domain.
    pub domain: TrustDomain,
    /// Of certificates.
    pub lifetimes: Lifetimes,
    /// Of Certify.
    pub certify: CertifyLimits,
    /// Of connections.
    pub incoming: IncomingLimits,
}

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The CA.
    #[error("CA: {0}")]
    Ca(#[from] CaFault),
    /// The issuer of tokens.
    #[error("tokens: {0}")]
    Tokens(#[from] TokensFault),
    /// The pods.
    #[error("services: {0}")]
    Pods(#[from] PodsFault),
    /// The server's own name.
    #[error("the server's own identity: {0}")]
    Name(#[from] InvalidIdentity),
    /// A listener.
    #[error("{addr}: {source}")]
    Bind {
        /// Where.
        addr: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A part of it ended or panicked.
    #[error("a part of the server ended: {0}")]
    Ended(String),
}

/// A server that is bound and not running yet.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    ca: Arc<Ca>,
    tokens: LocalTokens,
    pods: Arc<MeshPods>,
    metrics: Metrics,
    registry: Registry,
    own: Own,
    listener: TcpListener,
    admin: TcpListener,
}

/// The server's own certificate.
#[derive(Debug, Clone)]
struct Own {
    name: IdentityName,
    store: Store,
    /// From before the first certificate on: no change can be missed.
    changes: watch::Receiver<Arc<State>>,
}

impl Server {
    /// Reads everything, then binds: what is wrong is wrong before anybody connects.
    pub async fn bind(config: ServerConfig) -> Result<Self, RunError> {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let ca = Arc::new(Ca::open_or_create(&config.dir, config.lifetimes)?);
        let tokens = LocalTokens::open_or_create(&config.dir)?;
        let pods = Arc::new(MeshPods::open(&config.services, metrics.clone())?);
        let name = config.domain.identity(IDENTITY_ACCOUNT, config.domain.control_namespace())?;
        let changes = ca.changes();
        let store = Store::fixed(ca.credentials(&name, 1, SystemTime::now())?.into());
        let own = Own { name, store, changes };
        let [listener, admin] = [bind(config.listen).await?, bind(config.admin).await?];
        Ok(Self { config, ca, tokens, pods, metrics, registry, own, listener, admin })
    }

    /// Where gRPC and admin are bound.
    pub fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.listener.local_addr()?, self.admin.local_addr()?))
    }

    /// The CA; it follows its directory while the server runs.
    pub fn ca(&self) -> Arc<Ca> {
        self.ca.clone()
    }

    /// Serves until `stop`. A part that ends before, or panics, is an error.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RunError> {
        let Self { config, ca, tokens, pods, metrics, registry, own, listener, admin } = self;
        info!(identity = %own.name, listen = %config.listen, admin = %config.admin, "serving");
        let limits = config.certify;
        let certify = Certify::new(ca.clone(), config.domain, tokens, pods.clone(), limits, metrics.clone());
        let trust = TrustWatch::new(ca.clone(), metrics.clone(), stop.clone());
        let incoming = grpc::incoming(listener, own.store.clone(), ClientAuth::Optional, config.incoming);
        let router = grpc::server().add_service(certify.into_server()).add_service(trust.into_server());

        let mut parts = JoinSet::new();
        let stopped = stop.clone().cancelled_owned();
        parts.spawn(async move { describe("gRPC", router.serve_with_incoming_shutdown(incoming, stopped).await) });
        let serve = axum::serve(admin, admin::router(registry, own.store.clone()));
        let serve = serve.with_graceful_shutdown(stop.clone().cancelled_owned());
        parts.spawn(async move { describe("admin", serve.await) });
        parts.spawn(until_stopped(stop.clone(), follow_files(ca.clone(), pods, metrics.clone())));
        parts.spawn(until_stopped(stop.clone(), keep_own(ca, own, metrics)));

        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => Ok(()),
            Some(ended) = parts.join_next() => Err(ended.unwrap_or_else(panicked)),
        };
        stop.cancel();
        let all = async {
            while let Some(ended) = parts.join_next().await {
                let _ = ended.inspect_err(|error| error!(%error, "a part of the server panicked"));
            }
        };
        if timeout(DRAIN, all).await.is_err() {
            warn!("connections are still open; closing");
        }
        ended.map_err(RunError::Ended)
    }
}

async fn bind(addr: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(addr).await.map_err(|source| RunError::Bind { addr, source })
}

fn describe<E: std::fmt::Display>(part: &str, ended: Result<(), E>) -> String {
    ended.map_or_else(|error| format!("{part}: {error}"), |()| format!("{part} ended"))
}

fn panicked(error: JoinError) -> String {
    error.to_string()
}

async fn until_stopped(stop: CancellationToken, part: impl Future<Output = ()>) -> String {
    tokio::select! {
        () = stop.cancelled() => String::new(),
        () = part => "a loop ended".to_owned(),
    }
}

/// Compares bytes: watching an inode would miss how kubelet and editors replace files.
async fn follow_files(ca: Arc<Ca>, pods: Arc<MeshPods>, metrics: Metrics) {
    let mut tried: Option<Instant> = None;
    loop {
        metrics.trust(ca.bundle().generation());
        metrics.ends("issuer", ca.issuer_not_after());
        tokio::time::sleep(POLL).await;
        pods.reload();
        if tried.is_none_or(|tried| tried.elapsed() >= ISSUER_RETRY)
            && let Err(fault) = ca.renew_issuer_if_due(SystemTime::now())
        {
            warn!(%fault, "no new issuer");
            tried = Some(Instant::now());
        }
        match ca.reload() {
            Ok(false) => {}
            Ok(true) => metrics.reloaded("ca", true),
            Err(fault) => {
                metrics.reloaded("ca", false);
                warn!(%fault, "the CA stays as it was");
            }
        }
    }
}

/// A new certificate of our own in time, and whenever issuer or bundle change.
async fn keep_own(ca: Arc<Ca>, mut own: Own, metrics: Metrics) {
    let mut generation = 1;
    let first = own.store.ready().await.not_after();
    metrics.ends("own", first);
    let mut due = renew_at(SystemTime::now(), first, rand::random());
    loop {
        tokio::select! {
            changed = own.changes.changed() => changed.expect("the CA is held"),
            () = until(due) => {}
        }
        let now = SystemTime::now();
        match ca.credentials(&own.name, generation + 1, now) {
            Ok(credentials) => {
                generation += 1;
                due = renew_at(now, credentials.not_after(), rand::random());
                metrics.ends("own", credentials.not_after());
                info!(serial = credentials.serial(), generation, "own certificate");
                own.store.put(credentials.into());
            }
            Err(fault) => {
                warn!(%fault, "no new certificate of our own");
                due = now + ISSUER_RETRY;
            }
        }
    }
}
