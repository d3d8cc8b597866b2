//! `hauberk-identity`: reads its arguments, runs the server until a signal.

use std::{error::Error, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use hauberk_identity::{
    grpc::IncomingLimits,
    server::{CertifyLimits, KubernetesConfig, Lifetimes, Server, ServerConfig, SourcesConfig},
};
use hauberk_kubernetes::LeaseTimes;
use hauberk_mesh::{CONTROL_NAMESPACE, TRUST_DOMAIN, TrustDomain, parse_duration};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Issues and renews the certificates of the mesh, and tells whom to trust.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The pods and services of the mesh, without Kubernetes.
    #[arg(
        long,
        env = "HAUBERK_SERVICES",
        value_name = "mesh.yaml",
        required_unless_present = "kubernetes",
        requires = "dir"
    )]
    services: Option<PathBuf>,
    /// Directory of the CA's keys and of the key for tokens, without Kubernetes; made at the first start.
    #[arg(long, env = "HAUBERK_CA_DIR", required_unless_present = "kubernetes")]
    dir: Option<PathBuf>,
    /// Runs on Kubernetes: tokens and pods are looked up in its API, the CA stands in Secrets of the control namespace.
    #[arg(long, env = "HAUBERK_KUBERNETES", requires = "pod_name", conflicts_with_all = ["services", "dir"])]
    kubernetes: bool,
    /// The name of this pod, by which it leads; from the downward API.
    #[arg(long, env = "HAUBERK_POD_NAME")]
    pod_name: Option<String>,
    /// Where gRPC is served.
    #[arg(long, env = "HAUBERK_LISTEN", default_value = "[::]:8080")]
    listen: SocketAddr,
    /// Where /live, /ready and /metrics are served.
    #[arg(long, env = "HAUBERK_ADMIN", default_value = "[::]:9990")]
    admin: SocketAddr,
    /// Namespace of the control plane.
    #[arg(long, env = "HAUBERK_CONTROL_NAMESPACE", default_value = CONTROL_NAMESPACE)]
    control_namespace: String,
    /// Trust domain.
    #[arg(long, env = "HAUBERK_TRUST_DOMAIN", default_value = TRUST_DOMAIN)]
    trust_domain: String,
    /// Life of a leaf.
    #[arg(long, env = "HAUBERK_LEAF_LIFETIME", default_value = "24h", value_parser = lifetime)]
    leaf_lifetime: Duration,
    /// Life of an issuer that is made here.
    #[arg(long, env = "HAUBERK_ISSUER_LIFETIME", default_value = "8760h", value_parser = lifetime)]
    issuer_lifetime: Duration,
    /// Life of a root that is made here.
    #[arg(long, env = "HAUBERK_ROOT_LIFETIME", default_value = "87600h", value_parser = lifetime)]
    root_lifetime: Duration,
    /// By how much the clocks of pods may be behind.
    #[arg(long, env = "HAUBERK_CLOCK_SKEW", default_value = "2m", value_parser = parse_duration)]
    clock_skew: Duration,
    /// What is logged, such as `info` or `hauberk_identity=debug`.
    #[arg(long, env = "HAUBERK_LOG", default_value = "info")]
    log: EnvFilter,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hauberk-identity: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The errors say all that there is to say; their sources would say it twice.
async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let config = args.config().await?;
    tracing_subscriber::fmt().json().with_env_filter(args.log).with_writer(std::io::stderr).init();
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let serve = Server::bind(config).await?.run(stop.clone());
    tokio::pin!(serve);
    tokio::select! {
        ended = &mut serve => return Ok(ended?),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.cancel();
    Ok(serve.await?)
}

impl Args {
    async fn config(&self) -> Result<ServerConfig, Box<dyn Error>> {
        let sources = match (&self.services, &self.dir, &self.pod_name) {
            (Some(services), Some(dir), _) => SourcesConfig::Files { services: services.clone(), dir: dir.clone() },
            (.., Some(pod)) => {
                let client = kube::Client::try_default().await?;
                SourcesConfig::Kubernetes(KubernetesConfig { client, pod: pod.clone(), lease: LeaseTimes::default() })
            }
            // clap sees to it.
            _ => return Err("either --services with --dir, or --kubernetes with --pod-name".into()),
        };
        Ok(ServerConfig {
            sources,
            listen: self.listen,
            admin: self.admin,
            domain: TrustDomain::new(&self.control_namespace, &self.trust_domain)?,
            lifetimes: Lifetimes {
                root: self.root_lifetime,
                issuer: self.issuer_lifetime,
                leaf: self.leaf_lifetime,
                skew: self.clock_skew,
            },
            certify: CertifyLimits::default(),
            incoming: IncomingLimits::default(),
        })
    }
}

/// A lifetime that certificates can have: they count in seconds, and years have four digits.
fn lifetime(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text).map_err(|error| error.to_string())?;
    let (least, most) = (Duration::from_secs(1), Duration::from_secs(100 * 365 * 24 * 3600));
    if (least..=most).contains(&duration) { Ok(duration) } else { Err("from 1s to 876000h".to_owned()) }
}
