//! The mesh port: all traffic from other proxies. ALPN and a client certificate are required, the first frame or
//! header names the target port. Here nothing is redirected and nothing is guessed.

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use hauberk_identity::{Credentials, Peer};
use hauberk_mesh::{CloseCause, ClosedBy, Direction, FailReason, HandshakeKind};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};
use tracing::debug;

use crate::{
    connections::{Settled, Tracked},
    leg::{ByteLeg, Carrier, Leg as _, LegError},
    linkerd::HeaderReader,
    listen::Rest,
    mesh_leg::MeshLeg,
    metrics::Fault,
    places::Place,
    policy,
    proxy::Proxy,
    records::{Agreed, Negotiated, Protocol},
    relay::{Observer, Prelude, relay},
    secure::MeshStream,
    silence, socket, upstream,
    wire::{self, Event, Open},
};

/// A mesh connection that was accepted: whose it is, and what its session is.
struct Session {
    client: SocketAddr,
    local: SocketAddr,
    peer: Arc<str>,
    own: Arc<str>,
    agreed: Agreed,
    until: Instant,
}

/// Why a connection ended before its first stream.
struct Rejected(CloseCause, ClosedBy);

/// Its place was given to somebody who had none.
const EVICTED: Rejected = Rejected(CloseCause::LimitReached, ClosedBy::Proxy);

/// Serves one connection to the mesh port. `handshaking` is what strangers can hold: it is given back once the peer
/// has opened a stream. Each phase has a box of its own: a connection holds no more than the phase that it is in.
#[expect(clippy::manual_async_fn, reason = "an async fn would hold its arguments twice")]
pub(crate) fn serve(
    proxy: Arc<Proxy>,
    tcp: TcpStream,
    client: SocketAddr,
    handshaking: Place,
) -> impl Future<Output = ()> + Send {
    async move {
        if let Some(rest) = Box::pin(accept(&proxy, tcp, client, handshaking)).await {
            rest.await;
        }
    }
}

async fn accept(proxy: &Proxy, tcp: TcpStream, client: SocketAddr, handshaking: Place) -> Option<Rest<'_>> {
    let local = tcp.local_addr().unwrap_or(client);
    let shaken = handshaking.unless_evicted(handshake(proxy, tcp, client, local)).await;
    match shaken.unwrap_or(Err(EVICTED)) {
        Ok((tls, session)) => Some(match session.agreed.protocol {
            Some(Protocol::Linkerd) => Box::pin(linkerd(proxy, tls, session, handshaking)),
            _ => Box::pin(streams(proxy, MeshLeg::server(tls), session, Some(handshaking))),
        }),
        Err(Rejected(cause, by)) => {
            proxy.track(Direction::Inbound, client, local).close(cause, by);
            None
        }
    }
}

async fn handshake(
    proxy: &Proxy,
    tcp: TcpStream,
    client: SocketAddr,
    local: SocketAddr,
) -> Result<(MeshStream, Session), Rejected> {
    let limits = &proxy.spec.limits;
    let failed = |cause, fault| {
        proxy.metrics.handshake_failed(Direction::Inbound, fault);
        Rejected(cause, if fault == Fault::Peer { ClosedBy::Proxy } else { ClosedBy::Client })
    };
    let Some(credentials) = proxy.credentials().await else {
        return Err(Rejected(CloseCause::NotReady, ClosedBy::Proxy));
    };
    let begin = Instant::now();
    let accepted = MeshStream::accept(proxy.layer, credentials.mesh_server(), tcp);
    let (tls, negotiated) = match timeout(limits.handshake, accepted).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => {
            debug!(%client, %error, "handshake");
            return Err(failed(upstream::handshake_cause(&error), upstream::handshake_fault(&error)));
        }
        Err(_) => return Err(failed(CloseCause::HandshakeTimeout, Fault::Peer)),
    };
    let peer = examine(&credentials, &negotiated).map_err(|cause| failed(cause, Fault::Peer))?;
    let agreed = negotiated.agreed;
    proxy.metrics.handshake(Direction::Inbound, agreed.handshake, begin.elapsed());
    let until = upstream::serves_until(limits, &[credentials.not_after(), peer.not_after], SystemTime::now());
    let (peer, own) = (peer.name.shared(), credentials.name().shared());
    Ok((tls, Session { client, local, peer, own, agreed, until }))
}

/// Who the peer is, if it speaks one of our protocols.
fn examine(credentials: &Credentials, negotiated: &Negotiated) -> Result<Peer, CloseCause> {
    if negotiated.agreed.protocol.is_none() {
        return Err(CloseCause::ProtocolError);
    }
    let peer = credentials.check_peer(negotiated.peer.as_deref(), None, SystemTime::now());
    peer.map_err(|fault| fault.cause())
}

/// Serves the streams of a connection, one after the other.
#[expect(clippy::manual_async_fn, reason = "an async fn would hold its arguments twice")]
fn streams<'a>(
    proxy: &'a Proxy,
    mut leg: MeshLeg<MeshStream>,
    mut session: Session,
    mut handshaking: Option<Place>,
) -> impl Future<Output = ()> + Send + 'a {
    async move {
        let mut established = None;
        let mut served = 0;
        loop {
            let next = match &handshaking {
                Some(place) => Box::pin(place.unless_evicted(next_open(proxy, &mut leg, true))).await,
                None => Some(next_open(proxy, &mut leg, false).await),
            };
            let open = match next {
                Some(Ok(Next::Open(open))) => open,
                None => {
                    let Rejected(cause, by) = EVICTED;
                    proxy.track(Direction::Inbound, session.client, session.local).close(cause, by);
                    break;
                }
                // After an orderly end whoever ended first would keep its port for a minute; to one server a client has
                // 28,000.
                Some(Ok(Next::Gone)) if silence::is_acknowledged(leg.tcp()) => {
                    socket::arm_reset(leg.tcp());
                    break;
                }
                Some(Ok(Next::Leave | Next::Gone)) => {
                    // Orderly, so that an OPEN that crosses with it is known to be lost.
                    let _ = timeout(proxy.spec.limits.linger, leg.close()).await;
                    break;
                }
                Some(Err(error)) => {
                    let cause = error.map_or(CloseCause::OpenTimeout, |error| error.cause());
                    proxy.track(Direction::Inbound, session.client, session.local).close(cause, ClosedBy::Client);
                    break;
                }
            };
            drop(handshaking.take());
            served += 1;
            established = established.or_else(|| proxy.mesh_connections.try_acquire().ok());
            if !stream(proxy, &mut leg, &session, open, established.is_some()).await
                || !leg.next_stream()
                || Instant::now() >= session.until
            {
                break;
            }
            session.agreed.handshake = HandshakeKind::Reused;
        }
        proxy.metrics.mesh_connection_ended(Direction::Inbound, served);
    }
}

/// What comes between two streams.
enum Next {
    Open(Open),
    /// It is time for us to end the connection.
    Leave,
    /// The peer has ended it, as it may.
    Gone,
}

/// The next OPEN. `Err(None)`: it did not come in time.
async fn next_open(proxy: &Proxy, leg: &mut MeshLeg<MeshStream>, first: bool) -> Result<Next, Option<LegError>> {
    let limits = &proxy.spec.limits;
    if !first {
        let begins = timeout(idle_limit(limits.pool_idle), poll_fn(|cx| poll_begin(cx, leg)));
        let begun = tokio::select! {
            biased;
            begun = begins => begun,
            () = proxy.leaving.cancelled() => return Ok(Next::Leave),
        };
        match begun {
            Ok(Some(Ok(open))) => return Ok(Next::Open(open)),
            Ok(None) => {}
            Ok(Some(Err(_))) if leg.before_stream() => return Ok(Next::Gone),
            Err(_) if leg.before_stream() => return Ok(Next::Leave),
            Ok(Some(Err(error))) => return Err(Some(error)),
            Err(_) => return Err(None),
        }
    }
    match timeout(limits.open, poll_fn(|cx| poll_open(cx, leg))).await {
        Ok(open) => open.map(Next::Open).map_err(Some),
        Err(_) => Err(None),
    }
}

/// OPEN, or `None` once its first bytes have come.
fn poll_begin(cx: &mut Context<'_>, leg: &mut MeshLeg<MeshStream>) -> Poll<Option<Result<Open, LegError>>> {
    match poll_open(cx, leg) {
        Poll::Pending if !leg.before_stream() => Poll::Ready(None),
        open => open.map(Some),
    }
}

fn poll_open(cx: &mut Context<'_>, leg: &mut MeshLeg<MeshStream>) -> Poll<Result<Open, LegError>> {
    leg.poll_control(cx).map_ok(|event| match event {
        Event::Open(open) => open,
        _ => unreachable!("a server reads only OPEN as a control frame"),
    })
}

/// Longer than the opening side's, so that it is the opening side that closes.
fn idle_limit(pool_idle: Duration) -> Duration {
    pool_idle * 2
}

/// Serves one stream; whether it ended cleanly.
async fn stream(proxy: &Proxy, leg: &mut MeshLeg<MeshStream>, session: &Session, open: Open, has_place: bool) -> bool {
    let target = SocketAddr::new(session.local.ip(), open.port());
    let mut record = proxy.track(Direction::Inbound, session.client, target);
    let app = match Box::pin(admit(proxy, target, has_place)).await {
        Ok(app) => app,
        Err((reason, cause)) => {
            settle(&mut record, session);
            record.close(cause, ClosedBy::Proxy);
            let tell = async {
                leg.send_control(&wire::failed(reason)).await?;
                leg.close().await;
                Ok::<_, LegError>(())
            };
            // If the peer is gone there is nobody to tell.
            let _ = timeout(proxy.spec.limits.linger, tell).await;
            return false;
        }
    };
    settle(&mut record, session);
    let told = timeout(proxy.spec.limits.open, leg.send_control(&wire::OPENED)).await;
    if let Err(error) = told.unwrap_or(Err(LegError::TimedOut)) {
        socket::arm_reset(&app);
        record.close(error.cause(), ClosedBy::Client);
        return false;
    }
    let ended = relay(leg, &mut ByteLeg::new(app), &mut record, Prelude::default()).await;
    record.relayed(&ended);
    ended.cause == CloseCause::Clean
}

/// Connects to the application, if the port may be named and the proxy is not about to end.
async fn admit(proxy: &Proxy, target: SocketAddr, has_place: bool) -> Result<TcpStream, (FailReason, CloseCause)> {
    if proxy.draining.is_cancelled() {
        return Err((FailReason::Draining, CloseCause::PeerDraining));
    }
    if !policy::mesh_port(&proxy.spec, target.port()) {
        return Err((FailReason::Denied, CloseCause::PortNotAllowed));
    }
    if !has_place {
        proxy.metrics.limit_reached("mesh");
        return Err((FailReason::Draining, CloseCause::LimitReached));
    }
    proxy.connect_own(target, Direction::Inbound).await.map_err(|error| {
        debug!(%error, "application");
        (error.fail_reason(), error.cause())
    })
}

fn settle(record: &mut Tracked, session: &Session) {
    record.settle(Settled {
        how: Ok(session.agreed),
        peer: Some(session.peer.clone()),
        local: Some(session.own.clone()),
        endpoint: None,
    });
}

/// Serves a connection of Linkerd's: the header, then the connection is the stream.
async fn linkerd(proxy: &Proxy, mut tls: MeshStream, session: Session, handshaking: Place) {
    let reading = timeout(proxy.spec.limits.open, read_header(&mut tls));
    let header = match handshaking.unless_evicted(reading).await {
        Some(Ok(Ok(header))) => Ok(header),
        Some(Ok(Err(error))) => Err((error.cause(), ClosedBy::Client)),
        Some(Err(_)) => Err((CloseCause::OpenTimeout, ClosedBy::Client)),
        None => Err((EVICTED.0, EVICTED.1)),
    };
    drop(handshaking);
    let place = proxy.mesh_connections.try_acquire().ok();
    proxy.metrics.mesh_connection_ended(Direction::Inbound, 1);
    let (port, early) = match header {
        Ok(header) => header,
        Err((cause, by)) => {
            return proxy.track(Direction::Inbound, session.client, session.local).close(cause, by);
        }
    };
    let target = SocketAddr::new(session.local.ip(), port);
    let mut record = proxy.track(Direction::Inbound, session.client, target);
    settle(&mut record, &session);
    match admit(proxy, target, place.is_some()).await {
        Ok(app) => {
            record.to_server(&early);
            let prelude = Prelude { bytes: early, ..Prelude::default() };
            let ended = relay(&mut ByteLeg::new(tls), &mut ByteLeg::new(app), &mut record, prelude).await;
            record.relayed(&ended);
        }
        Err((_, cause)) => {
            socket::arm_reset(tls.tcp());
            record.close(cause, ClosedBy::Proxy);
        }
    }
}

/// The port that the header names, and the application's bytes that came with it.
async fn read_header(tls: &mut MeshStream) -> Result<(u16, Vec<u8>), LegError> {
    let mut reader = HeaderReader::default();
    let mut buf = Vec::with_capacity(4096);
    loop {
        buf.clear();
        let count = tls.read_buf(&mut buf).await?;
        if count == 0 {
            return Err(LegError::Truncated);
        }
        if let (used, Some(header)) = reader.advance(&buf[..count])? {
            // A name asks to be led on to somewhere else: port 0 is what no pod serves.
            let port = if header.name().is_some() { 0 } else { header.port() };
            return Ok((port, buf[used..count].to_vec()));
        }
    }
}
