//! Accept loops: one for each listener, with a permit before each connection and an owner for each task.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
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
    fn name(self) -> &'static str {
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
    let permits = Arc::new(Semaphore::new(most));
    let sources = Arc::new(Sources { most: (most / SHARE).max(1), held: Mutex::default() });
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = open.join_next() => { note(&proxy.metrics, ended); continue }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, addr)) => admit(&proxy, &mut open, role, &permits, &sources, tcp, addr),
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
fn admit(
    proxy: &Arc<Proxy>,
    open: &mut JoinSet<()>,
    role: Role,
    permits: &Arc<Semaphore>,
    sources: &Arc<Sources>,
    tcp: TcpStream,
    addr: SocketAddr,
) {
    let permit = permits.clone().try_acquire_owned().ok();
    let source = if role == Role::Mesh { sources.hold(addr.ip()).map(Some) } else { Some(None) };
    let (Some(permit), Some(source)) = (permit, source) else {
        proxy.metrics.limit_reached(role.name());
        return socket::arm_reset(&tcp);
    };
    // Fails only on a connection that is gone already; serving it finds that out.
    let _ = socket::tune(SockRef::from(&tcp));
    let proxy = proxy.clone();
    open.spawn(async move {
        match role {
            Role::Outbound => held(permit, outbound::serve(&proxy, tcp, addr)).await,
            Role::Inbound => held(permit, inbound::serve(&proxy, tcp, addr)).await,
            Role::Mesh => mesh_port::serve(&proxy, tcp, addr, (permit, source)).await,
        }
    });
}

async fn held(_permit: OwnedSemaphorePermit, serving: impl Future<Output = ()>) {
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

/// What a connection to the mesh port holds until its first stream.
pub(crate) type Handshaking = (OwnedSemaphorePermit, Option<SourceGuard>);

/// Handshakes under way, by address: one stranger cannot hold them all.
pub(crate) struct Sources {
    most: usize,
    held: Mutex<HashMap<IpAddr, usize>>,
}

/// One handshake of one address.
pub(crate) struct SourceGuard {
    sources: Arc<Sources>,
    ip: IpAddr,
}

impl Sources {
    fn hold(self: &Arc<Self>, ip: IpAddr) -> Option<SourceGuard> {
        let mut held = self.held.lock().expect("no code panics while it holds this");
        let count = held.entry(ip).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(SourceGuard { sources: self.clone(), ip })
    }
}

impl Drop for SourceGuard {
    fn drop(&mut self) {
        let mut held = self.sources.held.lock().expect("no code panics while it holds this");
        if let Some(count) = held.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_hold_all_handshakes() {
        let sources = Arc::new(Sources { most: 2, held: Mutex::default() });
        let (stranger, peer) = (IpAddr::from([10, 1, 0, 66]), IpAddr::from([10, 1, 0, 2]));
        let first = sources.hold(stranger).expect("free");
        let _second = sources.hold(stranger).expect("free");
        assert!(sources.hold(stranger).is_none());
        assert!(sources.hold(peer).is_some());
        drop(first);
        assert!(sources.hold(stranger).is_some());
    }
}
