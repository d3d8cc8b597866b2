//! The codec of `hauberk/1`, the protocol between our proxies (`docs/wire.md`): frames, and what a reader of one side
//! of a connection may see next. Pure: bytes in, events out. It holds at most four bytes of its own; the payload of
//! DATA goes through as slices of the input.

mod read;

use hauberk_mesh::FailReason;
pub use read::{Event, ReadState};

/// Bytes before every payload: type, and length as 3 bytes, big-endian.
pub const HEADER_LEN: usize = 4;
/// The longest DATA payload that we send: with its header it fills one TLS record of 16,000 bytes.
pub const MAX_DATA_SENT: usize = 16_000 - HEADER_LEN;
/// The longest DATA payload that we take.
pub const MAX_DATA: usize = 65_536;
/// The longest OPEN payload.
pub const MAX_OPEN: usize = 256;
/// The part of an OPEN payload that version 1 knows: port and kind.
const OPEN_LEN: usize = 3;

/// The whole frame OPENED.
pub const OPENED: [u8; HEADER_LEN] = Header::Opened.encode();
/// The whole frame END.
pub const END: [u8; HEADER_LEN] = Header::End.encode();
/// The whole frame RESET.
pub const RESET: [u8; HEADER_LEN] = Header::Reset.encode();

/// How the peer broke the protocol. Each ends the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A type of a later version, or not this protocol.
    #[error("frame type {0} is not one of hauberk/1 (1 to 6)")]
    UnknownType(u8),
    /// The length is outside what the type allows.
    #[error("{frame} announces {length} bytes of payload: {allowed} allowed")]
    Length {
        /// Name of the frame.
        frame: &'static str,
        /// What the header says.
        length: u32,
        /// What it may say.
        allowed: &'static str,
    },
    /// The type is known, but not what may come now.
    #[error("{frame} where only {allowed} may come")]
    Unexpected {
        /// Name of the frame.
        frame: &'static str,
        /// What may come.
        allowed: &'static str,
    },
    /// OPEN names port 0.
    #[error("OPEN names port 0: 1 to 65535 allowed")]
    PortZero,
    /// OPEN names a kind of stream of a later version.
    #[error("OPEN names kind {0}: 0 (bytes) is the only one of hauberk/1")]
    UnknownKind(u8),
}

/// A frame's header, its length valid for its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// Client: begin a stream. Payload of 3 to [`MAX_OPEN`] bytes.
    Open(u16),
    /// Server: the application accepted.
    Opened,
    /// Server: it did not; nothing was delivered. Payload of 1 byte.
    Failed,
    /// Bytes of the application: 1 to [`MAX_DATA`].
    Data(u32),
    /// No more DATA in this direction.
    End,
    /// The stream is lost in both directions, and so is the connection.
    Reset,
}

impl Header {
    /// The header's four bytes.
    pub const fn encode(self) -> [u8; HEADER_LEN] {
        let (frame, length): (u8, u32) = match self {
            Self::Open(length) => (1, length as u32),
            Self::Opened => (2, 0),
            Self::Failed => (3, 1),
            Self::Data(length) => (4, length),
            Self::End => (5, 0),
            Self::Reset => (6, 0),
        };
        let [_, high, middle, low] = length.to_be_bytes();
        [frame, high, middle, low]
    }

    /// Reads a header; a length that its type does not allow is refused before any payload comes.
    pub fn decode([frame, high, middle, low]: [u8; HEADER_LEN]) -> Result<Self, WireError> {
        let length = u32::from_be_bytes([0, high, middle, low]);
        let (header, allowed, fits) = match frame {
            1 => (Self::Open(length as u16), "3 to 256", (OPEN_LEN..=MAX_OPEN).contains(&(length as usize))),
            2 => (Self::Opened, "0", length == 0),
            3 => (Self::Failed, "1", length == 1),
            4 => (Self::Data(length), "1 to 65536", (1..=MAX_DATA).contains(&(length as usize))),
            5 => (Self::End, "0", length == 0),
            6 => (Self::Reset, "0", length == 0),
            other => return Err(WireError::UnknownType(other)),
        };
        if fits { Ok(header) } else { Err(WireError::Length { frame: header.name(), length, allowed }) }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Open(_) => "OPEN",
            Self::Opened => "OPENED",
            Self::Failed => "FAILED",
            Self::Data(_) => "DATA",
            Self::End => "END",
            Self::Reset => "RESET",
        }
    }
}

/// The header of a DATA frame of `length` bytes, which the caller has kept to 1 to [`MAX_DATA_SENT`].
pub const fn data_header(length: usize) -> [u8; HEADER_LEN] {
    debug_assert!(length >= 1 && length <= MAX_DATA_SENT);
    Header::Data(length as u32).encode()
}

/// What a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes, as they come.
    Bytes,
}

/// What OPEN asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    port: u16,
    kind: Kind,
}

impl Open {
    /// A stream of bytes to `port` of the pod; `None` for port 0.
    pub const fn bytes(port: u16) -> Option<Self> {
        if port == 0 { None } else { Some(Self { port, kind: Kind::Bytes }) }
    }

    /// The application's port, never 0.
    pub const fn port(self) -> u16 {
        self.port
    }

    /// What the stream carries.
    pub const fn kind(self) -> Kind {
        self.kind
    }

    /// The whole frame.
    pub const fn encode(self) -> [u8; HEADER_LEN + OPEN_LEN] {
        let [frame, high, middle, low] = Header::Open(OPEN_LEN as u16).encode();
        let [port_high, port_low] = self.port.to_be_bytes();
        let kind = match self.kind {
            Kind::Bytes => 0,
        };
        [frame, high, middle, low, port_high, port_low, kind]
    }

    /// Reads the part of the payload that version 1 knows.
    fn parse([high, low, kind]: [u8; OPEN_LEN]) -> Result<Self, WireError> {
        if kind != 0 {
            return Err(WireError::UnknownKind(kind));
        }
        Self::bytes(u16::from_be_bytes([high, low])).ok_or(WireError::PortZero)
    }
}

/// The whole frame FAILED.
pub const fn failed(reason: FailReason) -> [u8; HEADER_LEN + 1] {
    let code = match reason {
        FailReason::Refused => 1,
        FailReason::Unreachable => 2,
        FailReason::TimedOut => 3,
        FailReason::Denied => 4,
        FailReason::Draining => 5,
    };
    let [frame, high, middle, low] = Header::Failed.encode();
    [frame, high, middle, low, code]
}

/// A code that a later peer adds is read as the reason that says least.
fn fail_reason(code: u8) -> FailReason {
    match code {
        1 => FailReason::Refused,
        3 => FailReason::TimedOut,
        4 => FailReason::Denied,
        5 => FailReason::Draining,
        _ => FailReason::Unreachable,
    }
}

#[cfg(test)]
mod tests;
