//! The process: binds, serves, follows the files, keeps its own certificate fresh, and ends when told.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use hauberk_kubernetes::{Events, Latch, Lease, Readiness, serve_admin};
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
    Ca, CaFault, Certify, CertifyLimits, KubernetesConfig, Lifetimes, LocalTokens, MeshPods, Metrics, Pods, PodsFault,
    TokenReview, TokensFault, TrustWatch,
    ca::State,
    kubernetes::{ApiTokens, Follower, Keeper, LivePods, Secrets, Told},
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

/// Who tells events.
const CONTROLLER: &str = "hauberk.dev/identity";

/// What the server is told.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where CA, tokens and pods come from.
    pub sources: SourcesConfig,
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

/// Where CA, tokens and pods come from.
#[derive(Debug, Clone)]
pub enum SourcesConfig {
    /// From files of this machine.
    Files {
        /// `mesh.yaml`.
        services: PathBuf,
        /// Of the CA and of the token issuer.
        dir: PathBuf,
    },
    /// From a cluster's API.
    Kubernetes(KubernetesConfig),
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
    sources: Sources,
    metrics: Metrics,
    registry: Registry,
    own: IdentityName,
    listener: TcpListener,
    admin: TcpListener,
}

#[derive(Debug)]
enum Sources {
    Files { ca: Arc<Ca>, tokens: LocalTokens, pods: Arc<MeshPods> },
    Kubernetes(KubernetesConfig),
}

/// The server's own certificate.
#[derive(Debug, Clone)]
struct Own {
    name: IdentityName,
    store: Store,
    /// From before the first certificate on: no change can be missed.
    changes: watch::Receiver<Arc<State>>,
}

impl Own {
    fn new(name: IdentityName, ca: &Ca) -> Result<Self, RunError> {
        let changes = ca.changes();
        let store = Store::fixed(ca.credentials(&name, 1, SystemTime::now())?.into());
        Ok(Self { name, store, changes })
    }
}

impl Server {
    /// Reads the files, if it is files, then binds: what is wrong is wrong before anybody connects.
    pub async fn bind(config: ServerConfig) -> Result<Self, RunError> {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let sources = match &config.sources {
            SourcesConfig::Files { services, dir } => Sources::Files {
                ca: Arc::new(Ca::open_or_create(dir, config.lifetimes)?),
                tokens: LocalTokens::open_or_create(dir)?,
                pods: Arc::new(MeshPods::open(services, metrics.clone())?),
            },
            SourcesConfig::Kubernetes(kubernetes) => Sources::Kubernetes(kubernetes.clone()),
        };
        let own = config.domain.identity(IDENTITY_ACCOUNT, config.domain.control_namespace())?;
        let [listener, admin] = [bind(config.listen).await?, bind(config.admin).await?];
        Ok(Self { config, sources, metrics, registry, own, listener, admin })
    }

    /// Where gRPC and admin are bound.
    pub fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.listener.local_addr()?, self.admin.local_addr()?))
    }

    /// The CA of a server of files; it follows its directory while the server runs.
    pub fn ca(&self) -> Option<Arc<Ca>> {
        match &self.sources {
            Sources::Files { ca, .. } => Some(ca.clone()),
            Sources::Kubernetes(_) => None,
        }
    }

    /// Serves until `stop`. A part that ends before, or panics, is an error.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RunError> {
        let Self { config, sources, metrics, registry, own, listener, admin } = self;
        info!(identity = %own, listen = %config.listen, admin = %config.admin, "serving");
        let readiness = Readiness::default();
        let certificate = readiness.latch("certificate");
        let mut tasks = Tasks::new(stop);
        let stopped = tasks.stop.clone();
        let latches = readiness.clone();
        let pending = move || latches.pending();
        tasks.spawn_to_its_end("admin", serve_admin(admin, registry.into(), pending, stopped));
        let serving = Serving { config, metrics, certificate, own, listener };
        let ended = match sources {
            Sources::Files { ca, tokens, pods } => serving.with_files(&mut tasks, ca, tokens, pods).await,
            Sources::Kubernetes(config) => serving.with_cluster(&mut tasks, config, readiness.latch("ca")).await,
        };
        tasks.drain().await;
        ended
    }
}

/// What both kinds of sources are served with.
struct Serving {
    config: ServerConfig,
    metrics: Metrics,
    /// The latch of readiness: the server's own.
    certificate: Latch,
    own: IdentityName,
    listener: TcpListener,
}

impl Serving {
    async fn with_files(
        self,
        tasks: &mut Tasks,
        ca: Arc<Ca>,
        tokens: LocalTokens,
        pods: Arc<MeshPods>,
    ) -> Result<(), RunError> {
        tasks.spawn(follow_files(ca.clone(), pods.clone(), self.metrics.clone()));
        let certify = self.certify(ca.clone(), tokens, pods);
        self.serve(tasks, ca, certify).await
    }

    async fn with_cluster(self, tasks: &mut Tasks, cluster: KubernetesConfig, latch: Latch) -> Result<(), RunError> {
        let KubernetesConfig { client, pod, lease } = cluster;
        let (namespace, lifetimes) = (self.config.domain.control_namespace(), self.config.lifetimes);
        let metrics = self.metrics.clone();
        let (events, teller) = Events::new(CONTROLLER, &pod);
        let told = Told::new(events, namespace);
        let secrets = Secrets::new(&client, namespace);
        tasks.spawn(teller.run(client.clone(), tasks.stop.clone()));
        let (lease, leadership) = Lease::new(client.clone(), namespace, IDENTITY_ACCOUNT, &pod, lease);
        tasks.spawn_to_its_end("lease", lease.run(tasks.stop.clone()));
        let keeper = Keeper { secrets: secrets.clone(), lifetimes, told: told.clone(), metrics: metrics.clone() };
        tasks.spawn(keeper.run(leadership));

        let mut follower = Follower::new(secrets, lifetimes, metrics, latch);
        let Some(ca) = tasks.during(follower.first()).await? else { return Ok(()) };
        tasks.spawn(follower.follow(ca.clone()));
        let pods = Arc::new(LivePods::new(client.clone(), self.config.domain.clone()));
        let certify = self.certify(ca.clone(), ApiTokens::new(client), pods).telling(told);
        self.serve(tasks, ca, certify).await
    }

    fn certify<R: TokenReview, P: Pods>(&self, ca: Arc<Ca>, reviewer: R, pods: Arc<P>) -> Certify<R, P> {
        let (domain, limits) = (self.config.domain.clone(), self.config.certify.clone());
        Certify::new(ca, domain, reviewer, pods, limits, self.metrics.clone())
    }

    /// Until the stop.
    async fn serve<R: TokenReview, P: Pods>(
        self,
        tasks: &mut Tasks,
        ca: Arc<Ca>,
        certify: Certify<R, P>,
    ) -> Result<(), RunError> {
        let own = Own::new(self.own, &ca)?;
        self.certificate.open();
        let trust = TrustWatch::new(ca.clone(), self.metrics.clone(), tasks.stop.clone());
        let incoming = grpc::incoming(self.listener, own.store.clone(), ClientAuth::Optional, self.config.incoming);
        let router = grpc::server().add_service(certify.into_server()).add_service(trust.into_server());
        let stopped = tasks.stop.clone().cancelled_owned();
        tasks.spawn_to_its_end("gRPC", router.serve_with_incoming_shutdown(incoming, stopped));
        tasks.spawn(keep_own(ca, own, self.metrics));
        tasks.during(std::future::pending::<()>()).await.map(drop)
    }
}

/// The tasks of the server.
struct Tasks {
    all: JoinSet<String>,
    stop: CancellationToken,
}

impl Tasks {
    fn new(stop: CancellationToken) -> Self {
        Self { all: JoinSet::new(), stop }
    }

    /// A part that the stop cuts off.
    fn spawn(&mut self, part: impl Future<Output = ()> + Send + 'static) {
        self.all.spawn(until_stopped(self.stop.clone(), part));
    }

    /// A part that sees to the stop itself.
    fn spawn_to_its_end<T: Outcome>(&mut self, name: &'static str, part: impl Future<Output = T> + Send + 'static) {
        self.all.spawn(async move { part.await.describe(name) });
    }

    /// Does `work` while all parts run; none at the stop.
    async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<Option<T>, RunError> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Ok(None),
            Some(ended) = self.all.join_next() => Err(RunError::Ended(ended.unwrap_or_else(panicked))),
            done = work => Ok(Some(done)),
        }
    }

    /// Waits for all parts to end, for so long.
    async fn drain(mut self) {
        self.stop.cancel();
        let all = async {
            while let Some(ended) = self.all.join_next().await {
                let _ = ended.inspect_err(|error| error!(%error, "a part of the server panicked"));
            }
        };
        if timeout(DRAIN, all).await.is_err() {
            warn!("connections are still open; closing");
        }
    }
}

async fn bind(addr: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(addr).await.map_err(|source| RunError::Bind { addr, source })
}

/// How a part ended that should not have.
trait Outcome {
    fn describe(self, part: &str) -> String;
}

impl Outcome for () {
    fn describe(self, part: &str) -> String {
        format!("{part} ended")
    }
}

impl<E: std::fmt::Display> Outcome for Result<(), E> {
    fn describe(self, part: &str) -> String {
        self.map_or_else(|error| format!("{part}: {error}"), |()| format!("{part} ended"))
    }
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
        metrics.of_ca(&ca);
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
