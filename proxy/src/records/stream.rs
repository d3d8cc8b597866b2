//! `RecordStream`: the I/O around a session. While nothing moves a connection holds keys and nothing more; buffers for
//! moving belong to the thread.

use std::{
    cell::RefCell,
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::AlertDescription;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};

use super::{
    RecordError,
    handshake::{self, Handshake, Need, Negotiated, Side},
    inbox::{Inbox, Waiting},
    keys::{Gather, LARGEST_RECORD},
    session::{FULL_WRITE, LARGEST_WRITE, Session},
};
use crate::leg::Carrier;

/// What a handshake reads at once, and what waits to be sent at most to go in front of new records: most flights are
/// smaller.
const FLIGHT: usize = 4096;
/// Bytes that are read at once, or sent at once.
pub(super) const SCRATCH_SIZE: usize = FLIGHT + LARGEST_WRITE;

const _: () = assert!(LARGEST_RECORD <= FULL_WRITE && FULL_WRITE < SCRATCH_SIZE);

thread_local! {
    /// Holds only what goes over the wire: records are sealed into it and opened out of it.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH_SIZE]);
}

/// Shakes hands, then takes the connection over from rustls. The last flight, for which nobody on this side waits, goes with
/// what is written first: a system call, a packet and a wake-up less.
pub(super) async fn shake<S: Side>(
    mut handshake: Handshake<S>,
    mut tcp: TcpStream,
) -> io::Result<(RecordStream, Negotiated)> {
    loop {
        match handshake.advance() {
            Ok(Need::Send) => {
                tcp.write_all(&handshake.outgoing).await?;
                handshake.outgoing.clear();
            }
            Ok(Need::Receive) => {
                handshake.received.reserve(FLIGHT);
                if tcp.read_buf(&mut handshake.received).await? == 0 {
                    return Err(handshake::eof());
                }
            }
            Ok(Need::Nothing) => break,
            Err(error) => {
                // The peer may be gone; it need not hear why.
                let _ = tcp.try_write(&handshake.outgoing);
                return Err(error.into());
            }
        }
    }
    let unsent = Waiting::new(handshake.outgoing[..].to_vec());
    let (session, negotiated, received) = handshake.finish()?;
    let stream = RecordStream { tcp, session, inbox: Inbox::new(received), unsent, closing: false, broken: None };
    Ok((stream, negotiated))
}

/// A TLS 1.3 connection whose handshake is over. As with other TLS streams, what was written has reached the kernel only
/// after a flush; the end of the handshake too, unless the client listens first. TCP's end without close_notify is an error.
/// After any error a stream is only dropped.
pub struct RecordStream {
    tcp: TcpStream,
    session: Session,
    inbox: Inbox,
    /// Records that the kernel has not taken, or was not given yet, as the end of the handshake: no more is sealed before all
    /// but a little of it is gone.
    unsent: Waiting,
    /// close_notify is sealed.
    closing: bool,
    broken: Option<io::ErrorKind>,
}

impl RecordStream {
    /// Reads at most what the caller can take at once, so that at most a part of a record stays behind; one record for
    /// callers that take less. No more than a peer of ours writes at once: then no part of a record stays. `true` once the
    /// caller has its answer.
    fn poll_receive(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let kept = self.inbox.partial().len();
            let end = buf.remaining().clamp(LARGEST_RECORD, FULL_WRITE);
            let mut read = ReadBuf::new(&mut scratch[kept..end]);
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut read))?;
            let count = read.filled().len();
            if count == 0 {
                return Poll::Ready(Err(RecordError::Truncated.into()));
            }
            scratch[..kept].copy_from_slice(self.inbox.partial());
            let answer = self.inbox.receive(&mut self.session, &scratch[..kept + count], buf);
            Poll::Ready(Ok(answer?))
        })
    }

    /// Tells the peer, if it still listens, what it did wrong. Nothing is sent after that.
    fn send_fatal_alert(&mut self) {
        if let Some(alert) = self.inbox.failure().and_then(RecordError::alert)
            && self.broken.is_none()
        {
            let mut last = self.unsent.get().to_vec();
            if self.session.seal_alert(alert, &mut last).is_ok() {
                let _ = self.tcp.try_write(&last);
            }
        }
        self.broken.get_or_insert(io::ErrorKind::BrokenPipe);
        self.unsent = Waiting::default();
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            match ready!(Pin::new(&mut self.tcp).poll_write(cx, self.unsent.get())) {
                Ok(count) => self.unsent.advance(count),
                Err(error) => return Poll::Ready(Err(self.broke(error))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Hands sealed records to the kernel, and keeps what it does not take.
    fn send(&mut self, cx: &mut Context<'_>, records: &[u8]) -> io::Result<()> {
        let count = match Pin::new(&mut self.tcp).poll_write(cx, records) {
            Poll::Ready(Ok(count)) => count,
            Poll::Pending => 0,
            Poll::Ready(Err(error)) => return Err(self.broke(error)),
        };
        self.unsent = Waiting::new(records[count..].to_vec());
        Ok(())
    }

    /// A record is lost: any after it would be refused.
    fn broke(&mut self, error: io::Error) -> io::Error {
        self.broken = Some(error.kind());
        self.unsent = Waiting::default();
        error
    }

    /// Bytes on the heap for what is under way.
    #[cfg(test)]
    pub(super) fn heap(&self) -> usize {
        self.inbox.heap() + self.unsent.heap() + self.session.heap()
    }

    fn check_writable(&self) -> io::Result<()> {
        match self.broken {
            Some(kind) => Err(RecordError::Broken(kind).into()),
            None if self.closing => Err(io::ErrorKind::BrokenPipe.into()),
            None => Ok(()),
        }
    }
}

impl AsyncRead for RecordStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let had_failed = stream.inbox.failure().is_some();
        let mut answer = stream.inbox.deliver(&mut stream.session, buf).map_err(io::Error::from);
        while let Ok(false) = answer {
            if stream.session.is_client_without_data() {
                // The server may say nothing before it has the end of the handshake. That it cannot be sent, a write is told.
                let _ = stream.poll_drain(cx);
            }
            answer = ready!(stream.poll_receive(cx, buf));
        }
        if !had_failed && stream.inbox.failure().is_some() {
            stream.send_fatal_alert();
        }
        Poll::Ready(answer.map(drop))
    }
}

impl AsyncWrite for RecordStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        stream.check_writable()?;
        let mut content = Gather::new(bufs);
        let offered = content.left();
        if offered == 0 {
            return Poll::Ready(Ok(0));
        }
        if stream.unsent.get().len() > FLIGHT {
            ready!(stream.poll_drain(cx))?;
        }
        // What is sealed must be kept until it is sent: nothing is sealed that the kernel has no room for.
        ready!(stream.tcp.poll_write_ready(cx))?;
        SCRATCH.with_borrow_mut(|scratch| {
            let (waiting, room) = scratch.split_at_mut(stream.unsent.get().len());
            waiting.copy_from_slice(stream.unsent.get());
            let count = waiting.len();
            match stream.session.seal(&mut content, room) {
                Ok(sealed) => stream.send(cx, &scratch[..count + sealed]),
                Err(error) => Err(stream.broke(error.into())),
            }
        })?;
        Poll::Ready(Ok(offered - content.left()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_drain(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        if !stream.closing && stream.broken.is_none() {
            let mut last = stream.unsent.get().to_vec();
            stream.session.seal_alert(AlertDescription::CloseNotify, &mut last)?;
            stream.unsent = Waiting::new(last);
            stream.closing = true;
        }
        ready!(stream.poll_drain(cx))?;
        match ready!(Pin::new(&mut stream.tcp).poll_shutdown(cx)) {
            // The peer has reset or closed both ways meanwhile: reading will tell.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            other => Poll::Ready(other),
        }
    }
}

impl Carrier for RecordStream {
    fn tcp(&self) -> &TcpStream {
        &self.tcp
    }
}

impl fmt::Debug for RecordStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordStream").field("tcp", &self.tcp).field("keys", &"redacted").finish_non_exhaustive()
    }
}
