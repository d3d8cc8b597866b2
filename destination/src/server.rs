//! The process: its own certificate, the source, gRPC and admin, each a task, all ended by one token.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use hauberk_api::networks::networks_server::NetworksServer;
use hauberk_identity::{
    Agent, AgentConfig, Store,
    grpc::{self, ClientAuth, IncomingLimits},
};
use hauberk_kubernetes::{Readiness, serve_admin};
use hauberk_mesh::{DESTINATION_ACCOUNT, Networks, TrustDomain};
use linkerd2_proxy_api::destination::destination_server::DestinationServer;
use tokio::{net::TcpListener, task::JoinSet, time};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{Api, Bounds, Hub, KubernetesSource, MeshSource, Metrics};

/// A question is an address or a name, and a token that nobody here sets.
const LARGEST_REQUEST: usize = 16 * 1024;
/// From the signal to the end, for callers that do not close.
const GRACE: Duration = Duration::from_secs(5);

/// All that the process is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it is said who is in the mesh.
    pub source: Source,
    /// Where gRPC is served.
    pub listen: SocketAddr,
    /// Where `/live`, `/ready` and `/metrics` are served.
    pub admin: SocketAddr,
    /// The identity server.
    pub identity_addr: SocketAddr,
    /// PEM file of the roots to believe at first.
    pub trust_roots: PathBuf,
    /// The ServiceAccount token to show to the identity server.
    pub token_file: PathBuf,
    /// Where key and certificate are kept for a restart.
    pub identity_dir: Option<PathBuf>,
    /// Control namespace and trust domain.
    pub domain: TrustDomain,
}

/// Where it is said who is in the mesh.
#[derive(Debug, Clone)]
pub enum Source {
    /// In this `mesh.yaml`.
    MeshFile(PathBuf),
    /// By the API server of the cluster that the process runs in, or of its kubeconfig.
    Kubernetes {
        /// Pod, Service and node networks, as far as nodes do not say it.
        networks: Networks,
    },
}

/// Runs until `stop`. Whatever is wrong with the configuration is an error before anything is served.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let (metrics, readiness) = (Metrics::default(), Readiness::default());
    let (agent, store) = agent(&config)?;
    let source = open(&config, &metrics, &readiness).await?;
    let (listener, admin) = (bind(config.listen, "listen").await?, bind(config.admin, "admin").await?);
    let (listen, at) = (listener.local_addr()?, admin.local_addr()?);
    info!(%listen, admin = %at, source = ?config.source, "serving");

    let (waiting, latches) = (store.clone(), readiness.clone());
    let pending = move || {
        let certificate = waiting.pending().map(|why| format!("certificate: {why}"));
        latches.pending().into_iter().chain(certificate).collect()
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(agent.run(stop.clone()));
    tasks.spawn(serve_admin(admin, metrics.registry(), pending, stop.clone()));
    tasks.spawn(remind(readiness, stop.clone()));
    let serving = Serving { listener, store, domain: config.domain, metrics, stop: stop.clone() };
    tasks.spawn(serving.from(source));
    // Until the token is cancelled no task ends by itself: one that does has panicked.
    while let Some(ended) = tasks.join_next().await {
        ended.context("a part of the process failed")?;
        if !stop.is_cancelled() {
            bail!("a part of the process ended by itself");
        }
    }
    Ok(())
}

/// A source that can be read, or asked.
enum Opened {
    MeshFile(Box<MeshSource>, Arc<Hub>),
    Kubernetes(Box<KubernetesSource>),
}

async fn open(config: &Config, metrics: &Metrics, readiness: &Readiness) -> anyhow::Result<Opened> {
    match &config.source {
        Source::MeshFile(path) => {
            let (source, hub) = MeshSource::open(path, config.domain.clone(), metrics.clone()).await?;
            Ok(Opened::MeshFile(Box::new(source), hub))
        }
        Source::Kubernetes { networks } => {
            if networks.is_empty() {
                warn!("--networks is not set: an address that nobody has yet passes for one outside of the cluster");
            }
            let client = kube::Client::try_default().await.context(
                "--kubernetes: there is no API server to ask: run in a pod with a ServiceAccount, or set KUBECONFIG",
            )?;
            let (domain, networks) = (&config.domain, networks.clone());
            let source = KubernetesSource::new(&client, domain, networks, metrics.clone(), readiness);
            Ok(Opened::Kubernetes(Box::new(source)))
        }
    }
}

/// What is served once there is something to say.
struct Serving {
    listener: TcpListener,
    store: Store,
    domain: TrustDomain,
    metrics: Metrics,
    stop: CancellationToken,
}

impl Serving {
    /// Serves what `source` says, from when it has said all of it once, until `stop`.
    async fn from(self, source: Opened) {
        let stop = self.stop.clone();
        match source {
            Opened::MeshFile(source, hub) => {
                tokio::join!(source.follow(hub.clone(), stop), self.serve(hub));
            }
            Opened::Kubernetes(mut source) => {
                let Some(hub) = source.first(&stop).await else { return };
                tokio::join!(source.follow(hub.clone(), stop), self.serve(hub));
            }
        }
    }

    async fn serve(self, hub: Arc<Hub>) {
        let api = Api::new(hub, self.domain, Bounds::default(), self.metrics, self.stop.clone());
        serve(self.listener, self.store, api, self.stop).await;
    }
}

/// Says what is pending until nothing is.
async fn remind(readiness: Readiness, stop: CancellationToken) {
    stop.run_until_cancelled(readiness.remind()).await;
    stop.cancelled().await;
}

/// Serves `api` over mutual TLS until its streams have ended after `stop`, or the grace is over.
pub async fn serve(listener: TcpListener, store: Store, api: Api, stop: CancellationToken) {
    let incoming = grpc::incoming(listener, store, ClientAuth::Required, IncomingLimits::default());
    // Above our own bound, so that a caller is told of it and does not wait without a word.
    let streams = u32::try_from(api.bounds().per_connection).unwrap_or(u32::MAX).saturating_add(64);
    let serving = grpc::server()
        .max_concurrent_streams(streams)
        .add_service(DestinationServer::new(api.clone()).max_decoding_message_size(LARGEST_REQUEST))
        .add_service(NetworksServer::new(api).max_decoding_message_size(LARGEST_REQUEST))
        .serve_with_incoming_shutdown(incoming, stop.cancelled());
    let grace = async {
        stop.cancelled().await;
        time::sleep(GRACE).await;
    };
    tokio::select! {
        ended = serving => if let Err(error) = ended {
            warn!("gRPC ended: {error}");
        },
        () = grace => warn!("callers did not close within {GRACE:?}"),
    }
}

fn agent(config: &Config) -> anyhow::Result<(Agent, Store)> {
    let identity = config.domain.identity(DESTINATION_ACCOUNT, config.domain.control_namespace())?;
    let roots = std::fs::read_to_string(&config.trust_roots).with_context(|| {
        format!("--trust-roots {}: name a PEM file of the mesh's roots", config.trust_roots.display())
    })?;
    let (token, dir) = (config.token_file.clone(), config.identity_dir.clone());
    Ok(Agent::new(AgentConfig::new(identity, config.identity_addr, token, dir, roots))?)
}

async fn bind(addr: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.with_context(|| format!("--{flag} {addr}: choose an address and port that are free"))
}
