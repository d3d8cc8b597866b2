//! Drives rustls through a handshake and takes the connection over from it. rustls is shown one record at a time: what
//! comes behind the handshake it must not see. No I/O: the caller moves the bytes.

use std::{io, sync::Arc};

use hauberk_mesh::{ALPN_HAUBERK, ALPN_LINKERD, HandshakeKind, TlsDetails};
use rustls::{
    CipherSuite, ClientConfig, CommonState, Error, ExtractedSecrets, NamedGroup, PeerMisbehaved, ProtocolVersion,
    ServerConfig,
    client::{ClientConnectionData, UnbufferedClientConnection},
    pki_types::{CertificateDer, ServerName},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus},
};

use super::{
    RecordError,
    keys::HEADER,
    schedule::{Learned, Schedule},
    session::{Role, Session},
};

/// No handshake message is longer, and rustls takes none that is. A record may come on top.
const LARGEST_FLIGHT: usize = 64 * 1024 + 18 * 1024;

/// Says nothing; TLS 1.3 has it for those who look on.
const CHANGE_CIPHER_SPEC: [u8; 6] = [20, 3, 3, 0, 1, 1];

/// What the handshake agreed on.
#[derive(Debug, Clone, Copy)]
pub struct Agreed {
    /// Always TLS 1.3.
    pub version: ProtocolVersion,
    /// The cipher suite.
    pub cipher: CipherSuite,
    /// The key-exchange group.
    pub group: Option<NamedGroup>,
    /// What is spoken behind it, if it is one of the mesh's protocols.
    pub protocol: Option<Protocol>,
    /// Full or resumed.
    pub handshake: HandshakeKind,
}

/// What the mesh speaks, by ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Ours.
    Hauberk,
    /// Linkerd's.
    Linkerd,
}

impl Protocol {
    fn of(alpn: &[u8]) -> Option<Self> {
        [Self::Hauberk, Self::Linkerd].into_iter().find(|protocol| protocol.alpn() == alpn)
    }

    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Hauberk => ALPN_HAUBERK,
            Self::Linkerd => ALPN_LINKERD,
        }
    }
}

impl Agreed {
    /// As `/connections` shows it.
    pub fn details(&self) -> TlsDetails {
        let protocol = self.protocol.map_or_else(Default::default, |protocol| String::from_utf8_lossy(protocol.alpn()));
        TlsDetails {
            version: format!("{:?}", self.version),
            cipher: format!("{:?}", self.cipher),
            group: self.group.map_or_else(String::new, |group| format!("{group:?}")),
            protocol: protocol.into_owned(),
            handshake: self.handshake,
        }
    }
}

/// What came of a handshake.
#[derive(Debug, Clone)]
pub struct Negotiated {
    /// What was agreed on.
    pub agreed: Agreed,
    /// The peer's chain, leaf first; restored where the session was resumed.
    pub peer: Option<Vec<CertificateDer<'static>>>,
}

impl Negotiated {
    /// That of an established connection of rustls.
    pub(crate) fn of(tls: &CommonState) -> Result<Self, RecordError> {
        match (tls.protocol_version(), tls.negotiated_cipher_suite()) {
            (Some(version @ ProtocolVersion::TLSv1_3), Some(suite)) => Ok(Self {
                agreed: Agreed {
                    version,
                    cipher: suite.suite(),
                    group: tls.negotiated_key_exchange_group().map(|group| group.name()),
                    protocol: tls.alpn_protocol().and_then(Protocol::of),
                    handshake: match tls.handshake_kind() {
                        Some(rustls::HandshakeKind::Resumed) => HandshakeKind::Resumed,
                        _ => HandshakeKind::Full,
                    },
                },
                peer: tls.peer_certificates().map(<[CertificateDer<'_>]>::to_vec),
            }),
            _ => Err(Error::General("the record layer is for TLS 1.3: configure nothing else".to_owned()).into()),
        }
    }
}

/// A rustls connection of either side.
pub(super) trait Side: Sized {
    type Data;
    const IS_CLIENT: bool;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn common(&self) -> &CommonState;
    fn take_over(self) -> Result<(ExtractedSecrets, Role), Error>;
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    const IS_CLIENT: bool = true;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn take_over(self) -> Result<(ExtractedSecrets, Role), Error> {
        let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Role::Client(Some(Box::new(kernel)))))
    }
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    const IS_CLIENT: bool = false;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn common(&self) -> &CommonState {
        self
    }

    fn take_over(self) -> Result<(ExtractedSecrets, Role), Error> {
        let (secrets, _) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Role::Server))
    }
}

/// What a handshake waits for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// `outgoing` must be sent, and cleared: the peer waits for it.
    Send,
    /// Bytes must be appended to `received`.
    Receive,
    /// [`Handshake::finish`]. What is left in `outgoing` comes before any data.
    Nothing,
}

/// A handshake under way.
pub(super) struct Handshake<S> {
    side: S,
    learned: Arc<Learned>,
    pub(super) received: Vec<u8>,
    /// Of `received`, what rustls has seen.
    shown: usize,
    /// Where the first record begins of which rustls has not seen all. What is before, rustls may have changed: where it
    /// puts messages together it writes over the headers of records.
    next: usize,
    pub(super) outgoing: Vec<u8>,
}

impl Handshake<UnbufferedClientConnection> {
    pub(super) fn client(config: &ClientConfig, name: ServerName<'static>) -> Result<Self, RecordError> {
        let learned = Arc::new(Learned::default());
        let mut config = config.clone();
        config.key_log = learned.clone();
        Ok(Self::new(UnbufferedClientConnection::new(Arc::new(config), name)?, learned))
    }
}

impl Handshake<UnbufferedServerConnection> {
    pub(super) fn server(config: &ServerConfig) -> Result<Self, RecordError> {
        let learned = Arc::new(Learned::default());
        let mut config = config.clone();
        config.key_log = learned.clone();
        Ok(Self::new(UnbufferedServerConnection::new(Arc::new(config))?, learned))
    }
}

impl<S: Side> Handshake<S> {
    fn new(side: S, learned: Arc<Learned>) -> Self {
        Self { side, learned, received: Vec::new(), shown: 0, next: 0, outgoing: Vec::new() }
    }

    /// Goes on as far as it can. After an error, `outgoing` may have an alert for the peer.
    pub(super) fn advance(&mut self) -> Result<Need, RecordError> {
        loop {
            let UnbufferedStatus { discard, state } = self.side.process(&mut self.received[..self.shown]);
            let need = match state {
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    encode(data, &mut self.outgoing);
                    Ok(None)
                }
                // After each message; a whole flight goes at once.
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    Ok(None)
                }
                // A server that may write has not finished if it has not heard the client's Finished.
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => Ok(Some(Need::Receive)),
                Ok(_) => Err(Error::General("rustls saw data during the handshake".to_owned())),
                Err(error) => Err(error),
            };
            self.discard(discard);
            match need {
                Ok(Some(Need::Receive)) if !self.side.common().is_handshaking() => return Ok(Need::Nothing),
                Ok(Some(Need::Receive)) if self.show_more()? => {}
                Ok(Some(Need::Receive)) if !self.outgoing.is_empty() && self.outgoing != CHANGE_CIPHER_SPEC => {
                    return Ok(Need::Send);
                }
                Ok(Some(need)) => return Ok(need),
                Ok(None) => {}
                Err(error) => return Err(self.fail(error)),
            }
        }
    }

    /// The connection, and what came behind the handshake.
    pub(super) fn finish(self) -> Result<(Session, Negotiated, Vec<u8>), RecordError> {
        if self.shown > 0 {
            return Err(Error::from(PeerMisbehaved::KeyEpochWithPendingFragment).into());
        }
        let negotiated = Negotiated::of(self.side.common())?;
        let (client, server) = self.learned.secrets()?;
        let (sealing, opening) = if S::IS_CLIENT { (client, server) } else { (server, client) };
        let schedule = Schedule::new(self.side.common(), sealing, opening)?;
        let (secrets, role) = self.side.take_over()?;
        let received = if self.received.is_empty() { Vec::new() } else { self.received[..].to_vec() };
        Ok((Session::new(secrets, schedule, role)?, negotiated, received))
    }

    fn discard(&mut self, count: usize) {
        self.received.drain(..count);
        self.shown = self.shown.saturating_sub(count);
        self.next = self.next.saturating_sub(count);
    }

    /// Shows rustls more of what has come, no more than to the end of one record. Half a record it may see: it knows
    /// by the first bytes what is not TLS.
    fn show_more(&mut self) -> Result<bool, RecordError> {
        let before = self.shown;
        self.shown = self.received.len();
        if let Some(end) = self.record_end()
            && end <= self.shown
        {
            (self.shown, self.next) = (end, end);
        }
        if self.shown > LARGEST_FLIGHT {
            return Err(Error::from(rustls::InvalidMessage::HandshakePayloadTooLarge).into());
        }
        Ok(self.shown > before)
    }

    fn record_end(&self) -> Option<usize> {
        let header = self.received[self.next..].first_chunk::<HEADER>()?;
        Some(self.next + HEADER + usize::from(u16::from_be_bytes([header[3], header[4]])))
    }

    /// Gets the alert out of rustls.
    fn fail(&mut self, error: Error) -> RecordError {
        while self.side.common().wants_write() {
            let UnbufferedStatus { discard, state } = self.side.process(&mut self.received[..self.shown]);
            match state {
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut self.outgoing),
                _ => break,
            }
            self.discard(discard);
        }
        error.into()
    }
}

fn encode<D>(mut data: EncodeTlsData<'_, D>, out: &mut Vec<u8>) {
    let begin = out.len();
    if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
        out.resize(begin + size.required_size, 0);
        data.encode(&mut out[begin..]).expect("the size is what rustls asked for");
    }
}

/// For the handshake's own end of file.
pub(super) fn eof() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the connection during the handshake")
}
