//! Is this direction of a connection TLS 1.3 and nothing else? Read from the bytes on the wire, without any key. Pure.
//!
//! What can be seen from outside: records back to back from the first byte to the last, of the three types that TLS 1.3
//! shows, of lengths that it allows; in the clear only ClientHello or ServerHello; TLS 1.3 chosen by the server; and
//! after the first encrypted record only encrypted records. That the encrypted ones are encrypted cannot be seen: the
//! applications' markers show it.

use std::fmt;

const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;
const TLS_1_3: u16 = 0x0304;
const LARGEST_PLAIN: usize = 1 << 14;
const LARGEST_ENCRYPTED: usize = (1 << 14) + 256;
/// One byte of type and the tag.
const SMALLEST_ENCRYPTED: usize = 1 + 16;

/// What one direction of a connection shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsView {
    /// The server name that the client asked for.
    pub server_name: Option<String>,
    /// The protocols that the client offered.
    pub alpn: Vec<String>,
    /// Whether the server chose TLS 1.3.
    pub chose_tls13: bool,
    /// How many encrypted records.
    pub encrypted_records: usize,
    /// Bytes in encrypted records.
    pub encrypted_bytes: u64,
    /// Bytes of a last record that is not there as a whole.
    pub incomplete: usize,
    /// The first thing that is not TLS 1.3.
    pub offence: Option<Offence>,
}

/// Something that TLS 1.3 does not show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offence {
    /// Offset of the record it is in.
    pub at: usize,
    /// What it is.
    pub what: String,
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.at, self.what)
    }
}

impl TlsView {
    /// Whether every byte belongs to a whole record of TLS 1.3. True of no bytes at all.
    pub fn only_tls13(&self) -> bool {
        self.offence.is_none() && self.incomplete == 0
    }
}

/// Looks at every byte of `stream`, one direction of a connection from its first byte on.
pub fn inspect(stream: &[u8]) -> TlsView {
    let mut reading = Reading::default();
    let mut at = 0;
    while at < stream.len() {
        match reading.record(&stream[at..]) {
            Ok(Some(length)) => at += length,
            Ok(None) => {
                reading.view.incomplete = stream.len() - at;
                break;
            }
            Err(what) => {
                reading.view.offence = Some(Offence { at, what });
                break;
            }
        }
    }
    if reading.view.offence.is_none() && !reading.message.is_empty() {
        reading.view.incomplete += reading.message.len();
    }
    reading.view
}

#[derive(Default)]
struct Reading {
    view: TlsView,
    /// Who speaks, once it has said hello.
    speaker: Option<u8>,
    /// The part of a handshake message that has come.
    message: Vec<u8>,
}

impl Reading {
    /// Takes the record at the start of `bytes` and says its length; `None` if it is not all there.
    fn record(&mut self, bytes: &[u8]) -> Result<Option<usize>, String> {
        let kind = bytes[0];
        check_kind(kind)?;
        let Some(header) = bytes.get(..5) else { return Ok(None) };
        let version = u16::from_be_bytes([header[1], header[2]]);
        if version != 0x0303 && !(kind == HANDSHAKE && version == 0x0301) {
            return Err(format!("a record of version {version:#06x}"));
        }
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        self.check_place(kind, length)?;
        let Some(body) = bytes.get(5..5 + length) else { return Ok(None) };
        match kind {
            HANDSHAKE => self.handshake(body)?,
            APPLICATION_DATA => {
                self.view.encrypted_records += 1;
                self.view.encrypted_bytes += length as u64;
            }
            _ if body != [1] => return Err("a change of cipher that is none".to_owned()),
            _ => (),
        }
        Ok(Some(5 + length))
    }

    fn check_place(&self, kind: u8, length: usize) -> Result<(), String> {
        let allowed = match kind {
            HANDSHAKE => 1..=LARGEST_PLAIN,
            APPLICATION_DATA => SMALLEST_ENCRYPTED..=LARGEST_ENCRYPTED,
            _ => 1..=1,
        };
        if !allowed.contains(&length) {
            return Err(format!("a record of type {kind} and {length} bytes"));
        }
        if kind != HANDSHAKE && (self.speaker.is_none() || !self.message.is_empty()) {
            return Err(format!("a record of type {kind} before a whole hello"));
        }
        if kind != APPLICATION_DATA && self.view.encrypted_records > 0 {
            return Err(format!("a record of type {kind} after encrypted ones"));
        }
        Ok(())
    }

    /// Takes the bytes of a handshake record in the clear: hellos, whole or in parts.
    fn handshake(&mut self, body: &[u8]) -> Result<(), String> {
        self.message.extend(body);
        loop {
            let Some(&kind) = self.message.first() else { return Ok(()) };
            if !matches!(kind, CLIENT_HELLO | SERVER_HELLO) || self.speaker.is_some_and(|speaker| speaker != kind) {
                return Err(format!("handshake message {kind} in the clear"));
            }
            let Some(header) = self.message.get(..4) else { return Ok(()) };
            let length = usize::from(header[1]) << 16 | usize::from(header[2]) << 8 | usize::from(header[3]);
            if self.message.len() < 4 + length {
                return Ok(());
            }
            let rest = self.message.split_off(4 + length);
            let hello = std::mem::replace(&mut self.message, rest);
            self.hello(kind, Reader(&hello[4..]))?;
            self.speaker = Some(kind);
        }
    }

    fn hello(&mut self, kind: u8, mut hello: Reader<'_>) -> Result<(), String> {
        let read = if kind == CLIENT_HELLO { client_extensions(&mut hello) } else { server_extensions(&mut hello) };
        let extensions = read.ok_or("a hello that ends too early")?;
        for (number, body) in extensions {
            match (kind, number) {
                (CLIENT_HELLO, 0) => self.view.server_name = server_name(body),
                (CLIENT_HELLO, 16) => self.view.alpn = protocols(body).unwrap_or_default(),
                (SERVER_HELLO, 43) => self.view.chose_tls13 = Reader(body).u16() == Some(TLS_1_3),
                _ => (),
            }
        }
        if kind == SERVER_HELLO && !self.view.chose_tls13 {
            return Err("a server that chose an older version than TLS 1.3".to_owned());
        }
        Ok(())
    }
}

fn check_kind(kind: u8) -> Result<(), String> {
    match kind {
        CHANGE_CIPHER_SPEC | HANDSHAKE | APPLICATION_DATA => Ok(()),
        21 => Err("an alert in the clear".to_owned()),
        _ => Err(format!("byte {kind:#04x} where a record should begin")),
    }
}

type Extensions<'a> = Vec<(u16, &'a [u8])>;

fn client_extensions<'a>(hello: &mut Reader<'a>) -> Option<Extensions<'a>> {
    hello.take(2 + 32)?;
    hello.vector8()?;
    hello.vector16()?;
    hello.vector8()?;
    hello.extensions()
}

fn server_extensions<'a>(hello: &mut Reader<'a>) -> Option<Extensions<'a>> {
    hello.take(2 + 32)?;
    hello.vector8()?;
    hello.take(2 + 1)?;
    // TLS 1.2 may have none at all.
    if hello.0.is_empty() { Some(Vec::new()) } else { hello.extensions() }
}

fn server_name(body: &[u8]) -> Option<String> {
    let mut names = Reader(Reader(body).vector16()?);
    names.take(1)?;
    String::from_utf8(names.vector16()?.to_vec()).ok()
}

fn protocols(body: &[u8]) -> Option<Vec<String>> {
    let mut list = Reader(Reader(body).vector16()?);
    let mut all = Vec::new();
    while !list.0.is_empty() {
        all.push(String::from_utf8_lossy(list.vector8()?).into_owned());
    }
    Some(all)
}

/// Takes pieces off the front; `None` where there is too little.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (piece, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(piece)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|two| u16::from_be_bytes([two[0], two[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    fn extensions(&mut self) -> Option<Extensions<'a>> {
        let mut list = Reader(self.vector16()?);
        let mut all = Vec::new();
        while !list.0.is_empty() {
            all.push((list.u16()?, list.vector16()?));
        }
        Some(all)
    }
}

#[cfg(test)]
mod tests;
