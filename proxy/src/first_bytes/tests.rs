//! Samples of protocols, and the law that the label is the same however the bytes are cut up.

use std::sync::Arc;

use hauberk_mesh::FirstBytes;
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs::default_provider};

use super::*;

/// The ClientHello that rustls sends to `server`; to an IP address it has no server name.
fn client_hello(server: &str) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let server = server.to_owned().try_into().expect("a server name");
    let mut client = ClientConnection::new(Arc::new(config), server).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("a vector takes all");
    bytes
}

/// The content of `record` as records of at most `size` bytes.
fn in_records(record: &[u8], size: usize) -> Vec<u8> {
    let chunks = record[5..].chunks(size);
    chunks.flat_map(|chunk| [&record[..3], &u16::to_be_bytes(chunk.len() as u16), chunk].concat()).collect()
}

fn samples() -> Vec<(Vec<u8>, FirstBytes)> {
    use FirstBytes::{Http1, Http2, Other, Tls};
    let hello = client_hello("db.shop.svc");
    let text: [(&[u8], FirstBytes); 20] = [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Http1),
        (b"POST /a?b=c%20d HTTP/1.0\r\n\r\n", Http1),
        (b"OPTIONS * HTTP/1.1\n\n", Http1),
        (b"M-SEARCH * HTTP/1.1\r\n", Http1),
        (b"PRI * HTTP/1.1\r\n\r\n", Http1),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04\0\0\0\0\0", Http2),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rx", Other),
        (b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", Other),
        (b"GET k\r\n", Other),
        (b"SET k HTTP/1.1x\r\n", Other),
        (b"OPTIONS sip:bob@example.com SIP/2.0\r\n", Other),
        (b"CONNECT {\"verbose\":false,\"name\": \"HTTP/1.1\"}\r\n", Other),
        (b"EHLO client.example\r\n", Other),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", Other),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", Other),
        (b"\x20\0\0\x01\x85\xa6\xff\x01\0\0\0\x01\x21\0\0\0", Other),
        (b" / HTTP/1.1\r\n", Other),
        (b"GET / HTTP/1.x\r\n", Other),
        (b"GET /\rHTTP/1.1\r\n", Other),
        (b"GET  HTTP/1.1\r\n", Other),
    ];
    let mut samples: Vec<_> = text.map(|(bytes, label)| (bytes.to_vec(), label)).to_vec();
    samples.push((in_records(&hello, 100), Tls));
    samples.push(([&client_hello("192.0.2.1")[..], b"\x14\x03\x03\0\x01\x01"].concat(), Tls));
    samples.push((hello, Tls));
    samples
}

/// Label and server name after `bytes` came in chunks of the given sizes, and no more.
fn read(bytes: &[u8], sizes: &[usize]) -> (FirstBytes, Option<String>) {
    let mut labeler = Labeler::default();
    let mut rest = bytes;
    for size in sizes.iter().cycle() {
        let (chunk, later) = rest.split_at((*size).min(rest.len()));
        labeler.feed(chunk);
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    (labeler.finish(), labeler.sni().map(str::to_owned))
}

#[test]
fn labels_each_protocol() {
    for (bytes, label) in samples() {
        assert_eq!(read(&bytes, &[usize::MAX]).0, label, "{}", bytes.escape_ascii());
    }
}

#[test]
fn nothing_is_none_and_too_little_is_other() {
    assert_eq!(Labeler::default().finish(), FirstBytes::None);
    for bytes in [&b"G"[..], b"GET / HTTP/1.1\r", b"PRI * HTTP/2.0\r\n\r\nSM", &client_hello("a.b")[..200]] {
        let mut labeler = Labeler::default();
        labeler.feed(bytes);
        assert!(!labeler.settled());
        assert_eq!(labeler.label(), FirstBytes::None);
        assert_eq!(labeler.finish(), FirstBytes::Other);
        assert!(labeler.settled());
    }
}

#[test]
fn the_server_name_is_read_whatever_the_records() {
    let hello = client_hello("db.shop.svc");
    for size in [1, 2, 7, 100, 1 << 14] {
        let read = read(&in_records(&hello, size), &[usize::MAX]);
        assert_eq!(read, (FirstBytes::Tls, Some("db.shop.svc".to_owned())), "{size}");
    }
    assert_eq!(read(&client_hello("192.0.2.1"), &[1]), (FirstBytes::Tls, None));
}

/// A ClientHello with these extensions.
fn hello_with(extensions: &[u8]) -> Vec<u8> {
    let length = |bytes: &[u8]| u16::try_from(bytes.len()).expect("short").to_be_bytes();
    let head = [&b"\x03\x03"[..], &[7; 32], b"\0\0\x02\x13\x01\x01\0"].concat();
    let body = [&head[..], &length(extensions), extensions].concat();
    let message = [&b"\x01\0"[..], &length(&body), &body].concat();
    [&b"\x16\x03\x01"[..], &length(&message), &message].concat()
}

#[test]
fn a_malformed_hello_is_other() {
    let name = b"\0\0\0\x08\0\x06\0\0\x03a.b";
    assert_eq!(read(&hello_with(name), &[1]), (FirstBytes::Tls, Some("a.b".to_owned())));
    assert_eq!(read(&hello_with(b""), &[1]), (FirstBytes::Tls, None));
    for extensions in [
        &b"\0\0\0\x09\0\x06\0\0\x03a.b"[..],
        b"\0\0\0\x08\0\x05\0\0\x03a.b",
        b"\0\0\0\x08\0\x06\x01\0\x03a.b",
        b"\0\0\0\x08\0\x06\0\0\x02a.b",
        b"\0\0\0\x08\0\x06\0\0\x04a.b",
        b"\0\0\0\x08\0\x06\0\0\x03a\nb",
        b"\0\0\0\x05\0\x03\0\0\0",
        b"\0\0\0\x08\0\x06\0\0\x03a.b\0\0\0\x08\0\x06\0\0\x03a.b",
        // A second name that would pass for an extension.
        b"\0\0\0\x0c\0\x0a\0\0\x03a.b\0\x17\0\0",
        b"\0\x2b\0\x03\x02\x03",
        b"\0",
        b"\0\x2b\0",
    ] {
        assert_eq!(read(&hello_with(extensions), &[1]), (FirstBytes::Other, None), "{}", extensions.escape_ascii());
    }
    let valid = hello_with(name);
    for (at, bytes) in [
        (0, &[23][..]),
        (1, &[2]),
        (3, &[0, 0]),
        (3, &[0x40, 1]),
        (5, &[2]),
        (6, &[1, 0, 0]),
        (6, &[0, 0, 0]),
        (9, &[2]),
        (43, &[33]),
        (44, &[0, 0]),
        (48, &[0]),
        (50, &[0, 0]),
        (50, &[0, 99]),
    ] {
        let mut hello = valid.clone();
        hello[at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(read(&hello, &[1]), (FirstBytes::Other, None), "{at}: {bytes:?}");
    }
}

#[test]
fn a_line_without_end_is_other_at_its_bound() {
    let mut labeler = Labeler::default();
    labeler.feed(b"GET /");
    labeler.feed(&[b'a'; MAX_REQUEST_LINE as usize - 5]);
    assert!(!labeler.settled());
    labeler.feed(b"a");
    assert_eq!((labeler.settled(), labeler.label()), (true, FirstBytes::Other));
}

#[test]
fn the_labeler_is_small() {
    assert!(size_of::<Labeler>() <= 48, "{}", size_of::<Labeler>());
    assert!(size_of::<ClientHello>() <= 96, "{}", size_of::<ClientHello>());
}

proptest! {
    #[test]
    fn the_label_does_not_depend_on_the_chunks(which: Index, cut: Index, sizes in vec(0usize..50, 1..8)) {
        let samples = samples();
        let (bytes, label) = which.get(&samples);
        let sizes = [&sizes[..], &[1]].concat();
        let whole = read(bytes, &[usize::MAX]);
        prop_assert_eq!(whole.0, *label);
        prop_assert_eq!(&read(bytes, &sizes), &whole);
        prop_assert_eq!(&read(bytes, &[1]), &whole);
        let part = &bytes[..cut.index(bytes.len() + 1)];
        prop_assert_eq!(read(part, &sizes), read(part, &[usize::MAX]), "nor does that of a part");
    }

    #[test]
    fn a_settled_label_stays(which: Index, cut: Index, more in vec(any::<u8>(), 0..100)) {
        let samples = samples();
        let (bytes, _) = which.get(&samples);
        let mut labeler = Labeler::default();
        labeler.feed(&bytes[..cut.index(bytes.len() + 1)]);
        let before = (labeler.settled(), labeler.label(), labeler.sni().map(str::to_owned));
        labeler.feed(&more);
        prop_assert!(!before.0 || before == (labeler.settled(), labeler.label(), labeler.sni().map(str::to_owned)));
    }

    #[test]
    fn no_bytes_panic(
        start in select(Vec::from([&b""[..], b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c\x03\x03", b"GET "])),
        bytes in vec(any::<u8>(), 0..3000),
        sizes in vec(1usize..50, 1..8),
    ) {
        let bytes = [start, &bytes].concat();
        prop_assert_eq!(read(&bytes, &sizes), read(&bytes, &[usize::MAX]));
    }

    #[test]
    fn a_damaged_hello_is_read_the_same_in_any_chunks(at: Index, to: u8, size in 1usize..50) {
        let mut hello = hello_with(b"\0\x2b\0\x03\x02\x03\x04\0\0\0\x08\0\x06\0\0\x03a.b");
        *at.get_mut(&mut hello) = to;
        prop_assert_eq!(read(&hello, &[size]), read(&hello, &[usize::MAX]));
    }
}
