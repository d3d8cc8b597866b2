//! Tables and laws of the codec.

use hauberk_mesh::FailReason;
use proptest::{collection::vec, prelude::*};

use super::{read::take, *};

/// An event with its bytes, DATA of one frame or of several in a row joined: what must not depend on the chunking.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Open(Open),
    Opened,
    Failed(FailReason),
    Data(Vec<u8>),
    End,
    Reset,
    Error(WireError),
}

/// Reads `chunks` as a relay would, up to the first error.
fn read(mut state: ReadState, chunks: &[&[u8]]) -> Vec<Seen> {
    let mut seen = Vec::new();
    for chunk in chunks {
        let mut rest = *chunk;
        loop {
            match state.advance(rest) {
                Ok((consumed, Event::More)) => {
                    assert_eq!(consumed, rest.len(), "More only when the input is used up");
                    break;
                }
                Ok((consumed, event)) => {
                    assert!(consumed <= rest.len());
                    if let Event::Data(data) = event {
                        assert_eq!(data, &rest[consumed - data.len()..consumed], "the last bytes consumed");
                    }
                    rest = &rest[consumed..];
                    note(&mut seen, event);
                }
                Err(error) => {
                    seen.push(Seen::Error(error));
                    return seen;
                }
            }
            if state.ended() {
                assert!(state.next_stream());
            }
        }
    }
    seen
}

fn note(seen: &mut Vec<Seen>, event: Event<'_>) {
    let event = match event {
        Event::More => unreachable!("handled by the caller"),
        Event::Open(open) => Seen::Open(open),
        Event::Opened => Seen::Opened,
        Event::Failed(reason) => Seen::Failed(reason),
        Event::End => Seen::End,
        Event::Reset => Seen::Reset,
        Event::Data(data) => {
            assert!(!data.is_empty());
            if let Some(Seen::Data(before)) = seen.last_mut() {
                before.extend_from_slice(data);
                return;
            }
            Seen::Data(data.to_vec())
        }
    };
    seen.push(event);
}

fn open(port: u16) -> Open {
    Open::bytes(port).expect("not port 0")
}

fn data(payload: &[u8]) -> Vec<u8> {
    [&data_header(payload.len()), payload].concat()
}

fn unexpected(frame: &'static str, allowed: &'static str) -> Seen {
    Seen::Error(WireError::Unexpected { frame, allowed })
}

#[test]
fn frames_have_the_bytes_that_the_specification_says() {
    assert_eq!(open(6379).encode(), [1, 0, 0, 3, 0x18, 0xeb, 0]);
    assert_eq!(OPENED, [2, 0, 0, 0]);
    assert_eq!(failed(FailReason::TimedOut), [3, 0, 0, 1, 3]);
    assert_eq!(data_header(15_996), [4, 0, 0x3e, 0x7c]);
    assert_eq!(END, [5, 0, 0, 0]);
    assert_eq!(RESET, [6, 0, 0, 0]);
    assert_eq!(MAX_DATA_SENT + HEADER_LEN, 16_000);
    assert_eq!(Open::bytes(0), None);
}

#[test]
fn a_connection_carries_one_stream_after_another() {
    let requests = [&open(80).encode()[..], &data(b"GET"), &END, &open(81).encode(), &END].concat();
    let get = Seen::Data(b"GET".to_vec());
    assert_eq!(
        read(ReadState::server(), &[&requests]),
        [Seen::Open(open(80)), get.clone(), Seen::End, Seen::Open(open(81)), Seen::End]
    );
    let answers = [&OPENED[..], &data(b"GET"), &END, &OPENED, &RESET].concat();
    assert_eq!(read(ReadState::client(), &[&answers]), [Seen::Opened, get, Seen::End, Seen::Opened, Seen::Reset]);
}

#[test]
fn a_stream_begins_only_once_the_last_has_ended() {
    let mut state = ReadState::server();
    let requests = [&open(80).encode()[..], &END, &open(81).encode()].concat();
    assert_eq!(state.advance(&requests), Ok((7, Event::Open(open(80)))));
    assert!(!state.next_stream(), "END has not been read");
    assert_eq!(state.advance(&requests[7..]), Ok((4, Event::End)));
    assert!(state.ended());
    let early = state.clone().advance(&requests[11..]);
    assert_eq!(early, Err(WireError::Unexpected { frame: "OPEN", allowed: "RESET" }));
    assert!(state.next_stream());
    assert!(state.before_stream());
    assert_eq!(state.advance(&requests[11..]), Ok((7, Event::Open(open(81)))));
}

#[test]
fn an_unread_byte_is_no_clean_end() {
    let mut state = ReadState::server();
    assert!(state.before_stream());
    assert_eq!(state.advance(&[1]), Ok((1, Event::More)));
    assert!(!state.before_stream());
    let mut state = ReadState::client();
    for (frame, event) in [(OPENED, Event::Opened), (END, Event::End)] {
        assert_eq!(state.advance(&frame), Ok((4, event)));
    }
    assert_eq!(state.advance(&[6]), Ok((1, Event::More)));
    assert!(!state.ended() && !state.next_stream());
}

#[test]
fn what_may_not_come_now_is_refused() {
    let (request, failed) = (open(80).encode(), failed(FailReason::Refused));
    let (server, client) = (ReadState::server, ReadState::client);
    let ended = "RESET";
    let streaming = "DATA, END or RESET";
    for (state, bytes, refused) in [
        (server(), OPENED.to_vec(), unexpected("OPENED", "OPEN or RESET")),
        (server(), failed.to_vec(), unexpected("FAILED", "OPEN or RESET")),
        (server(), data(b"x"), unexpected("DATA", "OPEN or RESET")),
        (server(), END.to_vec(), unexpected("END", "OPEN or RESET")),
        (server(), [request, request].concat(), unexpected("OPEN", streaming)),
        (server(), [&request[..], &OPENED].concat(), unexpected("OPENED", streaming)),
        (client(), request.to_vec(), unexpected("OPEN", "OPENED, FAILED or RESET")),
        (client(), data(b"x"), unexpected("DATA", "OPENED, FAILED or RESET")),
        (client(), END.to_vec(), unexpected("END", "OPENED, FAILED or RESET")),
        (client(), [OPENED, OPENED].concat(), unexpected("OPENED", streaming)),
        (client(), [&OPENED[..], &failed].concat(), unexpected("FAILED", streaming)),
        (client(), [&OPENED[..], &request].concat(), unexpected("OPEN", streaming)),
        (client(), [&failed[..], &RESET].concat(), unexpected("RESET", "nothing")),
        (client(), [RESET, OPENED].concat(), unexpected("OPENED", "nothing")),
    ] {
        assert_eq!(read(state, &[&bytes]).last(), Some(&refused), "{bytes:?}");
    }
    for late in [data(b"x"), END.to_vec(), request.to_vec()] {
        let mut state = server();
        for frame in [&request[..], &END] {
            state.advance(frame).expect("in order");
        }
        let error = state.advance(&late).expect_err("after END");
        assert!(matches!(error, WireError::Unexpected { allowed, .. } if allowed == ended), "{error}");
    }
}

#[test]
fn a_length_is_refused_as_soon_as_the_header_is_read() {
    for (header, message) in [
        ([1, 0, 0, 2], "OPEN announces 2 bytes of payload: 3 to 256 allowed"),
        ([1, 0, 1, 1], "OPEN announces 257 bytes of payload: 3 to 256 allowed"),
        // Its low 16 bits alone would pass.
        ([1, 1, 0, 3], "OPEN announces 65539 bytes of payload: 3 to 256 allowed"),
        ([2, 0, 0, 1], "OPENED announces 1 bytes of payload: 0 allowed"),
        ([3, 0, 0, 0], "FAILED announces 0 bytes of payload: 1 allowed"),
        ([3, 0, 0, 2], "FAILED announces 2 bytes of payload: 1 allowed"),
        ([4, 0, 0, 0], "DATA announces 0 bytes of payload: 1 to 65536 allowed"),
        ([4, 1, 0, 1], "DATA announces 65537 bytes of payload: 1 to 65536 allowed"),
        ([5, 0, 0, 1], "END announces 1 bytes of payload: 0 allowed"),
        ([6, 255, 255, 255], "RESET announces 16777215 bytes of payload: 0 allowed"),
        ([0, 0, 0, 0], "frame type 0 is not one of hauberk/1 (1 to 6)"),
        ([7, 0, 0, 0], "frame type 7 is not one of hauberk/1 (1 to 6)"),
    ] {
        let error = ReadState::server().advance(&header).expect_err(message);
        assert_eq!(error.to_string(), message);
    }
    let mut state = ReadState::server();
    assert_eq!(state.advance(&[&open(1).encode()[..], &[4, 1, 0, 0]].concat()), Ok((7, Event::Open(open(1)))));
    assert_eq!(state.advance(&[4, 1, 0, 0]), Ok((4, Event::More)), "65536 is the most");
}

#[test]
fn extension_bytes_of_open_are_ignored() {
    for extension in [1, 100, 253] {
        let mut frame = vec![1];
        frame.extend_from_slice(&u32::to_be_bytes(3 + extension)[1..]);
        frame.extend_from_slice(&[0, 80, 0]);
        frame.resize(frame.len() + extension as usize, 0xff);
        let before_last = &frame[..frame.len() - 1];
        assert_eq!(read(ReadState::server(), &[before_last]), []);
        frame.extend_from_slice(&END);
        assert_eq!(read(ReadState::server(), &[&frame]), [Seen::Open(open(80)), Seen::End], "{extension}");
    }
}

#[test]
fn open_must_name_a_port_and_a_known_kind() {
    for (payload, error) in [
        ([0, 0, 0], WireError::PortZero),
        ([0, 80, 1], WireError::UnknownKind(1)),
        ([0, 0, 255], WireError::UnknownKind(255)),
    ] {
        let frame = [&[1, 0, 0, 3], &payload[..]].concat();
        assert_eq!(read(ReadState::server(), &[&frame]), [Seen::Error(error)]);
    }
}

#[test]
fn every_reason_crosses_and_an_unknown_one_is_unreachable() {
    for reason in FailReason::ALL {
        assert_eq!(read(ReadState::client(), &[&failed(*reason)]), [Seen::Failed(*reason)]);
    }
    for code in [0, 6, 255] {
        assert_eq!(read(ReadState::client(), &[&[3, 0, 0, 1, code]]), [Seen::Failed(FailReason::Unreachable)]);
    }
}

#[test]
fn the_reader_is_smaller_than_a_cache_line() {
    assert!(size_of::<ReadState>() <= 64, "{}", size_of::<ReadState>());
}

fn header() -> impl Strategy<Value = Header> {
    prop_oneof![
        (OPEN_LEN as u16..=MAX_OPEN as u16).prop_map(Header::Open),
        Just(Header::Opened),
        Just(Header::Failed),
        (1..=MAX_DATA as u32).prop_map(Header::Data),
        Just(Header::End),
        Just(Header::Reset),
    ]
}

/// A header that decodes, and some of its payload; mostly in an order that is allowed.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let opening = (1u16.., vec(any::<u8>(), 0..253)).prop_map(|(port, extension)| {
        let length = u32::to_be_bytes((OPEN_LEN + extension.len()) as u32);
        [&[1], &length[1..], &port.to_be_bytes(), &[0], &extension].concat()
    });
    prop_oneof![
        2 => opening,
        2 => Just(OPENED.to_vec()),
        6 => vec(any::<u8>(), 1..400).prop_map(|payload| data(&payload)),
        2 => Just(END.to_vec()),
        1 => Just(RESET.to_vec()),
        1 => any::<u8>().prop_map(|code| vec![3, 0, 0, 1, code]),
        1 => vec(any::<u8>(), 0..12),
    ]
}

fn either_side() -> impl Strategy<Value = ReadState> {
    prop_oneof![Just(ReadState::server()), Just(ReadState::client())]
}

/// Cuts `bytes` into chunks of the given sizes, over and over; a size of 0 is an empty read.
fn cut<'a>(bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut rest = bytes;
    let mut chunks: Vec<_> = sizes.iter().cycle().take(bytes.len()).map(|size| take(&mut rest, *size)).collect();
    chunks.push(rest);
    chunks
}

proptest! {
    #[test]
    fn a_header_survives_being_written(header in header()) {
        prop_assert_eq!(Header::decode(header.encode()), Ok(header));
    }

    #[test]
    fn any_four_bytes_are_a_header_or_refused(bytes: [u8; 4]) {
        if let Ok(header) = Header::decode(bytes) {
            prop_assert_eq!(header.encode(), bytes);
        }
    }

    #[test]
    fn any_chunking_gives_the_same_events(
        first in prop_oneof![Just(open(80).encode().to_vec()), Just(OPENED.to_vec())],
        frames in vec(frame(), 0..12),
        sizes in vec(0usize..40, 1..8),
        state in either_side(),
    ) {
        let bytes = [first, frames.concat()].concat();
        let whole = read(state.clone(), &[&bytes]);
        prop_assert_eq!(&read(state.clone(), &cut(&bytes, &sizes)), &whole);
        prop_assert_eq!(&read(state, &cut(&bytes, &[1])), &whole);
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..2000), sizes in vec(0usize..40, 1..8), state in either_side()) {
        read(state, &cut(&bytes, &sizes));
    }

    #[test]
    fn data_goes_through_whole(payload in vec(any::<u8>(), 1..70_000), sizes in vec(1usize..20_000, 1..8)) {
        let frames: Vec<u8> = payload.chunks(MAX_DATA_SENT).flat_map(data).collect();
        let answers = [&OPENED[..], &frames, &END].concat();
        let seen = read(ReadState::client(), &cut(&answers, &sizes));
        prop_assert_eq!(seen, [Seen::Opened, Seen::Data(payload), Seen::End]);
    }
}
