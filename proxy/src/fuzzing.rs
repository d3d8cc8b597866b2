//! What the fuzz targets run, each with the laws that it checks: any bytes, the code that the proxy runs on them, and a
//! panic if a law does not hold. No part of the API; `fuzz/` and the replay of its corpora are all that call it.

use hauberk_mesh::{FirstBytes, RESERVED_LABEL_PREFIX};
use linkerd2_proxy_api::destination::{DestinationProfile, Update};
use prost::Message as _;

use crate::{
    discovery::{Resolution, Target},
    first_bytes::Labeler,
    linkerd::{Header, HeaderError, HeaderReader, MAX_MESSAGE},
    wire::{Event, Open, ReadState, WireError},
};

/// A target's name, and what it runs.
pub type Entry = (&'static str, fn(&[u8]));

/// All targets of this crate.
pub const ENTRIES: [Entry; 5] = [
    ("frames", frames),
    ("linkerd_header", linkerd_header),
    ("client_hello", client_hello),
    ("request_line", request_line),
    ("discovery", discovery),
];

/// Cuts `bytes` as the byte before them says, so that the fuzzer chooses the chunking too.
fn cut(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (size, rest) = bytes.split_first()?;
    Some((usize::from(*size).max(1), rest))
}

/// `hauberk/1`. The first byte chooses the side, the second the chunks. What is read does not depend on how the bytes
/// are cut, nothing is read beyond the frame that is wanted, and an OPEN that is written again says the same.
pub fn frames(input: &[u8]) {
    let Some((side, rest)) = input.split_first() else { return };
    let Some((size, bytes)) = cut(rest) else { return };
    let new = if side % 2 == 0 { ReadState::server } else { ReadState::client };
    let whole = read_frames(new(), std::iter::once(bytes));
    assert_eq!(whole, read_frames(new(), bytes.chunks(size)), "in chunks of {size}");
    assert_eq!(whole, read_wanted(new(), bytes), "a frame at a time");
    for event in &whole {
        if let Ok(Seen::Open(open)) = event {
            assert!(open.port() != 0);
            let again = ReadState::server().advance(&open.encode()).map(|(_, event)| event == Event::Open(*open));
            assert_eq!(again, Ok(true));
        }
    }
}

#[derive(Debug, PartialEq)]
enum Seen {
    Open(Open),
    Data(Vec<u8>),
    Other(String),
}

fn read_frames<'a>(mut state: ReadState, chunks: impl Iterator<Item = &'a [u8]>) -> Vec<Result<Seen, WireError>> {
    let mut seen = Vec::new();
    for mut chunk in chunks {
        loop {
            match state.advance(chunk) {
                Ok((used, event)) => {
                    if event == Event::More {
                        assert_eq!(used, chunk.len());
                        break;
                    }
                    note(&mut seen, &event);
                    chunk = &chunk[used..];
                }
                Err(error) => {
                    seen.push(Err(error));
                    return seen;
                }
            }
            state.next_stream();
        }
    }
    seen
}

/// As the relay reads: never more than the frame under way can use.
fn read_wanted(mut state: ReadState, mut bytes: &[u8]) -> Vec<Result<Seen, WireError>> {
    let mut seen = Vec::new();
    while !bytes.is_empty() {
        let wants = state.wants();
        assert!(wants > 0, "a read of nothing would look like an end");
        let piece = &bytes[..wants.min(bytes.len())];
        match state.advance(piece) {
            Ok((used, event)) => {
                assert_eq!(used, piece.len(), "all that was wanted is used");
                bytes = &bytes[used..];
                if event != Event::More {
                    note(&mut seen, &event);
                }
            }
            Err(error) => {
                seen.push(Err(error));
                return seen;
            }
        }
        state.next_stream();
    }
    seen
}

/// DATA in a row is one: where it is cut is what may differ.
fn note(seen: &mut Vec<Result<Seen, WireError>>, event: &Event<'_>) {
    match event {
        Event::Open(open) => seen.push(Ok(Seen::Open(*open))),
        Event::Data(data) => {
            assert!(!data.is_empty());
            match seen.last_mut() {
                Some(Ok(Seen::Data(before))) => before.extend_from_slice(data),
                _ => seen.push(Ok(Seen::Data(data.to_vec()))),
            }
        }
        other => seen.push(Ok(Seen::Other(format!("{other:?}")))),
    }
}

/// Linkerd's transport header. The first byte chooses the chunks. What is read does not depend on them, what is left
/// over is what came after the header, and a header that is written again is read the same.
pub fn linkerd_header(input: &[u8]) {
    let Some((size, bytes)) = cut(input) else { return };
    let whole = read_header(bytes, bytes.len().max(1));
    assert_eq!(whole, read_header(bytes, size), "in chunks of {size}");
    if let Ok(Some((header, used))) = whole {
        assert!(header.port() != 0 && used <= bytes.len() && used <= MAX_MESSAGE + 27);
        let again = header.encode();
        let length = again.len();
        assert_eq!(read_header(&again, length), Ok(Some((header, length))));
    }
}

fn read_header(bytes: &[u8], size: usize) -> Result<Option<(Header, usize)>, HeaderError> {
    let mut reader = HeaderReader::default();
    let mut used = 0;
    for chunk in bytes.chunks(size) {
        let (taken, header) = reader.advance(chunk)?;
        used += taken;
        if let Some(header) = header {
            return Ok(Some((header, used)));
        }
        assert_eq!(taken, chunk.len(), "all is the header's until it is whole");
    }
    Ok(None)
}

/// First bytes, begun as a ClientHello begins, so that the fuzzer need not find that out.
pub fn client_hello(input: &[u8]) {
    let Some((size, bytes)) = cut(input) else { return };
    let hello = [&[22, 3, 1][..], bytes].concat();
    let label = label(&hello, size);
    assert!(matches!(label, FirstBytes::Tls | FirstBytes::Other), "{label}");
}

/// First bytes of any kind.
pub fn request_line(input: &[u8]) {
    let Some((size, bytes)) = cut(input) else { return };
    let label = label(bytes, size);
    assert_eq!(label == FirstBytes::None, bytes.is_empty());
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    assert!(label != FirstBytes::Http1 || line.windows(7).any(|part| part == b"HTTP/1."));
}

/// The label, which is the same for the whole as for chunks of `size`.
fn label(bytes: &[u8], size: usize) -> FirstBytes {
    let read = |size: usize| {
        let mut labeler = Labeler::default();
        bytes.chunks(size).for_each(|chunk| labeler.feed(chunk));
        let label = labeler.finish();
        let sni = labeler.sni().map(str::to_owned);
        assert!(sni.as_ref().is_none_or(|name| label == FirstBytes::Tls && (1..=253).contains(&name.len())));
        (label, sni)
    };
    let whole = read(bytes.len().max(1));
    assert_eq!(whole, read(size), "in chunks of {size}");
    whole.0
}

/// What the destination service says. Each message: a byte for its kind, two for its length, and its bytes. What is
/// held keeps the promises that the rest of the proxy builds on.
pub fn discovery(mut input: &[u8]) {
    let mut resolution = Resolution::default();
    resolution.reopened();
    while let Some((&[kind, high, low], rest)) = input.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        let (message, rest) = rest.split_at(length);
        input = rest;
        match kind % 8 {
            0 => resolution.reopened(),
            1 | 2 => {
                if let Ok(profile) = DestinationProfile::decode(message) {
                    resolution.profile(profile);
                }
            }
            _ => {
                if let Ok(update) = Update::decode(message) {
                    resolution.update(update);
                }
            }
        }
        if let Some(target) = resolution.target() {
            check_target(&target);
        }
    }
}

fn check_target(target: &Target) {
    let addrs: Vec<_> = target.endpoints.iter().map(|endpoint| endpoint.addr).collect();
    assert!(addrs.is_sorted() && addrs.windows(2).all(|pair| pair[0] != pair[1]), "by address, none twice");
    assert!(target.affinity.is_none_or(|lasts| !lasts.is_zero()));
    for endpoint in target.endpoints.iter() {
        assert_eq!(endpoint.identity.is_some(), endpoint.mesh_port.is_some(), "both or none");
        assert_ne!(endpoint.identity.is_some(), endpoint.reason.is_some(), "meshed, or a reason");
        assert!(endpoint.weight > 0 && endpoint.addr.port() != 0 && endpoint.mesh_port != Some(0));
        assert!(endpoint.labels.keys().all(|key| !key.starts_with(RESERVED_LABEL_PREFIX)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs every file of a target's corpus; how many there are.
    fn replay((name, entry): Entry) -> usize {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
        let files = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        files.map(|file| entry(&std::fs::read(file.expect("readable").path()).expect("readable"))).count()
    }

    #[test]
    fn the_corpora_that_fuzzing_found_break_no_law() {
        for entry in ENTRIES {
            assert!(replay(entry) > 10, "{} has a corpus", entry.0);
        }
    }
}
