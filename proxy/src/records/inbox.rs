//! `Inbox`: what has come from the peer and not yet gone to the caller. Takes bytes in pieces of any size, gives
//! authenticated plaintext. Holds no heap while nothing waits. No I/O.

use tokio::io::ReadBuf;

use super::{
    RecordError,
    keys::{room, whole_record},
    session::{Opened, Session},
};

/// Bytes that wait for their turn.
#[derive(Default)]
pub(super) struct Waiting {
    bytes: Vec<u8>,
    gone: usize,
}

impl Waiting {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, gone: 0 }
    }

    pub(super) fn get(&self) -> &[u8] {
        &self.bytes[self.gone..]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.get().is_empty()
    }

    /// The first `count` bytes go.
    pub(super) fn advance(&mut self, count: usize) {
        self.gone += count;
        if self.is_empty() {
            *self = Self::default();
        }
    }

    #[cfg(test)]
    pub(super) fn heap(&self) -> usize {
        self.bytes.capacity()
    }
}

/// Received bytes of one connection.
#[derive(Default)]
pub(super) struct Inbox {
    /// Plaintext that a small reader has not taken: of one record.
    plain: Waiting,
    /// Records that are not opened yet, or not whole.
    sealed: Waiting,
    ended: bool,
    /// Why nothing more will come; told once what came before was taken.
    failed: Option<Box<RecordError>>,
}

impl Inbox {
    /// With bytes that came behind the handshake.
    pub(super) fn new(sealed: Vec<u8>) -> Self {
        Self { sealed: Waiting::new(sealed), ..Self::default() }
    }

    /// Bytes that wait for the rest of their record.
    pub(super) fn partial(&self) -> &[u8] {
        self.sealed.get()
    }

    pub(super) fn failure(&self) -> Option<&RecordError> {
        self.failed.as_deref()
    }

    /// No more can be opened.
    fn fail(&mut self, error: RecordError) {
        self.failed.get_or_insert_with(|| Box::new(error));
    }

    /// Moves what there is to `buf`: `true` if the caller has its answer, which is the end if nothing was added;
    /// `false` if more bytes must be received.
    pub(super) fn deliver(&mut self, session: &mut Session, buf: &mut ReadBuf<'_>) -> Result<bool, RecordError> {
        let before = buf.filled().len();
        self.take_plain(buf);
        if buf.filled().len() == before {
            let sealed = std::mem::take(&mut self.sealed);
            let used = self.open_all(session, sealed.get(), buf);
            if self.failed.is_none() && !self.ended {
                self.sealed = sealed;
                self.sealed.advance(used);
            }
        }
        self.answer(buf.filled().len() > before)
    }

    /// Takes `bytes`, which begin with [`Inbox::partial`], and goes on as [`Inbox::deliver`].
    pub(super) fn receive(
        &mut self,
        session: &mut Session,
        bytes: &[u8],
        buf: &mut ReadBuf<'_>,
    ) -> Result<bool, RecordError> {
        let before = buf.filled().len();
        let used = self.open_all(session, bytes, buf);
        let keep = if self.failed.is_none() && !self.ended { &bytes[used..] } else { &[] };
        self.sealed = Waiting::new(keep.to_vec());
        self.answer(buf.filled().len() > before)
    }

    fn answer(&self, some: bool) -> Result<bool, RecordError> {
        match &self.failed {
            Some(error) if !some => Err((**error).clone()),
            _ => Ok(some || self.ended),
        }
    }

    fn take_plain(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.plain.get().len().min(buf.remaining());
        buf.put_slice(&self.plain.get()[..count]);
        self.plain.advance(count);
    }

    /// Opens whole records while `buf` has room, the last one into `plain` if `buf` is too small for any. How many bytes
    /// of `bytes` that were.
    fn open_all(&mut self, session: &mut Session, bytes: &[u8], buf: &mut ReadBuf<'_>) -> usize {
        let (mut used, before) = (0, buf.filled().len());
        while self.failed.is_none() && !self.ended && self.plain.is_empty() {
            let rest = &bytes[used..];
            let record = match whole_record(rest) {
                Ok(Some(len)) => &rest[..len],
                Ok(None) => break,
                Err(error) => {
                    self.fail(error);
                    break;
                }
            };
            let fits = room(record.len()) <= buf.remaining();
            if !fits && buf.filled().len() > before {
                break;
            }
            let opened = if fits { open_to(session, record, buf) } else { self.open_aside(session, record, buf) };
            used += record.len();
            match opened {
                Ok(ended) => self.ended = ended,
                Err(error) => self.fail(error),
            }
        }
        used
    }

    fn open_aside(&mut self, session: &mut Session, record: &[u8], buf: &mut ReadBuf<'_>) -> Result<bool, RecordError> {
        let mut plain = vec![0; room(record.len())];
        match session.open(record, &mut plain)? {
            Opened::Data(len) => {
                plain.truncate(len);
                self.plain = Waiting::new(plain);
                self.take_plain(buf);
                Ok(false)
            }
            other => Ok(other == Opened::End),
        }
    }

    #[cfg(test)]
    pub(super) fn heap(&self) -> usize {
        self.plain.heap() + self.sealed.heap()
    }
}

/// Opens a record straight to `buf`, which counts nothing of it unless the tag was right. Whether it was the end.
fn open_to(session: &mut Session, record: &[u8], buf: &mut ReadBuf<'_>) -> Result<bool, RecordError> {
    let opened = session.open(record, buf.initialize_unfilled_to(room(record.len())))?;
    if let Opened::Data(len) = opened {
        buf.advance(len);
    }
    Ok(opened == Opened::End)
}
