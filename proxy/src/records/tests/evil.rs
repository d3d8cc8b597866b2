//! A peer that has the keys and seals with them whatever it likes. rustls must judge it as we do.

use proptest::{prelude::*, sample::select};
use rustls::{ContentType, Error};

use super::pair::{End, Got, Who, any_suite, configs, connected};
use crate::records::{RecordError, keys::Gather, session::Session};

/// A record by its inner plaintext.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) kind: u8,
    content: Vec<u8>,
    padding: usize,
    /// Sent twice.
    pub(super) again: bool,
}

impl Record {
    pub(super) fn of(kind: u8, content: &[u8]) -> Self {
        Self { kind, content: content.to_vec(), padding: 0, again: false }
    }

    pub(super) fn padded(self, padding: usize) -> Self {
        Self { padding, ..self }
    }

    pub(super) fn sealed_again(self) -> Self {
        Self { again: true, ..self }
    }
}

/// `record` as it goes over the wire.
pub(super) fn evil(session: &mut Session, record: &Record) -> Vec<u8> {
    // The byte that is sealed behind the content is the type, or else the last of the padding.
    let (content, last) = match record.padding.checked_sub(1) {
        None => (record.content.clone(), record.kind),
        Some(zeros) => ([&record.content[..], &[record.kind], &vec![0; zeros]].concat(), 0),
    };
    let mut out = vec![0; content.len() + 22];
    let sealing = session.keys().0;
    sealing.seal(ContentType::from(last), &mut Gather::of(&content), content.len(), &mut out).expect("not used up");
    if record.again { out.repeat(2) } else { out }
}

#[derive(Debug, Clone)]
enum Act {
    Send(Record),
    /// Handshake messages in pieces of so many bytes.
    Message(Vec<u8>, usize),
    /// New keys for what follows.
    NextKeys,
    /// The last byte so far is changed.
    Spoil,
}

fn any_message() -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![
        // Lifetime, age, nonce, ticket, no extensions.
        3 => Just([&[0, 0, 14, 16, 1, 2, 3, 4, 2, 0, 1, 0, 5][..], b"quite", &[0, 0]].concat()),
        1 => proptest::collection::vec(any::<u8>(), 0..20),
    ];
    let len = prop_oneof![9 => Just(0i32), 1 => -3..3];
    let message = (select(vec![4u8, 4, 4, 4, 4, 4, 8, 13, 24, 99]), body, len).prop_map(|(kind, body, more)| {
        let len = (body.len() as i32 + more).max(0) as u8;
        [&[kind, 0, 0, len], &body[..]].concat()
    });
    proptest::collection::vec(message, 1..4).prop_map(|messages| messages.concat())
}

fn any_act() -> impl Strategy<Value = Act> {
    let data = proptest::collection::vec(any::<u8>(), 0..40);
    let padding = prop_oneof![3 => Just(0usize), 1 => 0..40usize, 1 => 0..16_384usize];
    let key_update = (0..3u8, 1..6usize).prop_map(|(request, piece)| Act::Message(vec![24, 0, 0, 1, request], piece));
    let alert = (1..=2u8, select(vec![0u8, 90, 90, 90, 20, 47, 80]))
        .prop_filter("rustls goes by the level of user_canceled", |(level, alert)| (*level, *alert) != (2, 90));
    prop_oneof![
        8 => (data.clone(), padding).prop_map(|(data, padding)| Act::Send(Record::of(23, &data).padded(padding))),
        3 => (any_message(), 1..40usize).prop_map(|(message, piece)| Act::Message(message, piece)),
        3 => key_update,
        3 => Just(Act::NextKeys),
        1 => alert.prop_map(|(level, alert)| Act::Send(Record::of(21, &[level, alert]))),
        1 => (any::<u8>(), data).prop_filter("rustls takes empty fragments of messages", |(kind, data)| {
            *kind != 22 || !data.is_empty()
        }).prop_map(|(kind, data)| Act::Send(Record::of(kind, &data))),
        1 => Just(Act::Send(Record::of(23, b"twice").sealed_again())),
        1 => Just(Act::Spoil),
    ]
}

/// At most four user_canceled: rustls has a bound of its own for them.
fn any_acts() -> impl Strategy<Value = Vec<Act>> {
    let canceled = |act: &&Act| matches!(act, Act::Send(record) if record.kind == 21);
    proptest::collection::vec(any_act(), 0..12)
        .prop_filter("few alerts", move |acts| acts.iter().filter(canceled).count() <= 4)
}

fn perform(session: &mut Session, acts: &[Act]) -> Vec<u8> {
    let mut wire = Vec::new();
    for act in acts {
        match act {
            Act::Send(record) => wire.extend(evil(session, record)),
            Act::Message(message, piece) => {
                wire.extend(message.chunks(*piece).flat_map(|part| evil(session, &Record::of(22, part))));
                // Mostly as it must be, so that what follows is looked at.
                if message[..] == [24, 0, 0, 1, 0] || message[..] == [24, 0, 0, 1, 1] {
                    session.next_sealing_keys();
                }
            }
            Act::NextKeys if wire.len() % 7 == 0 => session.next_sealing_keys(),
            Act::NextKeys => {}
            Act::Spoil => {
                if let Some(last) = wire.last_mut() {
                    *last ^= 1;
                }
            }
        }
    }
    wire
}

/// One evil peer for each: their keys differ.
fn judge(suite: rustls::CipherSuite, to_client: bool, judge: Who, acts: &[Act], room: usize) -> Got {
    let who = if to_client { (judge, Who::Ours) } else { (Who::Ours, judge) };
    let (client, server) = connected(who, &configs(suite));
    let (mut judge, evil): (End, End) = if to_client { (client, server) } else { (server, client) };
    judge.receive(&perform(&mut evil.into_ours().session, acts), room)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn rustls_and_we_judge_every_peer_alike(
        suite in any_suite(),
        to_client in any::<bool>(),
        acts in any_acts(),
        room in prop_oneof![1..50usize, Just(1 << 15)],
    ) {
        let theirs = judge(suite, to_client, Who::Rustls, &acts, room);
        let ours = judge(suite, to_client, Who::Ours, &acts, room);
        prop_assert_eq!(&ours.data, &theirs.data, "{:?} {:?}", ours.result, theirs.result);
        match (&ours.result, &theirs.result) {
            (Ok(ours), Ok(theirs)) => prop_assert_eq!(ours, theirs),
            (Err(ours), Err(RecordError::Tls(theirs @ (Error::AlertReceived(_) | Error::DecryptError)))) => {
                prop_assert_eq!(ours, &RecordError::Tls(theirs.clone()));
            }
            (ours, theirs) => prop_assert!(ours.is_err() && theirs.is_err(), "{:?} {:?}", ours, theirs),
        }
    }
}
