//! Accept loops: one for each listener, with a permit before each connection and an owner for each task.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hauberk_identity::grpc::{Sources, Taken};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::{inbound, mesh_port, metrics::Metrics, outbound, proxy::Proxy, socket};

/// After an error of accept: descriptors may have run out, and others need time to give some back.
const PAUSE: Duration = Duration::from_millis(50);
/// One address may hold this share of the handshakes under way.
const SHARE: usize = 8;

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Outbound,
    Inbound,
    Mesh,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Mesh => "mesh",
        }
    }
}

/// Accepts until `stop`, then waits for the open connections to end; the caller ends them by dropping this.
pub(crate) async fn serve(proxy: Arc<Proxy>, listener: TcpListener, role: Role, stop: CancellationToken) {
    let limits = &proxy.spec.limits;
    let most = match role {
        Role::Outbound => limits.outbound,
        Role::Inbound => limits.inbound,
        Role::Mesh => limits.handshakes,
    };
    let per_source = if role == Role::Mesh { (most / SHARE).max(1) } else { most };
    let places = Sources::new(most, per_source);
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = open.join_next() => { note(&proxy.metrics, ended); continue }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, addr)) => admit(&proxy, &mut open, role, &places, tcp, addr),
            Err(error) => {
                pause(&proxy.metrics, role, &error).await;
            }
        }
    }
    drop(listener);
    while let Some(ended) = open.join_next().await {
        note(&proxy.metrics, ended);
    }
}

/// Starts the connection's task, or resets it where a limit is reached.
fn admit(proxy: &Arc<Proxy>, open: &mut JoinSet<()>, role: Role, places: &Sources, tcp: TcpStream, addr: SocketAddr) {
    let Some(place) = places.take(addr.ip()) else {
        proxy.metrics.limit_reached(role.name());
        return socket::arm_reset(&tcp);
    };
    let proxy = proxy.clone();
    open.spawn(async move {
        match role {
            Role::Outbound => held(place, outbound::serve(&proxy, tcp, addr)).await,
            Role::Inbound => held(place, inbound::serve(&proxy, tcp, addr)).await,
            Role::Mesh => mesh_port::serve(&proxy, tcp, addr, place).await,
        }
    });
}

async fn held(_place: Taken, serving: impl Future<Output = ()>) {
    serving.await;
}

async fn pause(metrics: &Metrics, role: Role, error: &io::Error) {
    metrics.accept_error(role.name());
    // The peer left before it was accepted: the next one may be fine.
    if error.kind() != io::ErrorKind::ConnectionAborted {
        warn!(listener = role.name(), %error, "cannot accept");
        tokio::time::sleep(PAUSE).await;
    }
}

fn note(metrics: &Metrics, ended: Result<(), JoinError>) {
    if let Err(failed) = ended
        && failed.is_panic()
    {
        metrics.panics.inc();
        error!(%failed, "a connection's task panicked");
    }
}
