//! `hauberk-webhook`: flags and environment in, a running webhook or an error with its remedy out.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::Parser;
use hauberk_kubernetes::LeaseTimes;
use hauberk_mesh::{CONTROL_NAMESPACE, TRUST_DOMAIN, TrustDomain, parse_duration};
use hauberk_webhook::{Config, Lifetimes, Limits, NativeSidecars, Source, Webhook};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing_subscriber::EnvFilter;

/// Decides, for the API server, which pods join the mesh, and puts the proxy into them.
#[derive(Debug, Parser)]
#[command(name = "hauberk-webhook", version)]
struct Args {
    /// Said to every part of the control plane; this one runs in Kubernetes only.
    #[arg(long, env = "HAUBERK_KUBERNETES")]
    kubernetes: bool,
    /// How to reach the API server, where this does not run in its cluster.
    #[arg(long, env = "HAUBERK_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Where to answer the API server, over TLS.
    #[arg(long, env = "HAUBERK_LISTEN", default_value = "[::]:8443")]
    listen: SocketAddr,
    /// Where to serve /live, /ready and /metrics.
    #[arg(long, env = "HAUBERK_ADMIN", default_value = "[::]:9990")]
    admin: SocketAddr,
    /// The namespace of the control plane.
    #[arg(long, env = "HAUBERK_CONTROL_NAMESPACE", default_value = CONTROL_NAMESPACE)]
    control_namespace: String,
    /// The trust domain.
    #[arg(long, env = "HAUBERK_TRUST_DOMAIN", default_value = TRUST_DOMAIN)]
    trust_domain: String,
    /// Which replica this is. In a pod, its name.
    #[arg(long, env = "HOSTNAME")]
    instance: String,
    /// ClusterIP of the API server. In a pod, its environment says it.
    #[arg(long, env = "KUBERNETES_SERVICE_HOST", requires = "api_server_port")]
    api_server_host: Option<IpAddr>,
    /// Port of the API server's ClusterIP.
    #[arg(long, env = "KUBERNETES_SERVICE_PORT", requires = "api_server_host")]
    api_server_port: Option<u16>,
    /// Whether pods get native sidecars, which kubelets know from 1.29 on.
    #[arg(long, env = "HAUBERK_NATIVE_SIDECARS", value_enum, default_value = "auto")]
    native_sidecars: NativeSidecars,
    /// A name or address for the certificate, besides the Service's; may be given more than once.
    #[arg(long, env = "HAUBERK_EXTRA_SAN", value_delimiter = ',')]
    extra_san: Vec<String>,
    /// Life of the webhook's CA.
    #[arg(long, env = "HAUBERK_WEBHOOK_CA_LIFETIME", default_value = "8760h", value_parser = parse_duration)]
    ca_lifetime: Duration,
    /// Life of the webhook's certificate: at most a quarter of its CA's.
    #[arg(long, env = "HAUBERK_WEBHOOK_LEAF_LIFETIME", default_value = "720h", value_parser = parse_duration)]
    leaf_lifetime: Duration,
    /// Time for API servers to take over a changed registration.
    #[arg(long, env = "HAUBERK_WEBHOOK_SETTLE", default_value = "1m", value_parser = parse_duration)]
    settle: Duration,
    /// After a signal to end, how long API servers may still come.
    #[arg(long, env = "HAUBERK_DRAIN", default_value = "10s", value_parser = parse_duration)]
    drain: Duration,
    /// What to log, such as info or hauberk_webhook=debug.
    #[arg(long, env = "HAUBERK_LOG", default_value = "info")]
    log: EnvFilter,
}

#[tokio::main]
async fn main() -> ExitCode {
    match start(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hauberk-webhook: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn start(args: Args) -> anyhow::Result<()> {
    TrustDomain::new(&args.control_namespace, &args.trust_domain)?;
    let kubernetes = kubernetes(args.kubeconfig.as_ref()).await?;
    let config = Config {
        listen: args.listen,
        admin: args.admin,
        instance: args.instance,
        source: Source {
            namespace: args.control_namespace,
            api_server: args.api_server_host.zip(args.api_server_port).map(SocketAddr::from),
            native_sidecars: args.native_sidecars,
        },
        extra_names: args.extra_san,
        lifetimes: Lifetimes { ca: args.ca_lifetime, leaf: args.leaf_lifetime, settle: args.settle },
        lease: LeaseTimes::default(),
        limits: Limits { drain: args.drain, ..Limits::default() },
    };
    tracing_subscriber::fmt().json().with_env_filter(args.log).with_writer(std::io::stderr).init();
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let client = kube::Client::try_from(kubernetes).context("a client of the API server")?;
    let run = Webhook::bind(config).await?.run(client, stop.clone());
    tokio::pin!(run);
    tokio::select! {
        ended = &mut run => return Ok(ended?),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stopping");
    stop.cancel();
    Ok(run.await?)
}

async fn kubernetes(file: Option<&PathBuf>) -> anyhow::Result<kube::Config> {
    let Some(file) = file else {
        return kube::Config::incluster().context("this is no pod: give --kubeconfig");
    };
    let text = Kubeconfig::read_from(file).with_context(|| file.display().to_string())?;
    let config = kube::Config::from_custom_kubeconfig(text, &KubeConfigOptions::default()).await;
    config.with_context(|| file.display().to_string())
}
