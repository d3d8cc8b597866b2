//! TCP connections of a capture, each direction put together again by sequence number. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

use anyhow::Result;
use memchr::memmem;

use crate::packets::{Segment, segments};

/// One TCP connection as the wire showed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Who opened it.
    pub client: SocketAddr,
    /// Who was dialled.
    pub server: SocketAddr,
    /// Whether its first packet, the client's SYN, was captured; if not, `client` is the sender of the first packet.
    pub syn_seen: bool,
    /// Whether the server answered the SYN.
    pub accepted: bool,
    /// Whether one side reset it.
    pub reset: bool,
    /// From client to server.
    pub to_server: Stream,
    /// From server to client.
    pub to_client: Stream,
}

/// One direction of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stream {
    /// Every byte once, in order, up to the gap if there is one.
    pub bytes: Vec<u8>,
    /// Where bytes are missing that later packets or the FIN show to have been there.
    pub gap: Option<usize>,
    /// Whether its FIN was captured.
    pub ended: bool,
}

impl Flow {
    /// Whether either direction holds `marker`.
    pub fn contains(&self, marker: &[u8]) -> bool {
        self.to_server.contains(marker) || self.to_client.contains(marker)
    }

    /// Bytes of both directions.
    pub fn bytes(&self) -> u64 {
        (self.to_server.bytes.len() + self.to_client.bytes.len()) as u64
    }
}

impl Stream {
    /// Whether the bytes hold `marker`.
    pub fn contains(&self, marker: &[u8]) -> bool {
        memmem::find(&self.bytes, marker).is_some()
    }
}

/// The connections in `pcap`, in the order of their first packets.
pub fn flows(pcap: &[u8]) -> Result<Vec<Flow>> {
    let mut open: HashMap<(SocketAddr, SocketAddr), usize> = HashMap::new();
    let mut all: Vec<Assembly<'_>> = Vec::new();
    for segment in segments(pcap)? {
        let key = (segment.from.min(segment.to), segment.from.max(segment.to));
        match open.get(&key).filter(|&&at| !all[at].is_over(&segment)) {
            Some(&at) => all[at].add(&segment),
            None => {
                open.insert(key, all.len());
                all.push(Assembly::new(&segment));
            }
        }
    }
    Ok(all.into_iter().map(Assembly::finish).collect())
}

/// A connection that is being put together.
struct Assembly<'a> {
    client: SocketAddr,
    server: SocketAddr,
    syn: Option<u32>,
    accepted: bool,
    reset: bool,
    to_server: Half<'a>,
    to_client: Half<'a>,
}

impl<'a> Assembly<'a> {
    fn new(first: &Segment<'a>) -> Self {
        // The first packet is the server's answer if the capture began between the two.
        let (client, server) = if first.syn && first.ack { (first.to, first.from) } else { (first.from, first.to) };
        let syn = (first.syn && !first.ack).then_some(first.sequence);
        let (to_server, to_client) = Default::default();
        let mut assembly = Self { client, server, syn, accepted: false, reset: false, to_server, to_client };
        assembly.add(first);
        assembly
    }

    /// Whether `segment` opens another connection between the same ports.
    fn is_over(&self, segment: &Segment<'_>) -> bool {
        segment.syn && !segment.ack && self.syn != Some(segment.sequence)
    }

    fn add(&mut self, segment: &Segment<'a>) {
        self.accepted |= segment.syn && segment.ack;
        self.reset |= segment.rst;
        // A reset's payload, if any, is a message to people; and a host may answer SYNs to a closed port by it.
        if !segment.rst {
            let half = if segment.from == self.client { &mut self.to_server } else { &mut self.to_client };
            half.add(segment);
        }
    }

    fn finish(self) -> Flow {
        Flow {
            client: self.client,
            server: self.server,
            syn_seen: self.syn.is_some(),
            accepted: self.accepted,
            reset: self.reset,
            to_server: self.to_server.finish(),
            to_client: self.to_client.finish(),
        }
    }
}

/// One direction that is being put together. Sequence numbers are 32 bits wide and wrap; offsets do not.
#[derive(Default)]
struct Half<'a> {
    /// Sequence number of the first byte, once known.
    base: Option<u32>,
    bytes: Vec<u8>,
    /// What came before its turn, by offset.
    early: BTreeMap<i64, &'a [u8]>,
    fin: Option<i64>,
}

impl<'a> Half<'a> {
    fn add(&mut self, segment: &Segment<'a>) {
        let first = segment.sequence.wrapping_add(u32::from(segment.syn));
        let base = *self.base.get_or_insert(first);
        // Distance to the next byte that is awaited: small, either way, whatever wrapped.
        let awaited = base.wrapping_add(self.bytes.len() as u32);
        let offset = self.bytes.len() as i64 + i64::from(first.wrapping_sub(awaited) as i32);
        if segment.fin {
            self.fin = self.fin.max(Some(offset + segment.payload.len() as i64));
        }
        if !segment.payload.is_empty() {
            let kept = self.early.entry(offset).or_default();
            if kept.len() < segment.payload.len() {
                *kept = segment.payload;
            }
        }
        self.take_what_fits();
    }

    fn take_what_fits(&mut self) {
        while let Some(first) = self.early.first_entry() {
            let at = self.bytes.len() as i64;
            if *first.key() > at {
                break;
            }
            let (offset, payload) = first.remove_entry();
            let known = usize::try_from(at - offset).expect("the offset is not behind the end");
            self.bytes.extend(payload.get(known..).unwrap_or_default());
        }
    }

    fn finish(self) -> Stream {
        let missing = !self.early.is_empty() || self.fin.is_some_and(|fin| fin > self.bytes.len() as i64);
        Stream { gap: missing.then_some(self.bytes.len()), ended: self.fin.is_some(), bytes: self.bytes }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packets::testing::pcap;

    const CLIENT: &str = "10.1.1.1:40000";
    const SERVER: &str = "10.1.1.2:80";

    fn segment(from_client: bool, sequence: u32, flags: &str, payload: &'static [u8]) -> Segment<'static> {
        let [client, server] = [CLIENT, SERVER].map(|addr| addr.parse().expect("an address"));
        let (from, to) = if from_client { (client, server) } else { (server, client) };
        let flag = |letter| flags.contains(letter);
        Segment { from, to, sequence, syn: flag('S'), ack: flag('A'), fin: flag('F'), rst: flag('R'), payload }
    }

    fn only(segments: &[Segment<'_>]) -> Flow {
        let mut flows = flows(&pcap(segments)).expect("a capture");
        assert_eq!(flows.len(), 1, "{flows:?}");
        flows.remove(0)
    }

    #[test]
    fn each_direction_is_put_together_once_and_in_order() {
        let flow = only(&[
            segment(true, u32::MAX - 2, "S", b""),
            segment(true, u32::MAX - 2, "S", b""),
            segment(false, 99, "SA", b""),
            segment(true, u32::MAX - 1, "A", b"abc"),
            segment(false, 105, "A", b"fg"),
            segment(true, u32::MAX - 1, "A", b"abcde"),
            segment(true, u32::MAX, "A", b"bc"),
            segment(false, 100, "A", b"abcd"),
            segment(false, 103, "A", b"defgh"),
            segment(true, 3, "FA", b"f"),
        ]);
        let [client, server] = [CLIENT, SERVER].map(|addr| addr.parse().expect("an address"));
        assert_eq!((flow.client, flow.server, flow.syn_seen, flow.accepted), (client, server, true, true));
        assert_eq!(flow.to_server, Stream { bytes: b"abcdef".to_vec(), gap: None, ended: true });
        assert_eq!(flow.to_client, Stream { bytes: b"abcdefgh".to_vec(), gap: None, ended: false });
        assert!(flow.contains(b"def") && flow.contains(b"gh") && !flow.contains(b"ha"));
    }

    #[test]
    fn a_gap_is_reported_with_its_place() {
        let syn = segment(true, 10, "S", b"");
        let hole = only(&[syn, segment(true, 11, "A", b"abc"), segment(true, 15, "A", b"x")]);
        assert_eq!(hole.to_server.gap, Some(3));
        let before_fin = only(&[syn, segment(true, 11, "A", b"abc"), segment(true, 15, "FA", b"")]);
        assert_eq!(before_fin.to_server.gap, Some(3));
        let at_the_start = only(&[syn, segment(true, 12, "A", b"bc")]);
        assert_eq!((at_the_start.to_server.gap, at_the_start.to_server.bytes.len()), (Some(0), 0));
    }

    #[test]
    fn ports_that_are_used_again_make_a_flow_of_their_own() {
        let again = [
            segment(true, 10, "S", b""),
            segment(true, 11, "A", b"first"),
            segment(false, 0, "R", b""),
            segment(true, 90, "S", b""),
            segment(true, 91, "A", b"second"),
        ];
        let flows = flows(&pcap(&again)).expect("a capture");
        let bytes: Vec<_> = flows.iter().map(|flow| (flow.to_server.bytes.as_slice(), flow.reset)).collect();
        assert_eq!(bytes, [(&b"first"[..], true), (b"second", false)]);
    }

    #[test]
    fn a_flow_that_was_open_before_the_capture_is_told() {
        let flow = only(&[segment(false, 500, "A", b"late"), segment(true, 7, "A", b"r")]);
        assert!(!flow.syn_seen);
        assert_eq!(flow.bytes(), 5);
        assert!(!only(&[segment(false, 500, "SA", b"")]).syn_seen);
    }

    proptest! {
        #[test]
        fn the_order_and_number_of_packets_do_not_matter(
            base: u32, cuts in proptest::collection::vec(1usize..40, 1..20), order in proptest::collection::vec(any::<u16>(), 60)
        ) {
            let text: Vec<u8> = (0..cuts.iter().sum::<usize>()).map(|i| i as u8).collect();
            let mut at = 0;
            let mut parts = Vec::new();
            for cut in &cuts {
                parts.push(Segment { sequence: base.wrapping_add(1 + at as u32), payload: &text[at..at + cut], ..segment(true, 0, "A", b"") });
                at += cut;
            }
            let all: Vec<_> = parts.iter().chain(&parts).copied().collect();
            let mut shuffled: Vec<_> = all.iter().zip(&order).collect();
            shuffled.sort_by_key(|(_, key)| **key);
            let mut sent = vec![segment(true, base, "S", b"")];
            sent.extend(shuffled.into_iter().map(|(segment, _)| *segment));
            let stream = only(&sent).to_server;
            prop_assert_eq!(stream.gap, None);
            prop_assert_eq!(stream.bytes, text);
        }

        #[test]
        fn no_segments_panic_the_assembly(all in proptest::collection::vec((any::<bool>(), any::<u32>(), "[SAFR]{0,3}", 0usize..9), 0..30)) {
            let all: Vec<_> = all.iter().map(|(client, sequence, flags, length)| segment(*client, *sequence, flags, &b"abcdefghi"[..*length])).collect();
            let _ = flows(&pcap(&all));
        }
    }
}
