//! The process: its own certificate, the mesh file, gRPC and admin, each a task, all ended by one token.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use hauberk_api::networks::networks_server::NetworksServer;
use hauberk_identity::{
    Agent, AgentConfig, Store,
    grpc::{self, ClientAuth, IncomingLimits},
};
use hauberk_mesh::{DESTINATION_ACCOUNT, TrustDomain};
use linkerd2_proxy_api::destination::destination_server::DestinationServer;
use tokio::{net::TcpListener, task::JoinSet, time};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{Api, Bounds, MeshSource, Metrics, admin};

/// A question is an address or a name, and a token that nobody here sets.
const LARGEST_REQUEST: usize = 16 * 1024;
/// From the signal to the end, for callers that do not close.
const GRACE: Duration = Duration::from_secs(5);

/// All that the process is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The mesh file.
    pub services: PathBuf,
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

/// Runs until `stop`. Whatever is wrong with the configuration is an error before anything is served.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let metrics = Metrics::default();
    let (source, hub) = MeshSource::open(&config.services, config.domain.clone(), metrics.clone()).await?;
    let (agent, store) = agent(&config)?;
    let (listener, admin) = (bind(config.listen, "listen").await?, bind(config.admin, "admin").await?);
    let (listen, at) = (listener.local_addr()?, admin.local_addr()?);
    info!(%listen, admin = %at, services = %config.services.display(), "serving");

    let api = Api::new(hub.clone(), config.domain, Bounds::default(), metrics.clone(), stop.clone());
    let waiting = store.clone();
    let pending = move || waiting.pending().map(|why| format!("certificate: {why}")).into_iter().collect();
    let mut tasks = JoinSet::new();
    tasks.spawn(agent.run(stop.clone()));
    tasks.spawn(source.follow(hub, stop.clone()));
    tasks.spawn(admin::serve(admin, metrics, Arc::new(pending), stop.clone()));
    tasks.spawn(serve(listener, store, api, stop.clone()));
    // Until the token is cancelled no task ends by itself: one that does has panicked.
    while let Some(ended) = tasks.join_next().await {
        ended.context("a part of the process failed")?;
        if !stop.is_cancelled() {
            bail!("a part of the process ended by itself");
        }
    }
    Ok(())
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
