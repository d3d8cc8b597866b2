//! Everything that a well-behaved peer may do, in any order and through pieces of any size.

use std::io::IoSlice;

use proptest::prelude::*;

use super::pair::{Configs, End, Got, PAIRS, SUITES, any_suite, configs, connected};
use crate::records::session::Request;

#[derive(Debug, Clone)]
enum Op {
    /// So many bytes from the client (or else the server).
    Write(bool, usize),
    Update(bool, Request),
    /// So many bytes arrive at the server (or else the client), read with a buffer of so many.
    Arrive(bool, usize, usize),
}

fn any_op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![0..300usize, 0..70_000usize, Just(16_000), Just(16_384)];
    let room = prop_oneof![1..40usize, 1..70_000usize];
    let request = prop_oneof![Just(Request::Requested), Just(Request::NotRequested)];
    prop_oneof![
        3 => (any::<bool>(), len.clone()).prop_map(|(from, len)| Op::Write(from, len)),
        1 => (any::<bool>(), request).prop_map(|(from, request)| Op::Update(from, request)),
        3 => (any::<bool>(), len, room).prop_map(|(to, len, room)| Op::Arrive(to, len, room)),
    ]
}

/// One direction: what is on the wire, what was written, what was read.
#[derive(Default)]
struct Direction {
    wire: Vec<u8>,
    written: Vec<u8>,
    read: Vec<u8>,
}

impl Direction {
    fn write(&mut self, from: &mut End, len: usize) {
        let begin = self.written.len();
        self.written.extend((begin..begin + len).map(|at| (at * 7 + at / 251) as u8));
        self.wire.extend(from.seal(&self.written[begin..]));
    }

    fn arrive(&mut self, to: &mut End, len: usize, room: usize) {
        let rest = self.wire.split_off(len.min(self.wire.len()));
        let Got { data, result } = to.receive(&std::mem::replace(&mut self.wire, rest), room);
        self.read.extend(data);
        assert!(!result.expect("the peer is well-behaved"), "no end yet");
    }

    fn close(mut self, from: &mut End, to: &mut End, room: usize) {
        self.wire.extend(from.close());
        let Got { data, result } = to.receive(&self.wire, room);
        self.read.extend(data);
        assert!(result.expect("the peer is well-behaved"), "the end");
        assert!(self.read == self.written, "read as written");
    }
}

fn run(client: &mut End, server: &mut End, ops: Vec<Op>, room: usize) {
    let (mut up, mut down) = (Direction::default(), Direction::default());
    for op in ops {
        match op {
            Op::Write(true, len) => up.write(client, len),
            Op::Write(false, len) => down.write(server, len),
            Op::Update(true, request) => client.update_keys(request),
            Op::Update(false, request) => server.update_keys(request),
            Op::Arrive(true, len, room) => up.arrive(server, len, room),
            Op::Arrive(false, len, room) => down.arrive(client, len, room),
        }
    }
    up.close(client, server, room);
    // The other direction goes on.
    down.write(server, 1000);
    down.close(server, client, room);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn whatever_is_written_is_read_through_pieces_of_any_size_and_new_keys(
        suite in any_suite(),
        who in proptest::sample::select(&PAIRS[..]),
        ops in proptest::collection::vec(any_op(), 0..24),
        room in 1..70_000usize,
    ) {
        let (mut client, mut server) = connected(who, &configs(suite));
        run(&mut client, &mut server, ops, room);
    }

    #[test]
    fn bytes_in_several_slices_are_sealed_as_if_they_lay_in_one(
        lens in proptest::collection::vec(prop_oneof![0..50usize, 0..40_000usize], 0..6),
    ) {
        let (mut client, mut server) = connected(PAIRS[1], &configs(SUITES[0]));
        let parts: Vec<Vec<u8>> = lens.iter().enumerate().map(|(at, len)| vec![at as u8; *len]).collect();
        let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let wire = client.ours().seal(&slices);
        prop_assert!(server.receive(&wire, 1000).data == parts.concat());
    }
}

fn resumed(who: (super::pair::Who, super::pair::Who), configs: &Configs) -> Vec<Option<rustls::HandshakeKind>> {
    let (mut client, mut server) = connected(who, configs);
    [&mut client, &mut server]
        .map(|end| match end {
            End::Rustls(tls) => tls.handshake_kind(),
            End::Ours(ours) => Some(match ours.negotiated.agreed.handshake {
                hauberk_mesh::HandshakeKind::Resumed => rustls::HandshakeKind::Resumed,
                _ => rustls::HandshakeKind::Full,
            }),
        })
        .into()
}

#[test]
fn sessions_resume_with_the_tickets_of_either_layer() {
    use rustls::HandshakeKind::{Full, Resumed};
    for suite in SUITES {
        for (first, second) in PAIRS.iter().flat_map(|first| PAIRS.map(|second| (*first, second))) {
            let configs = configs(suite);
            assert_eq!(resumed(first, &configs), [Some(Full); 2], "{first:?}");
            assert_eq!(resumed(second, &configs), [Some(Resumed); 2], "{first:?} then {second:?}");
        }
    }
}

/// Long before AES-GCM's limit of 2^24.5 records.
#[test]
fn keys_change_after_2_to_the_23_records() {
    for suite in SUITES {
        let (mut client, mut server) = connected(PAIRS[0], &configs(suite));
        let (client, server) = (client.ours(), server.ours());
        client.session.keys().0.pretend_used((1 << 23) - 1);
        server.session.keys().1.pretend_used((1 << 23) - 1);
        let last = client.seal(&[IoSlice::new(b"last")]);
        assert_eq!(last.len(), 4 + 22);
        let next = client.seal(&[IoSlice::new(b"next")]);
        assert_eq!(next.len(), 5 + 22 + 4 + 22, "a KeyUpdate, then the data");
        let got = server.receive(&[last, next].concat(), 100);
        assert_eq!((&got.data[..], got.result), (&b"lastnext"[..], Ok(false)));
        assert_eq!(client.session.keys().0.used(), 1);
        assert_eq!(server.session.keys().1.used(), 1);
    }
}

#[test]
fn a_requested_key_update_is_answered_before_more_data() {
    for who in [PAIRS[1], PAIRS[2]] {
        let (mut client, mut server) = connected(who, &configs(SUITES[0]));
        let (ours, theirs) =
            if matches!(client, End::Ours(_)) { (&mut client, &mut server) } else { (&mut server, &mut client) };
        theirs.update_keys(Request::Requested);
        let wire = theirs.seal(b"x");
        assert_eq!(ours.receive(&wire, 100).data, b"x");
        let answer = ours.seal(b"y");
        assert_eq!(answer.len(), 5 + 22 + 1 + 22, "a KeyUpdate, then the data");
        assert_eq!(theirs.receive(&answer, 100).data, b"y");
        assert_eq!(ours.seal(b"z").len(), 1 + 22, "only once");
    }
}
