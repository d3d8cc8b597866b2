//! The mesh's side of a relayed connection: one stream of `hauberk/1`.
//!
//! Generic over the encrypted byte stream, so that the record layer can be another.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::IoSlice,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};

use crate::{
    leg::{Carrier, FRAMES_PER_WRITE, Leg, LegError, Received},
    socket,
    wire::{self, Event, HEADER_LEN, ReadState},
};

thread_local! {
    /// What TLS gives, until the frames' headers are taken out: in place every byte would be moved by a few, over itself.
    static FRAMES: RefCell<Vec<u8>> = RefCell::new(vec![0; 64 * 1024]);
}

/// One stream of `hauberk/1` over `io`.
pub(crate) struct MeshLeg<T> {
    io: T,
    reading: ReadState,
    /// Read with the last stream's END, and part of the next one: only where a server reads.
    unread: Vec<u8>,
    /// What broke the stream, behind bytes that are handed out before it is told.
    broken: Option<LegError>,
    writing: Writing,
}

/// What the peer has yet to get before another frame may begin.
struct Writing {
    /// The header (or whole short frame) under way, and how much of it is out.
    head: [u8; HEADER_LEN],
    head_sent: usize,
    /// Payload that the header has promised.
    promised: usize,
    ending: bool,
}

impl Writing {
    const IDLE: Self = Self { head: [0; HEADER_LEN], head_sent: HEADER_LEN, promised: 0, ending: false };

    fn begin(&mut self, head: [u8; HEADER_LEN], promised: usize) {
        (self.head, self.head_sent, self.promised) = (head, 0, promised);
    }

    fn begin_end(&mut self) {
        self.begin(wire::END, 0);
        self.ending = true;
    }

    fn between_frames(&self) -> bool {
        self.head_sent == HEADER_LEN && self.promised == 0
    }

    /// Notes that `sent` bytes went out: of the frame under way, then of full frames made of `rest` bytes. How many of
    /// them were payload. Behind all those there was END.
    fn advance(&mut self, mut sent: usize, mut rest: usize) -> usize {
        let mut payload = 0;
        loop {
            let of_head = sent.min(HEADER_LEN - self.head_sent);
            self.head_sent += of_head;
            let of_payload = (sent - of_head).min(self.promised);
            self.promised -= of_payload;
            payload += of_payload;
            sent -= of_head + of_payload;
            if sent == 0 {
                return payload;
            }
            let next = rest.min(wire::MAX_DATA_SENT);
            match next {
                0 => self.begin_end(),
                _ => self.begin(wire::data_header(next), next),
            }
            rest -= next;
        }
    }
}

impl<T: Carrier> MeshLeg<T> {
    /// For the side that opens streams; it has yet to send OPEN.
    pub(crate) fn client(io: T) -> Self {
        Self { io, reading: ReadState::client(), unread: Vec::new(), broken: None, writing: Writing::IDLE }
    }

    /// For the side that accepts streams.
    pub(crate) fn server(io: T) -> Self {
        Self { io, reading: ReadState::server(), unread: Vec::new(), broken: None, writing: Writing::IDLE }
    }

    /// The next frame that is no DATA: OPEN for a server; OPENED, FAILED for a client.
    pub(crate) fn poll_control(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event<'static>, LegError>> {
        let mut buf = [0; 64];
        loop {
            let want = self.reading.wants().min(buf.len());
            let count = ready!(self.poll_bytes(cx, &mut buf[..want]))?;
            match self.reading.advance(&buf[..count])?.1 {
                Event::More => {}
                Event::Reset => return Poll::Ready(Err(LegError::Reset)),
                Event::Open(open) => return Poll::Ready(Ok(Event::Open(open))),
                Event::Opened => return Poll::Ready(Ok(Event::Opened)),
                Event::Failed(reason) => return Poll::Ready(Ok(Event::Failed(reason))),
                Event::Data(_) | Event::End => unreachable!("DATA and END come only after OPEN and OPENED"),
            }
        }
    }

    /// Sends a whole control frame and flushes it.
    pub(crate) async fn send_control(&mut self, frame: &[u8]) -> Result<(), LegError> {
        let mut sent = 0;
        poll_fn(|cx| self.poll_raw(cx, frame, &mut sent)).await
    }

    /// Sends `frames`, whole ones, from `sent` on, and flushes them.
    pub(crate) fn poll_raw(
        &mut self,
        cx: &mut Context<'_>,
        frames: &[u8],
        sent: &mut usize,
    ) -> Poll<Result<(), LegError>> {
        while *sent < frames.len() {
            *sent += ready!(Pin::new(&mut self.io).poll_write(cx, &frames[*sent..]))?;
        }
        self.poll_flush(cx)
    }

    /// Ends the connection in order: close_notify, then whatever still comes is dropped until the peer closes.
    pub(crate) async fn close(&mut self) {
        // Not an array: every connection would hold one to its end.
        let mut dropped = Vec::new();
        // The peer may be gone already: then there is nothing to end.
        if self.io.shutdown().await.is_ok() {
            dropped.reserve(4096);
            while matches!(self.io.read_buf(&mut dropped).await, Ok(1..)) {
                dropped.clear();
            }
        }
    }

    /// END was among the frames sent by `poll_raw`.
    pub(crate) fn mark_ended(&mut self) {
        self.writing.ending = true;
    }

    /// Whether the client may have sent the first byte of another stream, or nothing at all, since the last one.
    pub(crate) fn before_stream(&self) -> bool {
        self.reading.before_stream() && self.unread.is_empty()
    }

    /// Makes the leg ready for another stream; `false` if this one has not ended cleanly both ways.
    pub(crate) fn next_stream(&mut self) -> bool {
        let clean = self.writing.ending && self.writing.between_frames() && self.reading.next_stream();
        if clean {
            self.writing = Writing::IDLE;
        }
        clean
    }

    /// Whether an idle leg has been silent: no end, no byte. The TLS layer may take tickets meanwhile.
    pub(crate) fn is_quiet(&mut self) -> bool {
        if !self.unread.is_empty() {
            return false;
        }
        let mut byte = [0; 1];
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(&mut self.io).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
    }

    /// At least one byte: what was read before, then what comes.
    fn poll_bytes(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<Result<usize, LegError>> {
        if !self.unread.is_empty() {
            let count = self.unread.len().min(buf.len());
            buf[..count].copy_from_slice(&self.unread[..count]);
            self.unread.drain(..count);
            return Poll::Ready(Ok(count));
        }
        let mut read = ReadBuf::new(buf);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
        match read.filled().len() {
            0 => Poll::Ready(Err(LegError::Truncated)),
            count => Poll::Ready(Ok(count)),
        }
    }

    /// Copies the application's bytes out of `frames` to the front of `buf`, which is no smaller. How many those are. What
    /// breaks the stream behind them is told by the next call.
    fn unframe(&mut self, frames: &[u8], buf: &mut [u8]) -> Result<usize, LegError> {
        let (mut rest, mut filled) = (frames, 0);
        while !rest.is_empty() {
            let event = match self.reading.advance(rest) {
                Ok((_, Event::Reset)) => Err(LegError::Reset),
                Ok((used, event)) => {
                    rest = &rest[used..];
                    Ok(event)
                }
                Err(error) => Err(error.into()),
            };
            match event {
                Ok(Event::Data(data)) => {
                    buf[filled..][..data.len()].copy_from_slice(data);
                    filled += data.len();
                }
                Ok(Event::End) => {
                    self.unread = rest.to_vec();
                    break;
                }
                Ok(_) => {}
                Err(error) if filled == 0 => return Err(error),
                Err(error) => {
                    self.broken = Some(error);
                    break;
                }
            }
        }
        Ok(filled)
    }

    /// Hands the rest of the frame under way to TLS, and as many further DATA frames of `payload` as go into one write.
    /// How many bytes of `payload` were taken. `last`: END is handed over too, if all of `payload` was.
    fn poll_frames(&mut self, cx: &mut Context<'_>, payload: &[u8], last: bool) -> Poll<Result<usize, LegError>> {
        let now = self.writing.promised.min(payload.len());
        let (current, rest) = payload.split_at(now);
        let parts = rest.chunks(wire::MAX_DATA_SENT).take(FRAMES_PER_WRITE - 1);
        let heads: [_; FRAMES_PER_WRITE - 1] =
            std::array::from_fn(|i| parts.clone().nth(i).map_or([0; HEADER_LEN], |part| wire::data_header(part.len())));
        let mut slices = [IoSlice::new(&[]); 2 * FRAMES_PER_WRITE + 1];
        slices[0] = IoSlice::new(&self.writing.head[self.writing.head_sent..]);
        slices[1] = IoSlice::new(current);
        // More frames only behind a whole one.
        let more = if now == self.writing.promised { parts.len() } else { 0 };
        let mut left = rest.len();
        for (i, part) in parts.enumerate().take(more) {
            slices[2 + 2 * i] = IoSlice::new(&heads[i]);
            slices[3 + 2 * i] = IoSlice::new(part);
            left -= part.len();
        }
        let mut used = 2 + 2 * more;
        if last && now == self.writing.promised && left == 0 {
            slices[used] = IoSlice::new(&wire::END);
            used += 1;
        }
        let sent = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..used]))?;
        Poll::Ready(Ok(self.writing.advance(sent, rest.len())))
    }
}

impl<T: Carrier> Leg for MeshLeg<T> {
    fn tcp(&self) -> &TcpStream {
        self.io.tcp()
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<Result<Received, LegError>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Err(error));
        }
        FRAMES.with_borrow_mut(|frames| {
            let most = buf.len().min(frames.len());
            loop {
                if self.reading.ended() {
                    return Poll::Ready(Ok(Received::End));
                }
                let count = ready!(self.poll_bytes(cx, &mut frames[..most]))?;
                match self.unframe(&frames[..count], buf)? {
                    0 => {}
                    filled => return Poll::Ready(Ok(Received::Data(filled))),
                }
            }
        })
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, buf: &[u8], last: bool) -> Poll<Result<usize, LegError>> {
        if self.writing.between_frames() {
            let promised = buf.len().min(wire::MAX_DATA_SENT);
            self.writing.begin(wire::data_header(promised), promised);
        }
        loop {
            match ready!(self.poll_frames(cx, buf, last))? {
                0 => {}
                sent => return Poll::Ready(Ok(sent)),
            }
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        Pin::new(&mut self.io).poll_flush(cx).map_err(LegError::from)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        if !self.writing.ending {
            self.writing.begin_end();
        }
        while !self.writing.between_frames() {
            ready!(self.poll_frames(cx, &[], false))?;
        }
        self.poll_flush(cx)
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<LegError> {
        let mut buf = [0; HEADER_LEN];
        loop {
            let want = self.reading.wants().min(buf.len());
            let count = match ready!(self.poll_bytes(cx, &mut buf[..want])) {
                Ok(count) => count,
                Err(error) => return Poll::Ready(error),
            };
            match self.reading.advance(&buf[..count]) {
                Ok((_, Event::More)) => {}
                Ok(_) => return Poll::Ready(LegError::Reset),
                Err(error) => return Poll::Ready(error.into()),
            }
        }
    }

    fn reset(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        if self.writing.between_frames()
            && let Poll::Ready(Ok(_)) = Pin::new(&mut self.io).poll_write(&mut cx, &wire::RESET)
            && let Poll::Ready(Ok(())) = Pin::new(&mut self.io).poll_flush(&mut cx)
        {
            return;
        }
        // There is no room for it: a peer that takes nothing now would hear of the end only when it does.
        socket::arm_reset(self.io.tcp());
    }
}

#[cfg(test)]
mod tests;
