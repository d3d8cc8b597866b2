//! Connections of the application: each goes to an endpoint by mTLS, or elsewhere with a written reason, or is reset.
//!
//! Nothing is sniffed for: the proxy dials and opens at once and relays whichever side speaks.

use std::{future::poll_fn, net::SocketAddr, pin::Pin, sync::Arc, task::Poll, time::Instant};

use hauberk_identity::Credentials;
use hauberk_mesh::{CloseCause, ClosedBy, Direction, FirstBytes, Reason, TlsMode};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
    time::timeout_at,
};
use tracing::debug;

use crate::{
    connections::{Settled, Tracked},
    discovery::TargetKind,
    endpoint::{Balancer, EndpointState, Load, Peer},
    leg::{ByteLeg, LegError},
    listen::Rest,
    policy,
    proxy::Proxy,
    records::Agreed,
    relay::{Observer, Prelude, relay},
    secure::MeshStream,
    socket::{self, ConnectError, Route},
    upstream::{self, Connected, MeshConn, OpenError},
};

/// Endpoints that one connection tries.
const TRIES: usize = 3;
/// What `tls-only` reads before it gives up on a ClientHello.
const GATE_MAX: usize = 16 * 1024;

/// How a connection failed before there was anything to relay.
struct Failure {
    cause: CloseCause,
    by: ClosedBy,
    reason: Option<Reason>,
}

impl Failure {
    fn new(cause: CloseCause) -> Self {
        Self { cause, by: ClosedBy::Proxy, reason: None }
    }
}

/// The other side, connected.
enum Server {
    Plain(ByteLeg<TcpStream>),
    Linkerd(Box<ByteLeg<MeshStream>>),
    Mesh(Box<MeshConn>, Arc<Peer>),
}

/// The application's connection while it is on its way.
struct Client {
    tcp: TcpStream,
    target: SocketAddr,
    prelude: Prelude,
    record: Tracked,
}

/// Gets one redirected connection of the application to a server.
pub(crate) async fn accept(proxy: &Proxy, tcp: TcpStream, addr: SocketAddr) -> Option<Rest<'_>> {
    let Ok(target) = socket::original_dst(&tcp, addr) else {
        // Not redirected: somebody dialled the listener itself.
        let target = tcp.local_addr().unwrap_or(addr);
        socket::arm_reset(&tcp);
        proxy.track(Direction::Outbound, addr, target).close(CloseCause::PortNotAllowed, ClosedBy::Proxy);
        return None;
    };
    let record = proxy.track(Direction::Outbound, addr, target);
    let mut client = Client { tcp, target, prelude: Prelude::default(), record };
    let own = addr.ip().to_canonical() == target.ip().to_canonical();
    match connect(proxy, &mut client, own).await {
        Ok((server, load)) => Some(Box::pin(relay_to(proxy, client, server, load))),
        Err(failure) => {
            socket::arm_reset(&client.tcp);
            if let Some(reason) = failure.reason {
                client.record.reason(reason);
            }
            client.record.close(failure.cause, failure.by);
            None
        }
    }
}

async fn connect(proxy: &Proxy, client: &mut Client, own: bool) -> Result<(Server, Option<Load>), Failure> {
    let inside = proxy.discovery.networks().borrow().is_inside(client.target.ip());
    match policy::outbound(&proxy.spec, client.target, own, inside) {
        policy::Outbound::Forward(reason) => forward(proxy, client, own, reason).await.map(|server| (server, None)),
        policy::Outbound::ForwardTls(reason) => {
            await_client_hello(client).await?;
            forward(proxy, client, own, reason).await.map(|server| (server, None))
        }
        policy::Outbound::Refuse(cause, reason) => Err(Failure { reason, ..Failure::new(cause) }),
        policy::Outbound::Discover => discovered(proxy, client).await,
    }
}

/// To where the application was going, as it came.
async fn forward(proxy: &Proxy, client: &mut Client, own: bool, reason: Reason) -> Result<Server, Failure> {
    let connected = match own {
        true => proxy.connect_own(client.target, Direction::Outbound).await,
        false => proxy.connect(client.target, Route::Any, Direction::Outbound).await,
    };
    let tcp = connected.map_err(|error| failed_connect(&error, reason))?;
    client.record.settle(Settled { how: Err(reason), peer: None, local: None, endpoint: None });
    Ok(Server::Plain(ByteLeg::new(tcp)))
}

fn failed_connect(error: &ConnectError, reason: Reason) -> Failure {
    debug!(%error, "not connected");
    let by = if error.cause() == CloseCause::ConnectRefused { ClosedBy::Server } else { ClosedBy::Proxy };
    Failure { cause: error.cause(), by, reason: Some(reason) }
}

/// Holds everything back until the client's first bytes are a ClientHello.
async fn await_client_hello(client: &mut Client) -> Result<(), Failure> {
    let Client { tcp, prelude, record, .. } = client;
    let read = poll_fn(|cx| {
        while !record.is_labelled() && prelude.bytes.len() < GATE_MAX {
            let mut space = [0; 4096];
            let mut buf = ReadBuf::new(&mut space);
            match Pin::new(&mut *tcp).poll_read(cx, &mut buf) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(CloseCause::Reset)),
                Poll::Ready(Ok(())) if buf.filled().is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => {
                    record.to_server(buf.filled());
                    prelude.bytes.extend_from_slice(buf.filled());
                }
            }
        }
        Poll::Ready(Ok(()))
    });
    match read.await {
        Err(cause) => Err(Failure { by: ClosedBy::Client, ..Failure::new(cause) }),
        Ok(()) if record.first_bytes() == FirstBytes::Tls => Ok(()),
        Ok(()) => Err(Failure { reason: Some(Reason::OutsideCluster), ..Failure::new(CloseCause::EgressDenied) }),
    }
}

/// To an endpoint of what discovery says the target is.
async fn discovered(proxy: &Proxy, client: &mut Client) -> Result<(Server, Option<Load>), Failure> {
    let unavailable = |error| {
        debug!(target = %client.target, %error, "discovery");
        Failure::new(CloseCause::DiscoveryUnavailable)
    };
    let balancer = proxy.balancer(client.target).await.map_err(unavailable)?;
    let mut target = balancer.refresh(&proxy.peers);
    if target.kind == TargetKind::Unknown {
        let until = proxy.unknown_until(client.target).into();
        let _ = timeout_at(until, balancer.wait_until_known()).await;
        target = balancer.refresh(&proxy.peers);
    }
    if let Some(service) = &target.service {
        client.record.service(service.clone());
    }
    if target.kind == TargetKind::Unknown {
        let allowed = policy::plaintext(&proxy.spec, Reason::UnknownInCluster, &[client.target]);
        let reason = allowed.map_err(|why| Failure { reason: Some(why), ..Failure::new(CloseCause::Refused) })?;
        return forward(proxy, client, false, reason).await.map(|server| (server, None));
    }
    balanced(proxy, client, &balancer).await
}

/// Tries endpoints until one is open. After a meshed one failed only meshed ones are tried: nobody can force a
/// connection into plaintext by breaking its handshake.
async fn balanced(proxy: &Proxy, client: &mut Client, balancer: &Balancer) -> Result<(Server, Option<Load>), Failure> {
    let mut tried = Vec::new();
    let mut meshed_only = false;
    let mut failure = None;
    let target = client.target;
    while tried.len() < TRIES {
        let may = |endpoint: &EndpointState| {
            let meshed = endpoint.peer().is_some();
            let allowed = || policy::plaintext(&proxy.spec, endpoint.reason(), &[target, endpoint.addr()]).is_ok();
            !tried.contains(&endpoint.addr()) && (meshed || (!meshed_only && allowed()))
        };
        let Some(endpoint) = balancer.pick(may, Instant::now(), |below| rand::random_range(0..below)) else { break };
        tried.push(endpoint.addr());
        let load = endpoint.load();
        let attempt = match endpoint.peer() {
            Some(peer) => meshed(proxy, client, &endpoint, peer).await,
            None => plain(proxy, client, &endpoint).await,
        };
        match attempt {
            Ok(server) => {
                endpoint.worked();
                return Ok((server, Some(load)));
            }
            Err((again, error)) => {
                endpoint.failed(Instant::now());
                meshed_only |= endpoint.peer().is_some();
                failure = Some(error);
                if !again {
                    break;
                }
            }
        }
    }
    Err(failure.unwrap_or_else(|| nothing_allowed(proxy, balancer)))
}

/// Why no endpoint could even be tried.
fn nothing_allowed(proxy: &Proxy, balancer: &Balancer) -> Failure {
    match balancer.pick(|_| true, Instant::now(), |_| 0) {
        Some(endpoint) if proxy.spec.tls == TlsMode::Required => {
            Failure { reason: Some(endpoint.reason()), ..Failure::new(CloseCause::Refused) }
        }
        _ => Failure::new(CloseCause::NoEndpoints),
    }
}

type Attempt = Result<Server, (bool, Failure)>;

/// To an endpoint without a proxy.
async fn plain(proxy: &Proxy, client: &mut Client, endpoint: &Arc<EndpointState>) -> Attempt {
    let addrs = [client.target, endpoint.addr()];
    let reason = policy::plaintext(&proxy.spec, endpoint.reason(), &addrs)
        .map_err(|why| (true, Failure { reason: Some(why), ..Failure::new(CloseCause::Refused) }))?;
    let connected = proxy.connect(endpoint.addr(), Route::Any, Direction::Outbound).await;
    let tcp = connected.map_err(|error| (true, failed_connect(&error, reason)))?;
    client.record.settle(Settled { how: Err(reason), peer: None, local: None, endpoint: Some(endpoint.clone()) });
    Ok(Server::Plain(ByteLeg::new(tcp)))
}

/// To an endpoint by mTLS.
async fn meshed(proxy: &Proxy, client: &mut Client, endpoint: &Arc<EndpointState>, peer: &Arc<Peer>) -> Attempt {
    let Some(credentials) = proxy.credentials().await else { return Err((false, Failure::new(CloseCause::NotReady))) };
    match open(proxy, client, endpoint.addr().port(), peer, &credentials).await {
        Ok((server, agreed)) => {
            let (peer, local) = (Some(peer.key.identity.shared()), Some(credentials.name().shared()));
            client.record.settle(Settled { how: Ok(agreed), peer, local, endpoint: Some(endpoint.clone()) });
            Ok(server)
        }
        Err(error) => {
            debug!(endpoint = %endpoint.addr(), peer = %peer.key.identity, %error, "no stream");
            let by = match &error {
                OpenError::ClientGone(_) => ClosedBy::Client,
                OpenError::Failed(_) | OpenError::Lost { .. } => ClosedBy::Server,
                _ => ClosedBy::Proxy,
            };
            Err((error.may_go_elsewhere(), Failure { by, ..Failure::new(error.cause()) }))
        }
    }
}

/// Opens a stream on an idle connection, or on a new one. An idle one that turns out to be dead is replaced unseen.
async fn open(
    proxy: &Proxy,
    client: &mut Client,
    port: u16,
    peer: &Arc<Peer>,
    credentials: &Credentials,
) -> Result<(Server, Agreed), OpenError> {
    let limits = &proxy.spec.limits;
    let mut place = None;
    loop {
        if let Some(served) = idle(proxy, client, port, peer).await? {
            return Ok(served);
        }
        if place.is_some() {
            break;
        }
        // Whoever had to wait may find a connection that has come back.
        place = Some(peer.handshake(limits.handshake).await.ok_or(OpenError::HandshakeTimeout(limits.handshake))?);
    }
    let connected = upstream::connect(peer, credentials, &proxy.generations, limits, &proxy.metrics, proxy.layer).await;
    drop(place);
    let Client { tcp, prelude, record, .. } = client;
    match connected? {
        Connected::Hauberk(mut conn) => {
            conn.open(port, tcp, prelude, record, limits.open).await?;
            let agreed = conn.agreed();
            Ok((Server::Mesh(Box::new(conn), peer.clone()), agreed))
        }
        Connected::Linkerd(mut tls, agreed) => {
            upstream::open_linkerd(&mut tls, port, limits.open).await?;
            Ok((Server::Linkerd(Box::new(ByteLeg::new(tls))), agreed))
        }
    }
}

/// Opens a stream on an idle connection, if there is one that lives.
async fn idle(
    proxy: &Proxy,
    client: &mut Client,
    port: u16,
    peer: &Arc<Peer>,
) -> Result<Option<(Server, Agreed)>, OpenError> {
    let limits = &proxy.spec.limits;
    let Client { tcp, prelude, record, .. } = client;
    while let Some(mut conn) = proxy.pool.take(&peer.key, Instant::now()) {
        match conn.open(port, tcp, prelude, record, limits.open).await {
            Ok(()) => {
                let agreed = conn.agreed();
                return Ok(Some((Server::Mesh(Box::new(conn), peer.clone()), agreed)));
            }
            // It has died meanwhile. Whoever breaks the protocol lives, and may have delivered what was sent.
            Err(OpenError::Lost { error, .. }) if !matches!(error, LegError::Protocol(_)) => continue,
            Err(error) => {
                if matches!(error, OpenError::Silent { .. }) {
                    // Its node may be gone. The other idle ones are worth no more, and would cost as long a wait each.
                    proxy.pool.forget(|key| *key == peer.key);
                }
                return Err(error);
            }
        }
    }
    Ok(None)
}

/// No `async fn`: that would hold its arguments twice.
fn relay_to(
    proxy: &Proxy,
    client: Client,
    mut server: Server,
    load: Option<Load>,
) -> impl Future<Output = ()> + Send + '_ {
    let Client { tcp, prelude, mut record, .. } = client;
    let mut app = ByteLeg::new(tcp);
    async move {
        let _load = &load;
        let ended = match &mut server {
            Server::Plain(leg) => relay(&mut app, leg, &mut record, prelude).await,
            Server::Linkerd(leg) => relay(&mut app, &mut **leg, &mut record, prelude).await,
            Server::Mesh(conn, _) => relay(&mut app, conn.leg(), &mut record, prelude).await,
        };
        if let Server::Mesh(mut conn, peer) = server
            && ended.cause == CloseCause::Clean
            && conn.next_stream()
            && peer.is_named()
        {
            proxy.pool.put(peer.key.clone(), *conn, Instant::now());
        }
        record.relayed(&ended);
    }
}
