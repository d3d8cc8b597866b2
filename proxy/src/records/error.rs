//! What can go wrong with records, and what the peer is told of it.

use std::io;

use rustls::{AlertDescription, Error, InvalidMessage};

/// Why a connection carries no more data.
#[derive(Debug, Clone, thiserror::Error, PartialEq)]
pub enum RecordError {
    /// In rustls' words. Mostly the peer's doing: an alert, a wrong tag, what has no place here.
    #[error(transparent)]
    Tls(#[from] Error),
    /// TCP ended before close_notify.
    #[error("the connection ended without close_notify: bytes may be missing")]
    Truncated,
    /// The peer keeps us busy with nothing.
    #[error("too many messages of TLS's own, or empty records, with no data between them")]
    NoData,
    /// No key may be used for that many records.
    #[error("a key has been used for all the records that it may be used for")]
    Exhausted,
    /// Records that were sealed already are lost, so that no other may follow.
    #[error("writing failed before: {0}")]
    Broken(io::ErrorKind),
}

impl RecordError {
    /// The alert that says it, as RFC 8446 has it; `None` where there is nothing to say or nobody to hear.
    pub(super) fn alert(&self) -> Option<AlertDescription> {
        use AlertDescription::*;
        use InvalidMessage as Invalid;
        Some(match self {
            Self::Truncated | Self::Broken(_) | Self::Tls(Error::AlertReceived(_)) => return None,
            Self::Tls(Error::DecryptError) => BadRecordMac,
            Self::Tls(Error::PeerSentOversizedRecord) => RecordOverflow,
            Self::Tls(Error::InvalidMessage(Invalid::InvalidEmptyPayload)) => UnexpectedMessage,
            Self::Tls(Error::InvalidMessage(Invalid::InvalidKeyUpdate)) => IllegalParameter,
            Self::Tls(Error::InvalidMessage(_)) => DecodeError,
            Self::Tls(
                Error::PeerMisbehaved(_)
                | Error::InappropriateMessage { .. }
                | Error::InappropriateHandshakeMessage { .. },
            )
            | Self::NoData => UnexpectedMessage,
            Self::Tls(_) | Self::Exhausted => InternalError,
        })
    }
}

/// A rustls error stays one: whoever asks for it finds it as with tokio-rustls.
impl From<RecordError> for io::Error {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Tls(error) => Self::new(io::ErrorKind::InvalidData, error),
            RecordError::Truncated => Self::new(io::ErrorKind::UnexpectedEof, error),
            RecordError::NoData => Self::new(io::ErrorKind::InvalidData, error),
            RecordError::Exhausted => Self::other(error),
            RecordError::Broken(kind) => Self::new(kind, error),
        }
    }
}
