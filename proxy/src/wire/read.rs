//! What a reader of one side of a connection may see, in order, over all its streams.

use hauberk_mesh::FailReason;

use super::{HEADER_LEN, Header, OPEN_LEN, Open, WireError, fail_reason};

/// What [`ReadState::advance`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// The input is used up; the next event needs more.
    More,
    /// The client asks for a stream.
    Open(Open),
    /// The server has opened it.
    Opened,
    /// The server has not; the connection is of no further use.
    Failed(FailReason),
    /// The application's bytes: the last of the bytes consumed by this call, never empty.
    Data(&'a [u8]),
    /// This direction has ended.
    End,
    /// Stream and connection are lost.
    Reset,
}

/// Which side reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Reads answers.
    Client,
    /// Reads requests.
    Server,
}

/// Which frames may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The first frame of a stream: OPEN to a server, its answer to a client.
    Opening,
    /// DATA and END.
    Streaming,
    /// The peer has ended its direction.
    Ended,
    /// Nothing more: failed, reset, or a violation.
    Over,
}

/// The frame under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frame {
    Header,
    /// Port and kind are awaited; so many payload bytes follow them.
    Open(u16),
    /// Bytes of OPEN that a later version may give a meaning.
    Extension(Open, u16),
    Failed,
    Data(u32),
}

/// Reads one side of a connection, over all its streams, from bytes in any chunking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadState {
    side: Side,
    stage: Stage,
    frame: Frame,
    held: [u8; HEADER_LEN],
    holding: usize,
}

impl ReadState {
    /// For the client of a connection, after it has sent OPEN: reads answers.
    pub const fn client() -> Self {
        Self::new(Side::Client)
    }

    /// For the server of a connection: reads requests.
    pub const fn server() -> Self {
        Self::new(Side::Server)
    }

    const fn new(side: Side) -> Self {
        Self { side, stage: Stage::Opening, frame: Frame::Header, held: [0; HEADER_LEN], holding: 0 }
    }

    /// Reads up to the next event: how many bytes of `input` are dealt with, and what they say. Call it again with the
    /// rest until it says [`Event::More`]. After an error or [`Event::Reset`] the connection is to be closed; whatever
    /// comes then is an error.
    pub fn advance<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Event<'a>), WireError> {
        let mut rest = input;
        loop {
            match self.step(&mut rest) {
                Ok(Some(event)) => return Ok((input.len() - rest.len(), event)),
                Ok(None) if rest.is_empty() => return Ok((input.len(), Event::More)),
                Ok(None) => {}
                Err(error) => {
                    self.stage = Stage::Over;
                    return Err(error);
                }
            }
        }
    }

    /// How many bytes the frame under way can use: who reads no more than this never has bytes of the next frame, and
    /// gets the payload of DATA as the very bytes that it read.
    pub const fn wants(&self) -> usize {
        match self.frame {
            Frame::Header => HEADER_LEN - self.holding,
            Frame::Open(_) => OPEN_LEN - self.holding,
            Frame::Extension(_, left) => left as usize,
            Frame::Failed => 1,
            Frame::Data(left) => left as usize,
        }
    }

    /// Whether the peer has ended its direction, with nothing after it: this side of the stream is complete.
    pub fn ended(&self) -> bool {
        self.stage == Stage::Ended && self.between_frames()
    }

    /// Whether not one byte of the next stream's first frame has come. Where a server reads, the client may close here.
    pub fn before_stream(&self) -> bool {
        self.stage == Stage::Opening && self.between_frames()
    }

    /// Lets the next stream begin. To be called once END has been both read and sent; `false`, and no change, if the
    /// peer has not ended cleanly.
    pub fn next_stream(&mut self) -> bool {
        let clean = self.ended();
        if clean {
            self.stage = Stage::Opening;
        }
        clean
    }

    fn between_frames(&self) -> bool {
        self.frame == Frame::Header && self.holding == 0
    }

    fn step<'a>(&mut self, rest: &mut &'a [u8]) -> Result<Option<Event<'a>>, WireError> {
        match self.frame {
            Frame::Header => {
                let Some(header) = self.hold(rest) else { return Ok(None) };
                self.begin(Header::decode(header)?)
            }
            Frame::Open(extension) => {
                let Some(payload) = self.hold(rest) else { return Ok(None) };
                Ok(self.skip(Open::parse(payload)?, extension))
            }
            Frame::Extension(open, left) => {
                let skipped = take(rest, left.into()).len();
                // `take` gives no more than it was asked for, a u16.
                Ok(self.skip(open, left - skipped as u16))
            }
            Frame::Failed => {
                let Some([code]) = self.hold(rest) else { return Ok(None) };
                Ok(self.finish(Stage::Over, Event::Failed(fail_reason(code))))
            }
            Frame::Data(left) => Ok(self.data(rest, left)),
        }
    }

    /// A header is complete: refuses it if it is out of order; frames without a payload are done.
    fn begin<'a>(&mut self, header: Header) -> Result<Option<Event<'a>>, WireError> {
        match (self.stage, self.side, header) {
            (Stage::Opening, Side::Server, Header::Open(length)) => {
                self.frame = Frame::Open(length - OPEN_LEN as u16);
                Ok(None)
            }
            (Stage::Opening, Side::Client, Header::Failed) => {
                self.frame = Frame::Failed;
                Ok(None)
            }
            (Stage::Streaming, _, Header::Data(length)) => {
                self.frame = Frame::Data(length);
                Ok(None)
            }
            (Stage::Opening, Side::Client, Header::Opened) => Ok(self.finish(Stage::Streaming, Event::Opened)),
            (Stage::Streaming, _, Header::End) => Ok(self.finish(Stage::Ended, Event::End)),
            (Stage::Opening | Stage::Streaming | Stage::Ended, _, Header::Reset) => {
                Ok(self.finish(Stage::Over, Event::Reset))
            }
            _ => Err(WireError::Unexpected { frame: header.name(), allowed: self.allowed() }),
        }
    }

    fn allowed(&self) -> &'static str {
        match (self.stage, self.side) {
            (Stage::Opening, Side::Server) => "OPEN or RESET",
            (Stage::Opening, Side::Client) => "OPENED, FAILED or RESET",
            (Stage::Streaming, _) => "DATA, END or RESET",
            (Stage::Ended, _) => "RESET",
            (Stage::Over, _) => "nothing",
        }
    }

    fn skip<'a>(&mut self, open: Open, left: u16) -> Option<Event<'a>> {
        if left > 0 {
            self.frame = Frame::Extension(open, left);
            return None;
        }
        self.finish(Stage::Streaming, Event::Open(open))
    }

    fn data<'a>(&mut self, rest: &mut &'a [u8], left: u32) -> Option<Event<'a>> {
        let data = take(rest, left as usize);
        // `take` gives no more than it was asked for, a u32.
        let left = left - data.len() as u32;
        self.frame = if left == 0 { Frame::Header } else { Frame::Data(left) };
        if data.is_empty() { None } else { Some(Event::Data(data)) }
    }

    fn finish<'a>(&mut self, stage: Stage, event: Event<'a>) -> Option<Event<'a>> {
        (self.stage, self.frame) = (stage, Frame::Header);
        Some(event)
    }

    /// Collects `N` bytes, over as many inputs as it takes.
    fn hold<const N: usize>(&mut self, rest: &mut &[u8]) -> Option<[u8; N]> {
        const { assert!(N <= HEADER_LEN) };
        let more = take(rest, N - self.holding);
        self.held[self.holding..][..more.len()].copy_from_slice(more);
        self.holding += more.len();
        let whole = *self.held.first_chunk().filter(|_| self.holding == N)?;
        self.holding = 0;
        Some(whole)
    }
}

/// Cuts up to `most` bytes off the front of `rest`.
pub(super) fn take<'a>(rest: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, left) = rest.split_at(most.min(rest.len()));
    *rest = left;
    taken
}
