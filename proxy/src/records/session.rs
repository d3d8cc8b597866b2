//! `Session`: TLS 1.3 after the handshake, both directions. Says what each record of the peer means and when keys
//! change. No I/O.

use rustls::{
    AlertDescription, ContentType, Error, ExtractedSecrets, HandshakeType, InvalidMessage, PeerMisbehaved,
    client::ClientConnectionData, kernel::KernelConnection,
};

use super::{
    RecordError,
    keys::{Gather, Keys, OVERHEAD},
    schedule::Schedule,
};

/// Four such records are 64,088 bytes: just under 45 TCP segments of 1,448, so that a write leaves no small tail.
pub(super) const CONTENT: usize = 16_000;
const RECORDS_PER_WRITE: usize = 4;
/// All records of one write.
pub(super) const FULL_WRITE: usize = RECORDS_PER_WRITE * (CONTENT + OVERHEAD);
/// Room that [`Session::seal`] needs: a KeyUpdate and the records.
pub(super) const LARGEST_WRITE: usize = KEY_UPDATE + OVERHEAD + FULL_WRITE;
/// AES-GCM is good for 2^24.5 records with one key; other ciphers get new keys as early.
const REKEY_AFTER: u64 = 1 << 23;
/// Messages and empty records that may come with no data between them. As many KeyUpdates as rustls takes.
const MOST_CONTROLS: u8 = 32;
/// A ticket holds a certificate chain, at most.
const LARGEST_HANDSHAKE: usize = 32 * 1024;
/// Type and length.
const HANDSHAKE_HEADER: usize = 4;
const KEY_UPDATE: usize = HANDSHAKE_HEADER + 1;

/// What a record meant to the caller.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// So many bytes of data, at least one.
    Data(usize),
    /// Nothing.
    Control,
    /// The peer's direction has ended.
    End,
}

/// A KeyUpdate's only field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    NotRequested = 0,
    #[cfg_attr(not(test), expect(dead_code, reason = "we have no need for it; the tests do"))]
    Requested = 1,
}

/// Which side we are.
pub(super) enum Role {
    /// With what rustls keeps to make tickets useful, a part of which is the peer's chain: until the first data, which
    /// comes behind them. Later ones are not kept.
    Client(Option<Box<KernelConnection<ClientConnectionData>>>),
    Server,
}

/// Both directions of an established connection.
pub(super) struct Session {
    sealing: Keys,
    opening: Keys,
    schedule: Schedule,
    role: Role,
    /// A handshake message that has not come in whole.
    partial: Vec<u8>,
    /// Since the last data.
    controls: u8,
    /// A KeyUpdate that must go before more data.
    update: Option<Request>,
}

impl Session {
    pub(super) fn new(secrets: ExtractedSecrets, schedule: Schedule, role: Role) -> Result<Self, RecordError> {
        let (sealing, opening) = (Keys::new(secrets.tx)?, Keys::new(secrets.rx)?);
        Ok(Self { sealing, opening, schedule, role, partial: Vec::new(), controls: 0, update: None })
    }

    /// Whether this is a client that has received no data.
    pub(super) fn is_client_without_data(&self) -> bool {
        matches!(self.role, Role::Client(Some(_)))
    }

    /// Seals as much of `content` as goes into one write, and what must go before it, to the front of `out`, which must
    /// have room for [`LARGEST_WRITE`]. How much that is.
    pub(super) fn seal(&mut self, content: &mut Gather<'_, '_>, out: &mut [u8]) -> Result<usize, RecordError> {
        let mut sealed = self.seal_update(out)?;
        for _ in 0..RECORDS_PER_WRITE {
            let len = content.left().min(CONTENT);
            if len == 0 {
                break;
            }
            sealed += self.sealing.seal(ContentType::ApplicationData, content, len, &mut out[sealed..])?;
        }
        Ok(sealed)
    }

    /// Appends an alert to `out`.
    pub(super) fn seal_alert(&mut self, alert: AlertDescription, out: &mut Vec<u8>) -> Result<(), RecordError> {
        let level = if alert == AlertDescription::CloseNotify { WARNING } else { FATAL };
        let (begin, content) = (out.len(), [level, u8::from(alert)]);
        out.resize(begin + content.len() + OVERHEAD, 0);
        let sealed = self.sealing.seal(ContentType::Alert, &mut Gather::of(&content), content.len(), &mut out[begin..]);
        out.truncate(begin + sealed.as_ref().map_or(0, |len| *len));
        sealed.map(drop)
    }

    fn seal_update(&mut self, out: &mut [u8]) -> Result<usize, RecordError> {
        let due = (self.sealing.used() >= REKEY_AFTER).then_some(Request::NotRequested);
        let Some(request) = self.update.or(due) else { return Ok(0) };
        let message = [u8::from(HandshakeType::KeyUpdate), 0, 0, 1, request as u8];
        let sealed = self.sealing.seal(ContentType::Handshake, &mut Gather::of(&message), message.len(), out)?;
        self.sealing = self.schedule.next_sealing(&self.sealing)?;
        self.update = None;
        Ok(sealed)
    }

    /// Opens a whole record; data comes to the front of `out`, which must have [`super::keys::room`] for it. After an
    /// error or the end nothing more can be opened.
    pub(super) fn open(&mut self, record: &[u8], out: &mut [u8]) -> Result<Opened, RecordError> {
        let (kind, len) = self.opening.open(record, out)?;
        let content = &out[..len];
        if !self.partial.is_empty() && kind != ContentType::Handshake {
            return Err(misbehaved(PeerMisbehaved::MessageInterleavedWithHandshakeMessage));
        }
        match kind {
            ContentType::ApplicationData if content.is_empty() => {
                self.count_control()?;
                Ok(Opened::Control)
            }
            ContentType::ApplicationData => {
                self.controls = 0;
                if let Role::Client(tickets) = &mut self.role {
                    *tickets = None;
                }
                Ok(Opened::Data(len))
            }
            ContentType::Handshake => self.handshake(content).map(|()| Opened::Control),
            ContentType::Alert => self.alert(content),
            ContentType::ChangeCipherSpec => Err(misbehaved(PeerMisbehaved::IllegalMiddleboxChangeCipherSpec)),
            got_type => {
                let expect_types = vec![ContentType::ApplicationData, ContentType::Handshake, ContentType::Alert];
                Err(Error::InappropriateMessage { expect_types, got_type }.into())
            }
        }
    }

    /// The level says nothing in TLS 1.3: an alert is an error unless it is one of two.
    fn alert(&mut self, content: &[u8]) -> Result<Opened, RecordError> {
        let alert = match content {
            [_, alert] => AlertDescription::from(*alert),
            [] => return Err(invalid(InvalidMessage::InvalidEmptyPayload)),
            [_] => return Err(invalid(InvalidMessage::MissingData("AlertDescription"))),
            _ => return Err(invalid(InvalidMessage::TrailingData("AlertMessagePayload"))),
        };
        match alert {
            AlertDescription::CloseNotify => Ok(Opened::End),
            AlertDescription::UserCanceled => {
                self.count_control()?;
                Ok(Opened::Control)
            }
            _ => Err(Error::AlertReceived(alert).into()),
        }
    }

    /// Takes a record's part of the stream of handshake messages.
    fn handshake(&mut self, fragment: &[u8]) -> Result<(), RecordError> {
        if fragment.is_empty() {
            return Err(invalid(InvalidMessage::InvalidEmptyPayload));
        }
        let (mut bytes, mut done) = (std::mem::take(&mut self.partial), 0);
        bytes.extend_from_slice(fragment);
        while let Some((message, rest)) = next_message(&bytes[done..])? {
            done = bytes.len() - rest.len();
            self.message(message, rest.is_empty())?;
        }
        if done < bytes.len() {
            bytes.drain(..done);
            self.partial = bytes;
        }
        Ok(())
    }

    fn message(&mut self, Message { kind, body }: Message<'_>, is_last: bool) -> Result<(), RecordError> {
        self.count_control()?;
        match (kind, &mut self.role) {
            // What stands behind it in the same record would be under keys that are no longer in force.
            (HandshakeType::KeyUpdate, _) if !is_last => Err(misbehaved(PeerMisbehaved::KeyEpochWithPendingFragment)),
            (HandshakeType::KeyUpdate, _) => {
                let requested = is_requested(body)?;
                self.opening = self.schedule.next_opening(&self.opening)?;
                if requested {
                    self.update.get_or_insert(Request::NotRequested);
                }
                Ok(())
            }
            (HandshakeType::NewSessionTicket, Role::Client(tickets)) => match tickets {
                Some(rustls) => Ok(rustls.handle_new_session_ticket(body)?),
                None => check_ticket(body),
            },
            (got_type, _) => {
                let expect_types = vec![HandshakeType::KeyUpdate, HandshakeType::NewSessionTicket];
                Err(Error::InappropriateHandshakeMessage { expect_types, got_type }.into())
            }
        }
    }

    /// Without this bound, a peer could keep us busy with nothing.
    fn count_control(&mut self) -> Result<(), RecordError> {
        if self.controls == MOST_CONTROLS {
            return Err(RecordError::NoData);
        }
        self.controls += 1;
        Ok(())
    }

    /// Bytes on the heap for what is under way.
    #[cfg(test)]
    pub(super) fn heap(&self) -> usize {
        self.partial.capacity()
    }

    /// New keys before the next data.
    #[cfg(test)]
    pub(super) fn update_keys(&mut self, request: Request) {
        self.update = Some(request);
    }

    #[cfg(test)]
    pub(super) fn next_sealing_keys(&mut self) {
        self.sealing = self.schedule.next_sealing(&self.sealing).expect("TLS 1.3");
    }

    #[cfg(test)]
    pub(super) fn keys(&mut self) -> (&mut Keys, &mut Keys) {
        (&mut self.sealing, &mut self.opening)
    }
}

const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// A handshake message.
struct Message<'a> {
    kind: HandshakeType,
    body: &'a [u8],
}

/// The message at the front and what is behind it; `None` if it is not whole.
fn next_message(bytes: &[u8]) -> Result<Option<(Message<'_>, &[u8])>, RecordError> {
    let Some((&[kind, high, middle, low], rest)) = bytes.split_first_chunk::<HANDSHAKE_HEADER>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes([0, high, middle, low]) as usize;
    if len > LARGEST_HANDSHAKE {
        return Err(invalid(InvalidMessage::HandshakePayloadTooLarge));
    }
    Ok(rest.split_at_checked(len).map(|(body, rest)| (Message { kind: HandshakeType::from(kind), body }, rest)))
}

fn is_requested(key_update: &[u8]) -> Result<bool, RecordError> {
    match key_update {
        [0] => Ok(false),
        [1] => Ok(true),
        [_] => Err(invalid(InvalidMessage::InvalidKeyUpdate)),
        [] => Err(invalid(InvalidMessage::MissingData("KeyUpdateRequest"))),
        _ => Err(invalid(InvalidMessage::TrailingData("KeyUpdate"))),
    }
}

/// Of a ticket that is not kept: whether it has the form of one. What its extensions hold concerns nobody.
fn check_ticket(body: &[u8]) -> Result<(), RecordError> {
    const LIFETIME_AND_AGE: usize = 8;
    let fields = || {
        let (_, rest) = body.split_at_checked(LIFETIME_AND_AGE)?;
        let (_nonce, rest) = vector::<1>(rest)?;
        let (ticket, rest) = vector::<2>(rest)?;
        let (_extensions, rest) = vector::<2>(rest)?;
        (!ticket.is_empty() && rest.is_empty()).then_some(())
    };
    fields().ok_or(invalid(InvalidMessage::MissingData("NewSessionTicket")))
}

/// What stands behind a length of `N` bytes, and the rest.
fn vector<const N: usize>(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<N>()?;
    rest.split_at_checked(len.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)))
}

fn misbehaved(how: PeerMisbehaved) -> RecordError {
    Error::from(how).into()
}

fn invalid(why: InvalidMessage) -> RecordError {
    Error::from(why).into()
}
