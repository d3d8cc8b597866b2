//! Mesh connections to other proxies: made, taken from the pool, opened for one stream, kept for the next.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant, SystemTime},
};

use hauberk_identity::{Credentials, PeerFault, server_name};
use hauberk_mesh::{CloseCause, Direction, FailReason, HandshakeKind, Limits};
use rustls::AlertDescription;
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::timeout,
};

use crate::{
    endpoint::{Generations, Peer},
    leg::{Leg as _, LegError},
    linkerd,
    mesh_leg::MeshLeg,
    metrics::{Fault, Metrics},
    pool::Pooled,
    records::{Agreed, Protocol},
    relay::{Observer, Prelude},
    secure::{MeshStream, RecordLayer},
    socket::{self, ConnectError, Route},
    wire::{self, Event, Open},
};

/// What a client may have said before its stream is open, and what is kept to say it again elsewhere.
const EARLY_MAX: usize = wire::MAX_DATA_SENT;

/// Why there is no stream to an endpoint.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("handshake: {0}")]
    Handshake(io::Error),
    #[error("no handshake within {0:?}")]
    HandshakeTimeout(Duration),
    #[error("{0}")]
    Identity(#[from] PeerFault),
    #[error("the peer's proxy says: {0}")]
    Failed(FailReason),
    #[error("the mesh connection broke before the peer's proxy answered: {error}")]
    Lost { error: LegError, sent: bool },
    #[error("the peer's proxy did not answer within {limit:?}")]
    Silent { limit: Duration, sent: bool },
    #[error("the client left: {0}")]
    ClientGone(LegError),
}

impl OpenError {
    pub(crate) fn cause(&self) -> CloseCause {
        match self {
            Self::Connect(error) => error.cause(),
            Self::Handshake(error) => handshake_cause(error),
            Self::HandshakeTimeout(_) => CloseCause::HandshakeTimeout,
            Self::Identity(fault) => fault.cause(),
            Self::Failed(FailReason::Refused) => CloseCause::ConnectRefused,
            Self::Failed(FailReason::Unreachable) => CloseCause::ConnectUnreachable,
            Self::Failed(FailReason::TimedOut) => CloseCause::ConnectTimeout,
            Self::Failed(FailReason::Denied) => CloseCause::PeerDenied,
            Self::Failed(FailReason::Draining) => CloseCause::PeerDraining,
            // With TLS 1.3 the client has finished before the server has looked at its certificate.
            Self::Lost { error: LegError::Io(error), .. } if tls_error(error).is_some() => handshake_cause(error),
            Self::Lost { error, .. } | Self::ClientGone(error) => error.cause(),
            Self::Silent { .. } => CloseCause::OpenTimeout,
        }
    }

    /// Whether it is certain that no byte of the client was delivered: then another endpoint may be tried.
    pub(crate) fn may_go_elsewhere(&self) -> bool {
        match self {
            Self::ClientGone(_) => false,
            Self::Lost { error: LegError::Io(error), sent } => !sent || tls_error(error).is_some(),
            Self::Lost { sent, .. } | Self::Silent { sent, .. } => !sent,
            _ => true,
        }
    }
}

pub(crate) fn handshake_cause(error: &io::Error) -> CloseCause {
    match tls_error(error) {
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateExpired)) => CloseCause::CertificateExpired,
        Some(error) => hauberk_identity::close_cause(error),
        None => CloseCause::HandshakeFailed,
    }
}

/// An alert says that the peer refused us; anything else, that we refused the peer.
pub(crate) fn handshake_fault(error: &io::Error) -> Fault {
    match tls_error(error) {
        Some(rustls::Error::AlertReceived(_)) => Fault::Local,
        _ => Fault::Peer,
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// A mesh connection that we opened.
pub(crate) struct MeshConn {
    leg: MeshLeg<MeshStream>,
    session: Session,
    streams: u32,
    metrics: Arc<Metrics>,
}

/// What stays the same over all streams of a connection.
struct Session {
    agreed: Agreed,
    generations: Generations,
    current: Arc<CurrentGenerations>,
    /// No new stream after this: the age limit, or the end of either certificate.
    until: Instant,
}

/// The generations in force, for connections to compare with.
#[derive(Debug, Default)]
pub(crate) struct CurrentGenerations(std::sync::Mutex<Option<Generations>>);

impl CurrentGenerations {
    pub(crate) fn set(&self, generations: Generations) {
        *self.0.lock().expect("no code panics while it holds this") = Some(generations);
    }

    fn are(&self, generations: Generations) -> bool {
        *self.0.lock().expect("no code panics while it holds this") == Some(generations)
    }
}

impl Pooled for MeshConn {
    fn is_current(&self, now: Instant) -> bool {
        now < self.session.until && self.session.current.are(self.session.generations)
    }

    fn is_quiet(&mut self) -> bool {
        self.leg.is_quiet()
    }
}

impl Drop for MeshConn {
    fn drop(&mut self) {
        self.metrics.mesh_connection_ended(Direction::Outbound, self.streams);
    }
}

/// A connection to a proxy, by the protocol that it chose.
pub(crate) enum Connected {
    Hauberk(MeshConn),
    Linkerd(MeshStream, Agreed),
}

/// Connects and shakes hands with `peer`; its certificate is checked, whether the session was resumed or not.
pub(crate) async fn connect(
    peer: &Peer,
    credentials: &Credentials,
    current: &Arc<CurrentGenerations>,
    limits: &Limits,
    metrics: &Arc<Metrics>,
    layer: RecordLayer,
) -> Result<Connected, OpenError> {
    let begin = Instant::now();
    let tcp = socket::connect(peer.key.addr, Route::Any, limits.connect).await?;
    metrics.connected(Direction::Outbound, begin.elapsed());
    let failed = |fault| metrics.handshake_failed(Direction::Outbound, fault);
    let begin = Instant::now();
    let name = server_name(&peer.key.identity);
    let handshake = MeshStream::connect(layer, peer.config(credentials, limits.tickets), name, tcp);
    let (tls, negotiated) = match timeout(limits.handshake, handshake).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => {
            failed(handshake_fault(&error));
            return Err(OpenError::Handshake(error));
        }
        Err(_) => {
            failed(Fault::Peer);
            return Err(OpenError::HandshakeTimeout(limits.handshake));
        }
    };
    let now = SystemTime::now();
    let proven = credentials
        .check_peer(negotiated.peer.as_deref(), Some(&peer.key.identity), now)
        .inspect_err(|_| failed(Fault::Peer))?;
    metrics.handshake(Direction::Outbound, negotiated.agreed.handshake, begin.elapsed());
    let agreed = negotiated.agreed;
    match agreed.protocol {
        Some(Protocol::Linkerd) => Ok(Connected::Linkerd(tls, agreed)),
        Some(Protocol::Hauberk) => {
            let until = serves_until(limits, &[credentials.not_after(), proven.not_after], now);
            let generations = Generations::of(credentials);
            let session = Session { agreed, generations, current: current.clone(), until };
            Ok(Connected::Hauberk(MeshConn {
                leg: MeshLeg::client(tls),
                session,
                streams: 0,
                metrics: metrics.clone(),
            }))
        }
        None => Err(OpenError::Handshake(io::Error::other("the peer chose none of our protocols"))),
    }
}

/// Until when a connection that begins now may get new streams.
pub(crate) fn serves_until(limits: &Limits, expiries: &[SystemTime], now: SystemTime) -> Instant {
    let lives = expiries.iter().map(|expiry| expiry.duration_since(now).unwrap_or_default());
    Instant::now() + lives.fold(limits.pool_age, Duration::min)
}

/// Sends Linkerd's header: from then on the connection is the stream.
pub(crate) async fn open_linkerd(tls: &mut MeshStream, port: u16, limit: Duration) -> Result<(), OpenError> {
    let header = linkerd::Header::opaque(port).ok_or(OpenError::Failed(FailReason::Denied))?.encode();
    let lost = |error: io::Error| OpenError::Lost { error: error.into(), sent: false };
    let send = async {
        tls.write_all(&header).await?;
        tls.flush().await
    };
    match timeout(limit, send).await {
        Ok(done) => done.map_err(lost),
        Err(_) => Err(OpenError::Silent { limit, sent: false }),
    }
}

impl MeshConn {
    /// Asks for a stream to `port`, sending with it what the client has said and says meanwhile (up to a bound), and
    /// awaits the answer.
    pub(crate) async fn open(
        &mut self,
        port: u16,
        client: &mut TcpStream,
        prelude: &mut Prelude,
        observer: &mut impl Observer,
        limit: Duration,
    ) -> Result<(), OpenError> {
        let open = Open::bytes(port).ok_or(OpenError::Failed(FailReason::Denied))?;
        let mut opening = Opening { frames: open.encode().to_vec(), sent: 0, opened: false };
        opening.append(&prelude.bytes, prelude.ended);
        self.streams += 1;
        let leg = &mut self.leg;
        let ask = poll_fn(|cx| opening.poll(cx, leg, client, prelude, observer));
        let answer = match timeout(limit, ask).await {
            Ok(answer) => answer,
            Err(_) => Err(OpenError::Silent { limit, sent: !prelude.bytes.is_empty() }),
        };
        answer?;
        prelude.passed_on = true;
        if prelude.ended {
            self.leg.mark_ended();
        }
        Ok(())
    }

    pub(crate) fn leg(&mut self) -> &mut MeshLeg<MeshStream> {
        &mut self.leg
    }

    /// The session; a connection that has served a stream before is `reused`.
    pub(crate) fn agreed(&self) -> Agreed {
        let handshake = if self.streams > 1 { HandshakeKind::Reused } else { self.session.agreed.handshake };
        Agreed { handshake, ..self.session.agreed }
    }

    /// Whether the connection may serve another stream.
    pub(crate) fn next_stream(&mut self) -> bool {
        self.leg.next_stream()
    }
}

/// OPEN and what the client says before the answer.
struct Opening {
    frames: Vec<u8>,
    sent: usize,
    opened: bool,
}

impl Opening {
    fn append(&mut self, bytes: &[u8], ended: bool) {
        for part in bytes.chunks(wire::MAX_DATA_SENT) {
            self.frames.extend_from_slice(&wire::data_header(part.len()));
            self.frames.extend_from_slice(part);
        }
        if ended {
            self.frames.extend_from_slice(&wire::END);
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        leg: &mut MeshLeg<MeshStream>,
        client: &mut TcpStream,
        prelude: &mut Prelude,
        observer: &mut impl Observer,
    ) -> Poll<Result<(), OpenError>> {
        if let Err(error) = self.listen(cx, client, prelude, observer) {
            // The end of the handshake, so that the server does not take it for one that failed.
            let _ = leg.poll_flush(cx);
            return Poll::Ready(Err(OpenError::ClientGone(error)));
        }
        let sent = !prelude.bytes.is_empty();
        let lost = |error| OpenError::Lost { error, sent };
        let flushed = leg.poll_raw(cx, &self.frames, &mut self.sent).map_err(lost)?;
        if !self.opened {
            match ready!(leg.poll_control(cx)).map_err(lost)? {
                Event::Failed(reason) => return Poll::Ready(Err(OpenError::Failed(reason))),
                _ => self.opened = true,
            }
        }
        flushed.map(Ok)
    }

    /// Takes what the client has said, up to the bound, to send it and to keep it.
    fn listen(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut TcpStream,
        prelude: &mut Prelude,
        observer: &mut impl Observer,
    ) -> Result<(), LegError> {
        while !self.opened && !prelude.ended && prelude.bytes.len() < EARLY_MAX {
            let mut space = [0; 4096];
            let most = (EARLY_MAX - prelude.bytes.len()).min(space.len());
            let mut read = ReadBuf::new(&mut space[..most]);
            let Poll::Ready(done) = Pin::new(&mut *client).poll_read(cx, &mut read) else { break };
            done?;
            prelude.ended = read.filled().is_empty();
            observer.to_server(read.filled());
            prelude.bytes.extend_from_slice(read.filled());
            self.append(read.filled(), prelude.ended);
        }
        Ok(())
    }
}
