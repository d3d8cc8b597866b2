//! Moves bytes between two legs: one task for both directions, no buffer while nothing moves.
//!
//! Each thread owns one scratch buffer. A direction keeps bytes of its own only while its receiver takes less than
//! came, and reads no more until those are gone.

use std::{
    cell::RefCell,
    future::poll_fn,
    task::{Context, Poll, ready},
    time::Duration,
};

use hauberk_mesh::{CloseCause, ClosedBy};
use tokio::time::timeout;

use crate::{
    leg::{Leg, LegError, Received},
    silence::Watch,
};

/// Read at once: four full TLS records. What a direction holds for a slow receiver is never more than this.
const CHUNK: usize = 64 * 1024;
/// So few bytes are looked behind before they are passed on.
const FEW: usize = CHUNK / 4;
/// What was said by somebody who broke is passed on for so long.
const LAST_WORDS: Duration = Duration::from_secs(30);
/// Reads of one direction before others get their turn.
const TURNS: usize = 4;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// Sees every byte as it passes.
pub(crate) trait Observer {
    /// Bytes that the client sent.
    fn to_server(&mut self, bytes: &[u8]);
    /// Bytes that the server sent.
    fn to_client(&mut self, bytes: &[u8]);
}

/// How a relay ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) cause: CloseCause,
    pub(crate) by: ClosedBy,
    /// What the leg said, unless the end was clean.
    pub(crate) error: Option<LegError>,
}

/// What the client said before there was a server to say it to. The observer has seen it.
#[derive(Debug, Default)]
pub(crate) struct Prelude {
    /// To be sent first.
    pub(crate) bytes: Vec<u8>,
    /// The client's direction has ended; not passed on yet.
    pub(crate) ended: bool,
    /// All of this has been passed on already.
    pub(crate) passed_on: bool,
}

/// Relays until both directions have ended or one leg fails; then the other is reset.
pub(crate) async fn relay(
    client: &mut impl Leg,
    server: &mut impl Leg,
    observer: &mut impl Observer,
    prelude: Prelude,
) -> Ended {
    let mut up = Pipe::new(prelude);
    let mut down = Pipe::new(Prelude::default());
    let mut watch = Watch::default();
    let mut first = None;
    let result = poll_fn(|cx| {
        let a = up.poll(cx, client, server, |bytes| observer.to_server(bytes)).map_err(|(side, error)| match side {
            Side::From => (ClosedBy::Client, side, error),
            Side::To => (ClosedBy::Server, side, error),
        })?;
        let b =
            down.poll(cx, server, client, |bytes| observer.to_client(bytes)).map_err(|(side, error)| match side {
                Side::From => (ClosedBy::Server, side, error),
                Side::To => (ClosedBy::Client, side, error),
            })?;
        if std::mem::take(&mut up.sent) | std::mem::take(&mut down.sent) | up.waits() | down.waits() {
            watch.sent();
        }
        // Who is not read, because nobody takes what it said, cannot be heard to break.
        if let Some((which, error)) = watch.poll(cx, [client.tcp(), server.tcp()], [up.waits(), down.waits()]) {
            let by = if which == 0 { ClosedBy::Client } else { ClosedBy::Server };
            return Poll::Ready(Err((by, Side::From, error.into())));
        }
        // Who ends first closes the connection; the other side only agrees.
        first = first.or(match (up.phase != Phase::Flowing, down.phase != Phase::Flowing) {
            (true, _) => Some(ClosedBy::Client),
            (false, true) => Some(ClosedBy::Server),
            (false, false) => None,
        });
        if a.is_ready() && b.is_ready() {
            return Poll::Ready(Ok(()));
        }
        if down.outlives(&up)
            && let Poll::Ready(error) = client.poll_broken(cx)
        {
            return Poll::Ready(Err((ClosedBy::Client, Side::From, error)));
        }
        if up.outlives(&down)
            && let Poll::Ready(error) = server.poll_broken(cx)
        {
            return Poll::Ready(Err((ClosedBy::Server, Side::From, error)));
        }
        Poll::Pending
    })
    .await;
    match result {
        Ok(()) => {
            watch.end([client.tcp(), server.tcp()]);
            client.ended();
            server.ended();
            Ended { cause: CloseCause::Clean, by: first.unwrap_or(ClosedBy::Client), error: None }
        }
        Err((by, side, error)) => {
            // Who takes no more may have spoken before, as servers do that refuse an upload: over TCP such words arrive.
            if let (Side::To, LegError::Reset) = (side, &error) {
                let rest = async {
                    match by {
                        ClosedBy::Client => {
                            poll_fn(|cx| up.poll_rest(cx, client, server, |bytes| observer.to_server(bytes))).await;
                        }
                        _ => poll_fn(|cx| down.poll_rest(cx, server, client, |bytes| observer.to_client(bytes))).await,
                    }
                };
                // Somebody who does not listen for so long hears of the reset instead.
                let _ = Box::pin(timeout(LAST_WORDS, rest)).await;
            }
            // The leg that failed gets no answer: there is nobody, or somebody who broke the protocol.
            match by {
                ClosedBy::Client => server.reset(),
                _ => client.reset(),
            }
            Ended { cause: error.cause(), by, error: Some(error) }
        }
    }
}

enum Side {
    From,
    To,
}

#[derive(PartialEq, Eq)]
enum Phase {
    Flowing,
    Ending,
    Ended,
}

struct Pipe {
    /// What the receiver has not taken yet, from `taken` on.
    pending: Vec<u8>,
    taken: usize,
    unflushed: bool,
    /// Something was sent since the relay has noticed last.
    sent: bool,
    phase: Phase,
    /// What broke the sender, behind bytes that go out before it is told.
    broken: Option<LegError>,
}

impl Pipe {
    fn new(prelude: Prelude) -> Self {
        let phase = match (prelude.ended, prelude.passed_on) {
            (false, _) => Phase::Flowing,
            (true, false) => Phase::Ending,
            (true, true) => Phase::Ended,
        };
        let pending = if prelude.passed_on { Vec::new() } else { prelude.bytes };
        // What was said before has been sent just now, by whoever opened the way.
        Self { unflushed: !pending.is_empty(), pending, taken: 0, sent: true, phase, broken: None }
    }

    /// Whether the receiver has yet to take something, of the leg's own too.
    fn waits(&self) -> bool {
        self.unflushed || !self.pending.is_empty()
    }

    /// Whether the sender of `other` has said all, and still gets what flows here: it can only break. Once our own end is
    /// all that is left it may be on its way already, and a peer's next stream may follow.
    fn outlives(&self, other: &Self) -> bool {
        let flows = self.phase == Phase::Flowing || (self.phase == Phase::Ending && !self.pending.is_empty());
        other.phase != Phase::Flowing && !other.waits() && flows
    }

    /// Ready once the direction has ended and its end was passed on.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Leg,
        to: &mut impl Leg,
        mut seen: impl FnMut(&[u8]),
    ) -> Poll<Result<(), (Side, LegError)>> {
        for _ in 0..TURNS {
            ready!(self.poll_drain(cx, to)).map_err(|error| (Side::To, error))?;
            match self.phase {
                Phase::Ended => return Poll::Ready(Ok(())),
                Phase::Ending => {
                    self.sent = true;
                    ready!(to.poll_end(cx)).map_err(|error| (Side::To, error))?;
                    self.phase = Phase::Ended;
                }
                Phase::Flowing => ready!(SCRATCH.with_borrow_mut(|scratch| {
                    let received = match self.broken.take() {
                        Some(error) => Err(error),
                        None => ready!(self.poll_gather(cx, from, scratch)),
                    };
                    match received.map_err(|error| (Side::From, error))? {
                        0 => self.phase = Phase::Ending,
                        count => {
                            seen(&scratch[..count]);
                            self.send(cx, to, &scratch[..count]).map_err(|error| (Side::To, error))?;
                        }
                    }
                    Poll::Ready(Ok(()))
                }))?,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Receives what has come, to the front of `scratch`; how much, 0 for the end. An end, or a break, that has come right
    /// behind a few bytes is noted: servers often say their last words and close, and the end can go with them.
    fn poll_gather(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Leg,
        scratch: &mut [u8],
    ) -> Poll<Result<usize, LegError>> {
        let mut count = match ready!(from.poll_recv(cx, scratch))? {
            Received::End => return Poll::Ready(Ok(0)),
            Received::Data(count) => count,
        };
        // Asks the kernel nothing unless something has come: a short read has told that there was no more.
        if count <= FEW {
            match from.poll_recv(cx, &mut scratch[count..]) {
                Poll::Pending => {}
                Poll::Ready(Ok(Received::Data(more))) => count += more,
                Poll::Ready(Ok(Received::End)) => self.phase = Phase::Ending,
                Poll::Ready(Err(error)) => self.broken = Some(error),
            }
        }
        Poll::Ready(Ok(count))
    }

    /// Passes on what a leg said before it broke, and no end: it has broken. Ready when there is no more, or nobody to hear it.
    fn poll_rest(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Leg,
        to: &mut impl Leg,
        mut seen: impl FnMut(&[u8]),
    ) -> Poll<()> {
        if self.phase == Phase::Ending {
            self.phase = Phase::Flowing;
        }
        for _ in 0..TURNS {
            if ready!(self.poll_drain(cx, to)).is_err() || self.phase != Phase::Flowing || self.broken.is_some() {
                return Poll::Ready(());
            }
            let passed_on = ready!(SCRATCH.with_borrow_mut(|scratch| {
                // Its end is none: it broke.
                let Ok(Received::Data(count)) = ready!(from.poll_recv(cx, scratch)) else { return Poll::Ready(false) };
                seen(&scratch[..count]);
                Poll::Ready(self.send(cx, to, &scratch[..count]).is_ok())
            }));
            if !passed_on {
                return Poll::Ready(());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Sends `bytes`, keeping what the receiver does not take now.
    fn send(&mut self, cx: &mut Context<'_>, to: &mut impl Leg, mut bytes: &[u8]) -> Result<(), LegError> {
        self.unflushed = true;
        self.sent = true;
        while !bytes.is_empty() {
            match to.poll_send(cx, bytes, self.phase == Phase::Ending) {
                Poll::Ready(taken) => bytes = &bytes[taken?..],
                Poll::Pending => {
                    self.pending = bytes.to_vec();
                    self.taken = 0;
                    break;
                }
            }
        }
        Ok(())
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>, to: &mut impl Leg) -> Poll<Result<(), LegError>> {
        while self.taken < self.pending.len() {
            self.taken += ready!(to.poll_send(cx, &self.pending[self.taken..], self.phase == Phase::Ending))?;
        }
        self.pending = Vec::new();
        self.taken = 0;
        if self.unflushed {
            ready!(to.poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{
        leg::ByteLeg,
        mesh_leg::MeshLeg,
        wire::{self, Event, Open},
    };

    struct Nobody;

    impl Observer for Nobody {
        fn to_server(&mut self, _: &[u8]) {}
        fn to_client(&mut self, _: &[u8]) {}
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let addr = listener.local_addr().expect("it listens");
        let (accepted, connected) = tokio::join!(listener.accept(), TcpStream::connect(addr));
        (accepted.expect("accepted").0, connected.expect("connected"))
    }

    async fn connection() -> (ByteLeg<TcpStream>, TcpStream) {
        let (ours, theirs) = pair().await;
        (ByteLeg::new(ours), theirs)
    }

    #[tokio::test]
    async fn the_next_stream_may_begin_right_behind_the_end_of_the_last() {
        let ((mesh, mut peer), (mut server, mut app)) = (pair().await, connection().await);
        let mut client = MeshLeg::server(mesh);
        let open = Open::bytes(80).expect("a port");
        peer.write_all(&open.encode()).await.expect("open");
        assert_eq!(poll_fn(|cx| client.poll_control(cx)).await.expect("whole"), Event::Open(open));
        client.send_control(&wire::OPENED).await.expect("open");
        let talk = async {
            app.shutdown().await.expect("open");
            let mut answer = vec![0; wire::OPENED.len() + wire::END.len()];
            peer.read_exact(&mut answer).await.expect("the application has ended");
            let next = Open::bytes(81).expect("a port").encode();
            let words = [&wire::data_header(3)[..], b"bye", &wire::END, &next[..]].concat();
            peer.write_all(&words).await.expect("open");
            let mut said = Vec::new();
            app.read_to_end(&mut said).await.expect("open");
            said
        };
        let mut nobody = Nobody;
        let (ended, said) = tokio::join!(relay(&mut client, &mut server, &mut nobody, Prelude::default()), talk);
        assert_eq!((ended.cause, ended.by, &said[..]), (CloseCause::Clean, ClosedBy::Server, &b"bye"[..]));
        assert!(client.next_stream());
        let next = poll_fn(|cx| client.poll_control(cx)).await.expect("it was kept");
        assert_eq!(next, Event::Open(Open::bytes(81).expect("a port")));
    }

    /// Every open connection holds one.
    #[tokio::test]
    async fn a_relay_is_small() {
        let ((mut client, _), (mut server, _)) = (connection().await, connection().await);
        let mut nobody = Nobody;
        let relay = relay(&mut client, &mut server, &mut nobody, Prelude::default());
        assert!(size_of_val(&relay) <= 512, "{} bytes", size_of_val(&relay));
    }
}
