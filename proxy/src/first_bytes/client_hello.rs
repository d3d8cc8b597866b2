//! Recognizes a whole, well-formed TLS ClientHello, spread over any number of records, and reads its server name.
//! Nothing else of it is kept.

use super::{Next, TLS_HANDSHAKE};

/// The longest plaintext record.
const MAX_RECORD: u32 = 1 << 14;
/// The longest ClientHello; those with post-quantum key shares have about 2 KiB.
const MAX_HELLO: u32 = 0xffff;
/// The longest server name: a DNS name.
const MAX_NAME: u32 = 253;
/// Handshake type.
const CLIENT_HELLO: u32 = 1;
/// Major version of every TLS record and hello.
const MAJOR: u32 = 3;
const RANDOM_LEN: u32 = 32;
const SERVER_NAME_EXTENSION: u32 = 0;
const HOST_NAME: u32 = 0;

/// A ClientHello, as far as it has come.
#[derive(Debug, Default)]
pub(super) struct ClientHello {
    record: Record,
    body: Body,
}

impl ClientHello {
    pub(super) fn next(&mut self, byte: u8) -> Next<()> {
        match self.record.next(byte) {
            Some(Layer::Framing) => Next::Go(()),
            Some(Layer::Content) => self.body.next(byte.into()),
            None => Next::No,
        }
    }

    /// The server name, once the hello is whole.
    pub(super) fn server_name(self) -> Option<Box<str>> {
        let name = String::from_utf8(self.body.name).ok()?;
        Some(name.into_boxed_str()).filter(|name| !name.is_empty())
    }
}

/// Strips the framing of records.
#[derive(Debug, Default)]
struct Record {
    /// Bytes of the header that have come.
    header: u8,
    /// Content bytes to come.
    left: u32,
}

enum Layer {
    Framing,
    Content,
}

impl Record {
    fn next(&mut self, byte: u8) -> Option<Layer> {
        if self.header == 5 {
            self.left -= 1;
            if self.left == 0 {
                self.header = 0;
            }
            return Some(Layer::Content);
        }
        let valid = match self.header {
            0 => byte == TLS_HANDSHAKE,
            1 => u32::from(byte) == MAJOR,
            2 => true,
            _ => {
                self.left = (self.left << 8) | u32::from(byte);
                self.header == 3 || (1..=MAX_RECORD).contains(&self.left)
            }
        };
        self.header += 1;
        valid.then_some(Layer::Framing)
    }
}

/// The number that comes next.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Field {
    #[default]
    Type,
    Length,
    Version,
    SessionLength,
    SuitesLength,
    CompressionsLength,
    ExtensionsLength,
    ExtensionType,
    ExtensionLength,
    ServerNameLength,
    NamesLength,
    NameType,
    NameLength,
}

impl Field {
    /// Bytes of the number.
    fn width(self) -> u8 {
        match self {
            Self::Type | Self::SessionLength | Self::CompressionsLength | Self::NameType => 1,
            Self::Length => 3,
            _ => 2,
        }
    }
}

/// The handshake message: numbers, most of them lengths of what is passed over before the next number.
#[derive(Debug, Default)]
struct Body {
    field: Field,
    /// The number under way, and how many of its bytes have come.
    number: u32,
    digits: u8,
    /// Bytes to pass over before `field`; those of the server name are kept.
    skip: u32,
    keep: bool,
    name: Vec<u8>,
    /// Bytes of the message to come, once its length is known.
    left: Option<u32>,
    /// Length of the server-name extension, later of its list.
    names: u32,
    server_name_seen: bool,
}

impl Body {
    fn next(&mut self, byte: u32) -> Next<()> {
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        if self.take(byte).is_none() {
            return Next::No;
        }
        match self.left {
            Some(0) if self.may_end() => Next::Yes,
            Some(0) => Next::No,
            _ => Next::Go(()),
        }
    }

    fn may_end(&self) -> bool {
        let between = matches!(self.field, Field::ExtensionsLength | Field::ExtensionType);
        between && self.digits == 0 && self.skip == 0
    }

    fn take(&mut self, byte: u32) -> Option<()> {
        if self.skip > 0 {
            self.skip -= 1;
            return if self.keep { self.keep(byte) } else { Some(()) };
        }
        self.keep = false;
        self.number = (self.number << 8) | byte;
        self.digits += 1;
        if self.digits == self.field.width() {
            let number = std::mem::take(&mut self.number);
            self.digits = 0;
            self.field = self.number(number)?;
        }
        Some(())
    }

    fn keep(&mut self, byte: u32) -> Option<()> {
        let byte = u8::try_from(byte).ok().filter(u8::is_ascii_graphic)?;
        self.name.push(byte);
        Some(())
    }

    /// A number is complete: what comes after it, or `None` if it cannot be.
    fn number(&mut self, number: u32) -> Option<Field> {
        match self.field {
            Field::Type => (number == CLIENT_HELLO).then_some(Field::Length),
            Field::Length => {
                self.left = Some(number);
                (1..=MAX_HELLO).contains(&number).then_some(Field::Version)
            }
            Field::Version => self.pass(RANDOM_LEN, Field::SessionLength).filter(|_| number >> 8 == MAJOR),
            Field::SessionLength => self.pass(number, Field::SuitesLength).filter(|_| number <= 32),
            Field::SuitesLength => self.pass(number, Field::CompressionsLength).filter(|_| number > 1),
            Field::CompressionsLength => self.pass(number, Field::ExtensionsLength).filter(|_| number > 0),
            Field::ExtensionsLength => (self.left == Some(number)).then_some(Field::ExtensionType),
            Field::ExtensionType if number == SERVER_NAME_EXTENSION => {
                let first = !std::mem::replace(&mut self.server_name_seen, true);
                first.then_some(Field::ServerNameLength)
            }
            Field::ExtensionType => Some(Field::ExtensionLength),
            Field::ExtensionLength => self.pass(number, Field::ExtensionType),
            Field::ServerNameLength => {
                self.names = number;
                Some(Field::NamesLength)
            }
            // One name is all that the list may have: there is but one type, and each type may come once.
            Field::NamesLength => (number + 2 == self.names).then_some(Field::NameType),
            Field::NameType => (number == HOST_NAME).then_some(Field::NameLength),
            Field::NameLength => {
                self.keep = true;
                let fits = number + 5 == self.names && (1..=MAX_NAME).contains(&number);
                self.pass(number, Field::ExtensionType).filter(|_| fits)
            }
        }
    }

    fn pass(&mut self, bytes: u32, then: Field) -> Option<Field> {
        self.skip = bytes;
        Some(then)
    }
}
