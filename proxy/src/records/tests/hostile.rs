//! What is no record, a record in the wrong place, or changed on its way: an error, and never a byte of it.

use proptest::prelude::*;
use rustls::{AlertDescription, ContentType, Error};

use super::{
    evil::{Record, evil},
    pair::{Ours, PAIRS, SUITES, any_suite, configs, connected},
};
use crate::records::{
    RecordError,
    inbox::Inbox,
    keys::{Gather, LARGEST_RECORD},
};

/// A client of ours, and a server of ours that has received nothing yet.
fn ours(suite: rustls::CipherSuite) -> (Ours, Ours) {
    let (client, server) = connected(PAIRS[0], &configs(suite));
    (client.into_ours(), server.into_ours())
}

fn sealed(from: &mut Ours, data: &[u8]) -> Vec<u8> {
    from.seal(&[std::io::IoSlice::new(data)])
}

#[test]
fn a_change_of_any_bit_is_an_error_and_gives_no_byte() {
    for suite in SUITES {
        let (mut client, mut server) = ours(suite);
        let record = sealed(&mut client, b"forty bytes of plaintext, or thereabouts");
        // Where the length says more, more is there.
        let filler = [0; LARGEST_RECORD];
        for bit in 0..record.len() * 8 {
            let mut changed = record.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            server.inbox = Inbox::default();
            server.session.keys().1.pretend_used(0);
            let got = server.receive(&[&changed[..], &filler].concat(), LARGEST_RECORD);
            assert!(got.data.is_empty() && got.result.is_err(), "{suite:?}, bit {bit}: {got:?}");
        }
        server.inbox = Inbox::default();
        server.session.keys().1.pretend_used(0);
        let got = server.receive(&record, 100);
        assert_eq!(got.data, b"forty bytes of plaintext, or thereabouts", "the record itself");
    }
}

#[test]
fn half_a_record_gives_no_byte_wherever_it_is_cut() {
    for suite in SUITES {
        let (mut client, mut server) = ours(suite);
        let [first, second] = [b"first", b"other"].map(|data| sealed(&mut client, data));
        for cut in 0..second.len() {
            server.inbox = Inbox::default();
            server.session.keys().1.pretend_used(0);
            let got = server.receive(&[&first, &second[..cut]].concat(), 100);
            assert_eq!((got.data, got.result), (b"first".to_vec(), Ok(false)), "cut at {cut}");
            let got = server.receive(&second[cut..], 100);
            assert_eq!((got.data, got.result), (b"other".to_vec(), Ok(false)), "the rest from {cut} on");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Left out, repeated, exchanged.
    #[test]
    fn records_out_of_their_order_are_refused(
        suite in any_suite(),
        order in proptest::collection::vec(0..5usize, 0..8),
        room in 1..200usize,
    ) {
        let (mut client, mut server) = ours(suite);
        let data: Vec<Vec<u8>> = (0..5).map(|at| vec![at as u8; 10 * (at + 1)]).collect();
        let records: Vec<_> = data.iter().map(|data| sealed(&mut client, data)).collect();
        let wire: Vec<u8> = order.iter().flat_map(|at| records[*at].clone()).collect();
        let in_order = order.iter().enumerate().take_while(|(place, at)| place == *at).count();
        let got = server.receive(&wire, room);
        prop_assert_eq!(got.data, data[..in_order].concat());
        let expected = if in_order == order.len() { Ok(false) } else { Err(Error::DecryptError.into()) };
        prop_assert_eq!(got.result, expected);
    }

    #[test]
    fn no_bytes_panic_or_pass(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        header in prop_oneof![Just(vec![]), (0..40u8).prop_map(|len| vec![23, 3, 3, 0, len])],
        pieces in 1..50usize,
        room in 1..50usize,
    ) {
        let (_, mut server) = ours(SUITES[0]);
        let wire = [header, bytes].concat();
        for piece in wire.chunks(pieces) {
            let got = server.receive(piece, room);
            prop_assert!(got.data.is_empty());
            prop_assert!(server.inbox.heap() <= wire.len());
            if got.result.is_err() {
                break;
            }
        }
    }
}

/// What came before an error is handed out, then the error, for good.
#[test]
fn an_error_waits_for_the_data_before_it_and_stays() {
    for room in [1, 100] {
        let (mut client, mut server) = ours(SUITES[0]);
        let good = sealed(&mut client, b"good");
        let wire = [&good[..], &[21, 3, 3, 0, 2, 2, 0]].concat();
        let got = server.receive(&wire, room);
        assert_eq!(got.data, b"good");
        let first = got.result.expect_err("an alert in the clear");
        let after = sealed(&mut client, b"after");
        let got = server.receive(&after, room);
        assert_eq!((got.data, got.result), (vec![], Err(first)));
    }
}

#[test]
fn what_comes_after_the_end_is_ignored() {
    for who in PAIRS {
        let (mut client, mut server) = connected(who, &configs(SUITES[0]));
        let wire = [client.seal(b"all"), client.close(), b"GET / HTTP/1.1".to_vec()].concat();
        let got = server.receive(&wire, 2);
        assert_eq!((got.data, got.result), (b"all".to_vec(), Ok(true)), "{who:?}");
    }
}

fn kind(byte: u8) -> ContentType {
    ContentType::from(byte)
}

/// Headers that no record of ours can have are refused before their body comes, with the alert of RFC 8446.
#[test]
fn refuses_a_header_as_soon_as_it_is_there() {
    use AlertDescription::*;
    for (header, alert) in [
        ([20, 3, 3, 0, 1], UnexpectedMessage),
        ([21, 3, 3, 0, 2], UnexpectedMessage),
        ([22, 3, 3, 0, 9], UnexpectedMessage),
        ([0, 3, 3, 0, 9], UnexpectedMessage),
        ([b'G', b'E', b'T', b' ', b'/'], UnexpectedMessage),
        ([23, 3, 1, 0, 40], DecodeError),
        ([23, 3, 4, 0, 40], DecodeError),
        ([23, 3, 3, 0x40, 0x12], RecordOverflow),
        ([23, 3, 3, 0xff, 0xff], RecordOverflow),
    ] {
        let (_, mut server) = ours(SUITES[0]);
        assert_eq!(server.receive(&header[..4], 10).result, Ok(false), "{header:?}: half of it");
        let error = server.receive(&header[4..], 10).result.expect_err("no record of ours");
        assert_eq!(error.alert(), Some(alert), "{header:?}: {error}");
    }
}

const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// Sealed with the right keys by a peer that is wrong: to a server.
#[test]
fn refuses_records_whose_content_has_no_place_here() {
    use AlertDescription::*;
    let long = vec![0; 1 << 14];
    for (records, alert) in [
        (vec![Record::of(0, &[])], UnexpectedMessage),
        (vec![Record::of(0, &[0; 40])], UnexpectedMessage),
        (vec![Record::of(20, &[1])], UnexpectedMessage),
        (vec![Record::of(25, b"?")], UnexpectedMessage),
        (vec![Record::of(255, b"?")], UnexpectedMessage),
        (vec![Record::of(21, &[])], UnexpectedMessage),
        (vec![Record::of(21, &[1])], DecodeError),
        (vec![Record::of(21, &[1, 0, 0])], DecodeError),
        (vec![Record::of(22, &[])], UnexpectedMessage),
        (vec![Record::of(22, &[24, 0, 0, 0])], DecodeError),
        (vec![Record::of(22, &[24, 0, 0, 1, 2])], IllegalParameter),
        (vec![Record::of(22, &[24, 0, 0, 2, 0, 0])], DecodeError),
        (vec![Record::of(22, &[KEY_UPDATE, KEY_UPDATE].concat())], UnexpectedMessage),
        (vec![Record::of(22, &[&KEY_UPDATE[..], &[24]].concat())], UnexpectedMessage),
        (vec![Record::of(22, &KEY_UPDATE[..2]), Record::of(23, b"data")], UnexpectedMessage),
        (vec![Record::of(22, &KEY_UPDATE[..2]), Record::of(21, &[1, 0])], UnexpectedMessage),
        (vec![Record::of(22, &[4, 0, 0, 0])], UnexpectedMessage),
        (vec![Record::of(22, &[13, 0, 0, 0])], UnexpectedMessage),
        (vec![Record::of(22, &[4, 0, 0x80, 1])], DecodeError),
        (vec![Record::of(23, &long).padded(1)], RecordOverflow),
        (vec![Record::of(23, b"data").sealed_again()], BadRecordMac),
    ] {
        let (mut client, mut server) = ours(SUITES[0]);
        let wire: Vec<u8> = records.iter().flat_map(|record| evil(&mut client.session, record)).collect();
        let got = server.receive(&wire, 1 << 15);
        let error = got.result.expect_err("no place for it");
        assert_eq!(error.alert(), Some(alert), "{records:?}: {error}");
        assert!(got.data.is_empty() || records[0].again, "{records:?}: {:?}", got.data);
    }
}

#[test]
fn takes_padding_empty_records_and_fragments() {
    let whole = [(22, &KEY_UPDATE[..1]), (22, &KEY_UPDATE[1..4]), (22, &KEY_UPDATE[4..])];
    for room in [1, 1 << 15] {
        let (mut client, mut server) = ours(SUITES[0]);
        let mut wire = Vec::new();
        for record in [
            Record::of(23, b"a").padded(0),
            Record::of(23, b"b").padded((1 << 14) - 1),
            Record::of(23, b"").padded(1 << 14),
            Record::of(23, &[b'c'; 1 << 14]),
            Record::of(23, b""),
            Record::of(21, &[2, 90]),
            Record::of(21, &[1, 90]).padded(300),
        ]
        .into_iter()
        .chain(whole.map(|(kind, part)| Record::of(kind, part)))
        {
            wire.extend(evil(&mut client.session, &record));
        }
        client.session.next_sealing_keys();
        wire.extend(evil(&mut client.session, &Record::of(23, b"d")));
        let got = server.receive(&wire, room);
        assert_eq!(got.result, Ok(false));
        assert!(got.data == [b"ab", &[b'c'; 1 << 14][..], b"d"].concat());
    }
}

#[test]
fn an_alert_is_the_end_or_an_error_whatever_its_level() {
    for level in [0, 1, 2, 255] {
        for (alert, expected) in [
            (0, Ok(true)),
            (10, Err(AlertDescription::UnexpectedMessage)),
            (20, Err(AlertDescription::BadRecordMac)),
            (80, Err(AlertDescription::InternalError)),
            (200, Err(AlertDescription::from(200))),
        ] {
            let (mut client, mut server) = ours(SUITES[0]);
            let got = server.receive(&evil(&mut client.session, &Record::of(21, &[level, alert])), 10);
            let expected = expected.map_err(|alert| RecordError::from(Error::AlertReceived(alert)));
            assert_eq!(got.result.as_ref().map_err(RecordError::alert).err().flatten(), None, "no alert for an alert");
            assert_eq!(got.result, expected);
        }
    }
}

#[test]
fn a_flood_of_what_is_no_data_ends_the_connection() {
    for record in
        [Record::of(22, &KEY_UPDATE), Record::of(22, &[24, 0, 0, 1, 1]), Record::of(23, b""), Record::of(21, &[1, 90])]
    {
        let (mut client, mut server) = ours(SUITES[0]);
        let mut send = |client: &mut Ours, record: &Record| {
            let wire = evil(&mut client.session, record);
            if record.kind == 22 {
                client.session.next_sealing_keys();
            }
            server.receive(&wire, 10).result
        };
        for _ in 0..2 {
            for _ in 0..32 {
                assert_eq!(send(&mut client, &record), Ok(false));
            }
            assert_eq!(send(&mut client, &Record::of(23, b"data")), Ok(false), "data: all is well again");
        }
        for _ in 0..32 {
            assert_eq!(send(&mut client, &record), Ok(false));
        }
        assert_eq!(send(&mut client, &record), Err(RecordError::NoData), "{record:?}");
    }
}

#[test]
fn each_ticket_is_taken_once_however_they_are_cut() {
    let ticket = [&[4, 0, 0, 20], &[0, 0, 14, 16, 1, 2, 3, 4, 2, 0, 1, 0, 5][..], b"quite", &[0, 0]].concat();
    for piece in [1, 7, 24, 31, 1000] {
        let (mut client, mut server) = ours(SUITES[0]);
        let mut wire = sealed(&mut server, b"data");
        for part in ticket.repeat(32).chunks(piece) {
            wire.extend(evil(&mut server.session, &Record::of(22, part)));
        }
        assert_eq!(client.receive(&wire, 10).result, Ok(false), "in pieces of {piece}: 32 may come");
        let wire = evil(&mut server.session, &Record::of(22, &ticket));
        assert_eq!(client.receive(&wire, 10).result, Err(RecordError::NoData));
    }
}

/// A peer can make us hold a part of one message, no more.
#[test]
fn a_message_in_very_many_pieces_is_held_within_bounds() {
    let (mut client, mut server) = ours(SUITES[0]);
    let message = [&[4, 0, 0x80, 0][..], &[0; 0x7fff]].concat();
    for piece in message.chunks(7) {
        let wire = evil(&mut client.session, &Record::of(22, piece));
        assert_eq!(server.receive(&wire, 10).result, Ok(false));
        assert!(server.session.heap() <= 2 * message.len());
    }
    let wire = evil(&mut client.session, &Record::of(22, &[0]));
    assert!(server.receive(&wire, 10).result.is_err(), "a ticket for a server");
    assert_eq!(server.session.heap(), 0);
}

#[test]
fn no_key_is_used_for_a_number_twice() {
    for suite in SUITES {
        let (mut client, mut server) = ours(suite);
        let last = u64::MAX - 1;
        let (sealing, opening) = (client.session.keys().0, server.session.keys().1);
        sealing.pretend_used(last);
        opening.pretend_used(last);
        let mut out = [0; 100];
        let mut seal = || sealing.seal(kind(23), &mut Gather::of(b"last"), 4, &mut out);
        assert_eq!(seal(), Ok(4 + 22));
        assert_eq!(seal(), Err(RecordError::Exhausted));
        let mut plain = [0; 100];
        assert_eq!(opening.open(&out[..26], &mut plain), Ok((kind(23), 4)));
        assert_eq!(opening.open(&out[..26], &mut plain), Err(RecordError::Exhausted));
    }
}
