//! `hauberk-destination`: flags and environment in, a running service or an error with its remedy out.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::Parser;
use hauberk_destination::{Config, Source, run};
use hauberk_mesh::{CONTROL_NAMESPACE, Networks, TRUST_DOMAIN, TrustDomain};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing_subscriber::EnvFilter;

/// Tells proxies who answers at an address and how it is reached.
#[derive(Debug, Parser)]
#[command(name = "hauberk-destination", version)]
struct Args {
    #[command(flatten)]
    source: SourceArgs,
    /// With --kubernetes: pod, Service and node networks, as CIDRs with commas between. What nodes say of their pods'
    /// networks is added.
    #[arg(long, env = "HAUBERK_NETWORKS", value_name = "CIDR,…", default_value = "")]
    networks: Networks,
    /// Where to serve gRPC.
    #[arg(long, env = "HAUBERK_LISTEN", default_value = "[::]:8086")]
    listen: SocketAddr,
    /// Where to serve /live, /ready and /metrics.
    #[arg(long, env = "HAUBERK_ADMIN", default_value = "[::]:9990")]
    admin: SocketAddr,
    /// The identity server.
    #[arg(long, env = "HAUBERK_IDENTITY_ADDR", value_name = "IP:PORT")]
    identity_addr: SocketAddr,
    /// PEM file of the trust roots to believe at first.
    #[arg(long, env = "HAUBERK_TRUST_ROOTS_FILE", value_name = "FILE")]
    trust_roots: PathBuf,
    /// The ServiceAccount token to show to the identity server.
    #[arg(long, env = "HAUBERK_TOKEN_FILE", value_name = "FILE")]
    token_file: PathBuf,
    /// Where to keep key and certificate for a restart; nowhere if not set.
    #[arg(long, env = "HAUBERK_IDENTITY_DIR", value_name = "DIR")]
    identity_dir: Option<PathBuf>,
    /// The namespace of the control plane.
    #[arg(long, env = "HAUBERK_CONTROL_NAMESPACE", default_value = CONTROL_NAMESPACE)]
    control_namespace: String,
    /// The trust domain, also that of service names.
    #[arg(long, env = "HAUBERK_TRUST_DOMAIN", default_value = TRUST_DOMAIN)]
    trust_domain: String,
    /// What to log, such as info or hauberk_destination=debug.
    #[arg(long, env = "HAUBERK_LOG", default_value = "info")]
    log: EnvFilter,
}

/// One of the two.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct SourceArgs {
    /// The mesh: its networks, pods and services. Read again when it changes.
    #[arg(long, env = "HAUBERK_SERVICES", value_name = "MESH.YAML")]
    services: Option<PathBuf>,
    /// The mesh is what the API server says: that of the cluster which this process runs in, or of KUBECONFIG.
    #[arg(long, env = "HAUBERK_KUBERNETES")]
    kubernetes: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    match start(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hauberk-destination: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn start(args: Args) -> anyhow::Result<()> {
    let domain = TrustDomain::new(&args.control_namespace, &args.trust_domain)?;
    tracing_subscriber::fmt().json().with_env_filter(args.log).with_writer(std::io::stderr).init();
    let config = Config {
        source: match args.source.services {
            Some(path) => Source::MeshFile(path),
            None => Source::Kubernetes { networks: args.networks },
        },
        listen: args.listen,
        admin: args.admin,
        identity_addr: args.identity_addr,
        trust_roots: args.trust_roots,
        token_file: args.token_file,
        identity_dir: args.identity_dir,
        domain,
    };
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let running = run(config, stop.clone());
    tokio::pin!(running);
    tokio::select! {
        ended = &mut running => return ended,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stopping");
    stop.cancel();
    running.await
}
