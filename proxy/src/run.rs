//! Start, drain and end of a proxy process.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use hauberk_identity::{Agent, AgentConfig, AgentError, grpc};
use hauberk_mesh::{
    ADMIN_PORT, DESTINATION_ACCOUNT, INBOUND_PORT, InvalidIdentity, LOCAL_ADMIN_PORT, MESH_PORT, OUTBOUND_PORT,
    PROBES_PORT, ProxySpec, SidecarKind, TlsMode,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    admin::{self, Admin, Audience},
    discovery::Discovery,
    drain::{Draining, QUIET},
    listen::{self, Role},
    metrics::Metrics,
    probes::Probes,
    proxy::Proxy,
    secure::RecordLayer,
    socket::{self, OtherEnd},
};

/// Why the proxy cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A port is taken, or may not be used.
    #[error("cannot listen on {addr}: {error}. The port is the proxy's own: nothing else in the pod may use it")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// The identity cannot be set up.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// A part of the proxy has ended; it drained and stopped.
    #[error("a task that must not end has ended ({0:?}): the log says more; please report it")]
    Background(Option<tokio::task::JoinError>),
    /// The control plane's own name is not valid.
    #[error(transparent)]
    Identity(#[from] InvalidIdentity),
}

/// As many descriptors as the limit of the container allows: every connection takes two.
fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        warn!(%error, soft, hard, "cannot raise the limit of open files");
    }
}

/// Runs a proxy until `stop`, then drains it within the limit.
pub async fn run(spec: ProxySpec, layer: RecordLayer, stop: CancellationToken) -> Result<(), RunError> {
    raise_descriptor_limit();
    let limits = spec.limits.clone();
    let ending = CancellationToken::new();
    let mut background = JoinSet::new();

    let config = AgentConfig::new(
        spec.identity.clone(),
        spec.identity_addr,
        PathBuf::from(&spec.token_file),
        Some(PathBuf::from(&spec.identity_dir)),
        spec.trust_roots.clone(),
    );
    let (agent, store) = Agent::new(config)?;
    let destination = spec.trust_domain().identity(DESTINATION_ACCOUNT, spec.trust_domain().control_namespace())?;
    let channel = grpc::channel(spec.destination_addr, destination, store.clone());
    let mut registry = Registry::with_prefix("hauberk");
    let metrics = Arc::new(Metrics::register(&mut registry, &limits));
    let (discovery, discovering) = Discovery::new(channel, &limits, spec.networks.clone());
    discovery.register(&mut registry);
    let (tls, sidecar) = (spec.tls, spec.sidecar);
    let probes = Arc::new(Probes::new(&spec.probes, metrics.clone()));
    let proxy = Arc::new(Proxy::new(spec, layer, store, discovery, metrics));

    let listeners = bind(tls)?;
    if tls != TlsMode::Disabled {
        background.spawn(agent.run(ending.clone()));
        let ready = proxy.store.clone();
        background.spawn(async move {
            // Destination answers nobody without a certificate: asking earlier would only make it back off.
            ready.ready().await;
            discovering.await;
        });
        let shared = proxy.clone();
        background.spawn(async move { shared.follow_own_end().await });
    }
    let shared = proxy.clone();
    background.spawn(async move { shared.follow_certificates().await });
    let shared = proxy.clone();
    background.spawn(async move { shared.housekeeping().await });
    let shared = proxy.clone();
    background.spawn(async move { shared.sample_bypass().await });
    let admin = Arc::new(Admin { proxy: proxy.clone(), registry });
    for (listener, audience) in listeners.admin {
        background.spawn(admin::serve(admin.clone(), listener, audience, ending.clone()));
    }
    // To the end: an application that is told to stop has its hook first.
    for listener in listeners.probes {
        background.spawn(probes.clone().serve(listener, ending.clone()));
    }
    let mut serving = JoinSet::new();
    let accepting = CancellationToken::new();
    for (listener, role) in listeners.serving {
        serving.spawn(listen::serve(proxy.clone(), listener, role, accepting.clone()));
    }
    info!(identity = %proxy.spec.identity, %tls, "serving");

    let result = tokio::select! {
        () = stop.cancelled() => Ok(()),
        Some(ended) = background.join_next() => Err(RunError::Background(ended.err())),
    };
    info!(limit = ?limits.drain, "draining");
    proxy.draining.cancel();
    let drained = timeout(limits.drain, drain(&proxy, &probes, sidecar, &accepting, &mut serving)).await;
    if drained.is_err() {
        info!(open = proxy.connections.open(), "the drain's limit has passed: closing what is open");
    }
    serving.shutdown().await;
    ending.cancel();
    background.shutdown().await;
    result
}

/// A native sidecar's applications have ended: it only finishes. A plain one's may still open connections: it goes on
/// until there has been none for a while, and no hook is under way.
async fn drain(
    proxy: &Proxy,
    probes: &Probes,
    sidecar: SidecarKind,
    accepting: &CancellationToken,
    serving: &mut JoinSet<()>,
) {
    let mut draining = Draining::new(sidecar, Instant::now());
    let mut ticks = tokio::time::interval(QUIET / 10);
    while !draining.is_over(proxy.connections.open() > 0 || probes.hooks() > 0, Instant::now()) {
        ticks.tick().await;
    }
    accepting.cancel();
    while serving.join_next().await.is_some() {}
}

struct Listeners {
    serving: Vec<(TcpListener, Role)>,
    admin: Vec<(TcpListener, Audience)>,
    probes: Vec<TcpListener>,
}

/// Binds everything, so that a proxy that cannot serve does not start. IPv6 is left out where the kernel has none.
fn bind(tls: TlsMode) -> Result<Listeners, RunError> {
    let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let local = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let mut listeners =
        Listeners { serving: Vec::new(), admin: Vec::new(), probes: bind_families(any, PROBES_PORT, socket::listen)? };
    for (ips, port, role) in
        [(local, OUTBOUND_PORT, Role::Outbound), (any, INBOUND_PORT, Role::Inbound), (any, MESH_PORT, Role::Mesh)]
    {
        if role == Role::Mesh && tls == TlsMode::Disabled {
            continue;
        }
        let end = if role == Role::Outbound { OtherEnd::InPod } else { OtherEnd::Elsewhere };
        let bound = bind_families(ips, port, |addr| socket::listen_tuned(addr, end, role != Role::Mesh))?;
        listeners.serving.extend(bound.into_iter().map(|listener| (listener, role)));
    }
    for (ips, port, audience) in [(any, ADMIN_PORT, Audience::Everyone), (local, LOCAL_ADMIN_PORT, Audience::Local)] {
        let bound = bind_families(ips, port, socket::listen)?;
        listeners.admin.extend(bound.into_iter().map(|listener| (listener, audience)));
    }
    Ok(listeners)
}

fn bind_families(
    ips: [IpAddr; 2],
    port: u16,
    listen: impl Fn(SocketAddr) -> io::Result<TcpListener>,
) -> Result<Vec<TcpListener>, RunError> {
    let mut bound = Vec::new();
    for addr in ips.map(|ip| SocketAddr::new(ip, port)) {
        match listen(addr) {
            Ok(listener) => bound.push(listener),
            Err(error) if addr.is_ipv6() && no_ipv6(&error) => {}
            Err(error) => return Err(RunError::Listen { addr, error }),
        }
    }
    Ok(bound)
}

/// EAFNOSUPPORT or EADDRNOTAVAIL: the kernel, or this namespace, has no IPv6.
fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::AddrNotAvailable)
        || error.raw_os_error() == Some(97)
}
