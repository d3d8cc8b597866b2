//! Labels a connection by what its client sends first, off the bytes as they pass: nothing waits for it. Pure, one
//! byte after another, so the label cannot depend on how the bytes are cut up; it holds no more than a server name.

mod client_hello;

use client_hello::ClientHello;
use hauberk_mesh::FirstBytes;

const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What a request line of HTTP/1 has before its last digit.
const HTTP1_VERSION: &[u8; 7] = b"HTTP/1.";
/// The longest request line; servers take 8 KiB or less.
const MAX_REQUEST_LINE: u16 = 8192;
/// Type of the TLS record that a ClientHello begins with; no text protocol begins so.
const TLS_HANDSHAKE: u8 = 22;

/// What a byte leads to.
enum Next<T> {
    /// Still possible.
    Go(T),
    /// It is this protocol.
    Yes,
    /// It is not.
    No,
}

/// Reads the label off the client's bytes.
#[derive(Debug, Default)]
pub struct Labeler(State);

#[derive(Debug, Default)]
enum State {
    #[default]
    Empty,
    Text(Text),
    Tls(Box<ClientHello>),
    Settled {
        label: FirstBytes,
        sni: Option<Box<str>>,
    },
}

impl Labeler {
    /// Takes the next bytes from the client. Costs nothing once the label is settled.
    pub fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.settled() {
                return;
            }
            self.0 = std::mem::take(&mut self.0).next(*byte);
        }
    }

    /// The label; `none` until it is settled.
    pub fn label(&self) -> FirstBytes {
        match &self.0 {
            State::Settled { label, .. } => *label,
            State::Empty | State::Text(_) | State::Tls(_) => FirstBytes::None,
        }
    }

    /// The server name of the ClientHello, once the label is settled as `tls`.
    pub fn sni(&self) -> Option<&str> {
        match &self.0 {
            State::Settled { sni, .. } => sni.as_deref(),
            State::Empty | State::Text(_) | State::Tls(_) => None,
        }
    }

    /// Whether more bytes can change nothing.
    pub fn settled(&self) -> bool {
        matches!(self.0, State::Settled { .. })
    }

    /// The client sends no more: what is still undecided is `other`, unless it sent nothing.
    pub fn finish(&mut self) -> FirstBytes {
        if matches!(self.0, State::Text(_) | State::Tls(_)) {
            self.0 = State::settled(FirstBytes::Other);
        }
        self.label()
    }
}

impl State {
    fn settled(label: FirstBytes) -> Self {
        Self::Settled { label, sni: None }
    }

    fn next(self, byte: u8) -> Self {
        match self {
            Self::Empty if byte == TLS_HANDSHAKE => Self::tls(Box::default(), byte),
            Self::Empty => Text::default().next(byte),
            Self::Text(text) => text.next(byte),
            Self::Tls(hello) => Self::tls(hello, byte),
            settled @ Self::Settled { .. } => settled,
        }
    }

    fn tls(mut hello: Box<ClientHello>, byte: u8) -> Self {
        match hello.next(byte) {
            Next::Go(()) => Self::Tls(hello),
            Next::Yes => Self::Settled { label: FirstBytes::Tls, sni: hello.server_name() },
            Next::No => Self::settled(FirstBytes::Other),
        }
    }
}

/// The text protocols that are still possible.
#[derive(Debug)]
struct Text {
    line: Option<RequestLine>,
    /// How much of the HTTP/2 preface has come.
    preface: Option<usize>,
}

impl Default for Text {
    fn default() -> Self {
        Self { line: Some(RequestLine { part: Part::Method, length: 0 }), preface: Some(0) }
    }
}

impl Text {
    fn next(self, byte: u8) -> State {
        let preface = match self.preface.map_or(Next::No, |matched| preface(matched, byte)) {
            Next::Yes => return State::settled(FirstBytes::Http2),
            Next::Go(matched) => Some(matched),
            Next::No => None,
        };
        let line = match self.line.map_or(Next::No, |line| line.next(byte)) {
            Next::Yes => return State::settled(FirstBytes::Http1),
            Next::Go(line) => Some(line),
            Next::No => None,
        };
        if preface.is_none() && line.is_none() {
            return State::settled(FirstBytes::Other);
        }
        State::Text(Self { line, preface })
    }
}

fn preface(matched: usize, byte: u8) -> Next<usize> {
    match &HTTP2_PREFACE[matched..] {
        [expected] if *expected == byte => Next::Yes,
        [expected, ..] if *expected == byte => Next::Go(matched + 1),
        _ => Next::No,
    }
}

/// A request line of HTTP/1. Redis' inline commands, SIP and NATS begin alike; only the version at its end tells.
#[derive(Debug)]
struct RequestLine {
    part: Part,
    length: u16,
}

#[derive(Debug)]
enum Part {
    Method,
    TargetStart,
    Target,
    /// So many bytes of [`HTTP1_VERSION`] have come.
    Version(usize),
    Minor,
    LineEnd,
    LineFeed,
}

impl RequestLine {
    fn next(self, byte: u8) -> Next<Self> {
        let length = self.length + 1;
        if length > MAX_REQUEST_LINE {
            return Next::No;
        }
        let part = match (self.part, byte) {
            (Part::Method, b' ') if length > 1 => Part::TargetStart,
            (Part::Method, byte) if is_token(byte) => Part::Method,
            (Part::Target, b' ') => Part::Version(0),
            (Part::TargetStart | Part::Target, byte) if byte > b' ' && byte != 0x7f => Part::Target,
            (Part::Version(matched), byte) if HTTP1_VERSION[matched] == byte => match matched + 1 {
                whole if whole == HTTP1_VERSION.len() => Part::Minor,
                matched => Part::Version(matched),
            },
            (Part::Minor, b'0'..=b'9') => Part::LineEnd,
            (Part::LineEnd, b'\r') => Part::LineFeed,
            (Part::LineEnd | Part::LineFeed, b'\n') => return Next::Yes,
            _ => return Next::No,
        };
        Next::Go(Self { part, length })
    }
}

/// A character of a method (`tchar` of RFC 9110).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;
