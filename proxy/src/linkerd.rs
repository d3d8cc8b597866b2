//! Linkerd's transport header: what the client sends first under the ALPN `transport.l5d.io/v1`, before the
//! application's bytes. Pure: bytes in, header out; it holds no more than one bounded header.

use prost::Message;

const PREFACE: &[u8; 23] = b"transport.l5d.io/v1\r\n\r\n";
/// Preface, and the length of the message as 4 bytes, big-endian.
const PREFIX_LEN: usize = PREFACE.len() + 4;
/// The longest message that we take; the longest DNS name makes one of 270 bytes.
pub const MAX_MESSAGE: usize = 4096;

/// What is wrong with a header. Each ends the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Another protocol.
    #[error("the connection does not begin with the preface of transport.l5d.io/v1")]
    Preface,
    /// More than we hold.
    #[error("the transport header announces {0} bytes: at most {MAX_MESSAGE} allowed")]
    TooLong(u32),
    /// Not the message.
    #[error("the transport header is no protobuf Header: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// No port of TCP.
    #[error("the transport header names port {0}: 1 to 65535 allowed")]
    Port(i32),
}

/// What the client says that it will speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionProtocol {
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// A transport header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    port: u16,
    name: Option<String>,
    protocol: Option<SessionProtocol>,
}

impl Header {
    /// Opaque bytes to `port` of the pod, the only header that we send; `None` for port 0.
    pub fn opaque(port: u16) -> Option<Self> {
        if port == 0 { None } else { Some(Self { port, name: None, protocol: None }) }
    }

    /// The application's port, never 0.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The name that the client dialled, if it says.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// What the client will speak; `None` is opaque.
    pub fn protocol(&self) -> Option<SessionProtocol> {
        self.protocol
    }

    /// Preface, length and message.
    pub fn encode(&self) -> Vec<u8> {
        let message = message::Header::from(self);
        // A message that we make is far shorter than 4 GiB.
        let length = message.encoded_len() as u32;
        [&PREFACE[..], &length.to_be_bytes(), &message.encode_to_vec()].concat()
    }

    fn parse(message: &[u8]) -> Result<Self, HeaderError> {
        let message::Header { port, name, session_protocol } = message::Header::decode(message)?;
        let port = u16::try_from(port).ok().filter(|port| *port != 0).ok_or(HeaderError::Port(port))?;
        let protocol = session_protocol.and_then(|protocol| protocol.kind).map(|kind| match kind {
            message::Kind::Http1(_) => SessionProtocol::Http1,
            message::Kind::Http2(_) => SessionProtocol::Http2,
        });
        Ok(Self { port, name: Some(name).filter(|name| !name.is_empty()), protocol })
    }
}

/// Reads one header from bytes in any chunking.
#[derive(Debug, Default)]
pub struct HeaderReader {
    /// All that has come, up to the end of the message. Grows with what comes, not with what is announced.
    held: Vec<u8>,
}

impl HeaderReader {
    /// How many bytes of `input` belong to the header (all, until it is whole), and the header once it is. What follows
    /// them is the application's. After a header or an error the reader is of no further use.
    pub fn advance(&mut self, input: &[u8]) -> Result<(usize, Option<Header>), HeaderError> {
        let prefix = self.hold(input, PREFIX_LEN);
        let known = self.held.len().min(PREFACE.len());
        if self.held[..known] != PREFACE[..known] {
            return Err(HeaderError::Preface);
        }
        let Some(length) = self.held.get(PREFACE.len()..).and_then(|rest| rest.first_chunk()) else {
            return Ok((prefix, None));
        };
        let length = u32::from_be_bytes(*length);
        if length as usize > MAX_MESSAGE {
            return Err(HeaderError::TooLong(length));
        }
        let whole = PREFIX_LEN + length as usize;
        let consumed = prefix + self.hold(&input[prefix..], whole);
        let header = (self.held.len() == whole).then(|| Header::parse(&self.held[PREFIX_LEN..])).transpose()?;
        Ok((consumed, header))
    }

    /// Takes from `input` what is missing to `whole` bytes.
    fn hold(&mut self, input: &[u8], whole: usize) -> usize {
        let taken = whole.saturating_sub(self.held.len()).min(input.len());
        self.held.extend_from_slice(&input[..taken]);
        taken
    }
}

/// The protobuf message, as Linkerd's proxies write it.
mod message {
    use prost::{Message, Oneof};

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Header {
        #[prost(int32, tag = "1")]
        pub(super) port: i32,
        #[prost(string, tag = "2")]
        pub(super) name: String,
        #[prost(message, optional, tag = "3")]
        pub(super) session_protocol: Option<SessionProtocol>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct SessionProtocol {
        #[prost(oneof = "Kind", tags = "1, 2")]
        pub(super) kind: Option<Kind>,
    }

    #[derive(Clone, PartialEq, Oneof)]
    pub(super) enum Kind {
        #[prost(message, tag = "1")]
        Http1(Empty),
        #[prost(message, tag = "2")]
        Http2(Empty),
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Empty {}

    impl From<&super::Header> for Header {
        fn from(header: &super::Header) -> Self {
            let kind = header.protocol.map(|protocol| match protocol {
                super::SessionProtocol::Http1 => Kind::Http1(Empty {}),
                super::SessionProtocol::Http2 => Kind::Http2(Empty {}),
            });
            let session_protocol = kind.map(|kind| SessionProtocol { kind: Some(kind) });
            Self { port: header.port.into(), name: header.name.clone().unwrap_or_default(), session_protocol }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    /// Port, name, protocol; length and message.
    type Vector = (u16, Option<&'static str>, Option<SessionProtocol>, &'static [u8]);

    /// Messages written by another encoder: the field numbers of the published format given to protoc 3.21.12
    /// (`--python_out`), serialized by Python's protobuf 7.36.2 with `SerializeToString()`, `struct.pack(">I", len)`
    /// before them.
    const VECTORS: [Vector; 6] = [
        (6379, None, None, b"\0\0\0\x03\x08\xeb\x31"),
        (80, None, None, b"\0\0\0\x02\x08\x50"),
        (65535, None, None, b"\0\0\0\x04\x08\xff\xff\x03"),
        (
            8080,
            Some("web.shop.svc.cluster.local"),
            None,
            b"\0\0\0\x1f\x08\x90\x3f\x12\x1a\x77\x65\x62\x2e\x73\x68\x6f\x70\x2e\x73\x76\x63\x2e\x63\x6c\x75\x73\x74\x65\x72\
              \x2e\x6c\x6f\x63\x61\x6c",
        ),
        (4143, None, Some(SessionProtocol::Http1), b"\0\0\0\x07\x08\xaf\x20\x1a\x02\x0a\0"),
        (80, Some("a:80"), Some(SessionProtocol::Http2), b"\0\0\0\x0c\x08\x50\x12\x04\x61\x3a\x38\x30\x1a\x02\x12\0"),
    ];

    fn vectors() -> impl Iterator<Item = (Header, Vec<u8>)> {
        VECTORS.iter().map(|(port, name, protocol, bytes)| {
            let header = Header { port: *port, name: name.map(str::to_owned), protocol: *protocol };
            (header, framed(bytes))
        })
    }

    /// The preface as bytes of its own, so that a slip in the constant shows.
    fn framed(rest: &[u8]) -> Vec<u8> {
        let preface = b"\x74\x72\x61\x6e\x73\x70\x6f\x72\x74\x2e\x6c\x35\x64\x2e\x69\x6f\x2f\x76\x31\x0d\x0a\x0d\x0a";
        [&preface[..], rest].concat()
    }

    /// The header, and what is left over, of bytes that come in chunks of the given sizes.
    fn read(bytes: &[u8], sizes: &[usize]) -> Result<Option<(Header, Vec<u8>)>, HeaderError> {
        let mut reader = HeaderReader::default();
        let mut rest = bytes;
        for size in sizes.iter().cycle() {
            let size = (*size).min(rest.len());
            let (consumed, header) = reader.advance(&rest[..size])?;
            assert!(reader.held.len() <= PREFIX_LEN + MAX_MESSAGE);
            rest = &rest[consumed..];
            match header {
                Some(header) => return Ok(Some((header, rest.to_vec()))),
                None => assert_eq!(consumed, size),
            }
            if rest.is_empty() {
                break;
            }
        }
        Ok(None)
    }

    #[test]
    fn writes_the_bytes_of_another_encoder() {
        for (header, bytes) in vectors() {
            assert_eq!(header.encode(), bytes, "{header:?}");
        }
        let opaque = Header::opaque(6379).expect("not port 0");
        assert_eq!(opaque.encode(), framed(b"\0\0\0\x03\x08\xeb\x31"));
        assert_eq!((opaque.port(), opaque.name(), opaque.protocol()), (6379, None, None));
        assert_eq!(Header::opaque(0), None);
    }

    #[test]
    fn reads_the_bytes_of_another_encoder_and_leaves_the_rest() {
        for (header, bytes) in vectors() {
            let with_rest = [&bytes[..], b"\0rest"].concat();
            let expected = Ok(Some((header, b"\0rest".to_vec())));
            for sizes in [&[usize::MAX][..], &[1], &[5, 23, 2]] {
                assert_eq!(read(&with_rest, sizes), expected);
            }
            assert_eq!(read(&bytes[..bytes.len() - 1], &[usize::MAX]), Ok(None), "not whole");
        }
    }

    #[test]
    fn refuses_what_is_no_header() {
        for (rest, message) in [
            (&b"\0\0\0\0"[..], "names port 0: 1 to 65535"),
            (b"\0\0\0\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "names port -1"),
            (b"\0\0\0\x04\x08\x80\x80\x04", "names port 65536"),
            (b"\0\0\x10\x01", "announces 4097 bytes: at most 4096"),
            (b"\xff\xff\xff\xff", "announces 4294967295 bytes"),
            (b"\0\0\0\x02\x08\x80", "no protobuf Header"),
            (b"\0\0\0\x03\x12\x01\xff", "no protobuf Header"),
        ] {
            let error = read(&framed(rest), &[1]).expect_err(message).to_string();
            assert!(error.contains(message), "{error}");
        }
        for bytes in [&b"G"[..], b"transport.l5d.io/v2", b"transport.l5d.io/v1\r\n\n"] {
            assert_eq!(read(bytes, &[1]), Err(HeaderError::Preface));
        }
    }

    #[test]
    fn a_protocol_that_we_do_not_know_is_opaque() {
        for rest in [&b"\0\0\0\x04\x08\x50\x1a\0"[..], b"\0\0\0\x06\x08\x50\x1a\x02\x1a\0"] {
            let header = Header::opaque(80).expect("not port 0");
            assert_eq!(read(&framed(rest), &[usize::MAX]), Ok(Some((header, vec![]))));
        }
    }

    proptest! {
        #[test]
        fn a_header_survives_being_written(port in 1u16.., name in "[a-z0-9.:-]{0,80}", which in 0..3usize) {
            let protocol = [None, Some(SessionProtocol::Http1), Some(SessionProtocol::Http2)][which];
            let header = Header { port, name: Some(name).filter(|name| !name.is_empty()), protocol };
            prop_assert_eq!(read(&header.encode(), &[7]), Ok(Some((header, vec![]))));
        }

        #[test]
        fn no_bytes_panic(
            bytes in vec(any::<u8>(), 0..6000), framing in any::<bool>(), sizes in vec(1usize..500, 1..6),
        ) {
            let bytes = if framing {
                let length = u32::try_from(bytes.len()).expect("short").to_be_bytes();
                framed(&[&length[..], &bytes].concat())
            } else {
                bytes
            };
            prop_assert_eq!(read(&bytes, &sizes), read(&bytes, &[usize::MAX]));
        }
    }
}
