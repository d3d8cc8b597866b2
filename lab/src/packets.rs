//! The TCP segments of a capture file. Pure: bytes in, segments out; no bytes panic it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail, ensure};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use pcap_parser::{Linktype, nom, parse_pcap_frame, parse_pcap_header};

/// A TCP segment as it was on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment<'a> {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) sequence: u32,
    pub(crate) syn: bool,
    pub(crate) ack: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    pub(crate) payload: &'a [u8],
}

/// Every TCP segment in `pcap`, a file as tcpdump writes it on this machine; frames of other protocols are left out.
/// A frame that is not there as a whole is an error.
pub(crate) fn segments(pcap: &[u8]) -> Result<Vec<Segment<'_>>> {
    let Ok((mut rest, header)) = parse_pcap_header(pcap) else { bail!("not a capture file") };
    ensure!(!header.is_bigendian() && !header.is_modified_format(), "not a capture file of this machine");
    ensure!(header.network == Linktype::ETHERNET, "a capture of {:?}, not of Ethernet", header.network);
    let mut segments = Vec::new();
    for number in 1.. {
        if rest.is_empty() {
            break;
        }
        let frame = match parse_pcap_frame(rest) {
            Ok((after, frame)) => {
                rest = after;
                frame
            }
            Err(nom::Err::Incomplete(_)) => bail!("the capture ends in the middle of frame {number}"),
            Err(error) => bail!("frame {number} of the capture: {error:?}"),
        };
        ensure!(frame.caplen == frame.origlen, "frame {number} was cut to {} of {} bytes", frame.caplen, frame.origlen);
        segments.extend(segment(frame.data));
    }
    Ok(segments)
}

fn segment(frame: &[u8]) -> Option<Segment<'_>> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (source, destination): (IpAddr, IpAddr) = match packet.net? {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => return None,
    };
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { return None };
    Some(Segment {
        from: SocketAddr::new(source, tcp.source_port()),
        to: SocketAddr::new(destination, tcp.destination_port()),
        sequence: tcp.sequence_number(),
        syn: tcp.syn(),
        ack: tcp.ack(),
        fin: tcp.fin(),
        rst: tcp.rst(),
        payload: tcp.payload(),
    })
}

#[cfg(test)]
pub(crate) mod testing {
    //! Captures made by hand.

    use etherparse::PacketBuilder;

    use super::*;

    /// A capture file with `segments`, IPv4 only.
    pub(crate) fn pcap(segments: &[Segment<'_>]) -> Vec<u8> {
        let mut file = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0];
        for segment in segments {
            let frame = frame(segment);
            let length = u32::try_from(frame.len()).expect("small").to_le_bytes();
            file.extend([[0; 4], [0; 4], length, length].concat());
            file.extend(frame);
        }
        file
    }

    fn frame(segment: &Segment<'_>) -> Vec<u8> {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (segment.from.ip(), segment.to.ip()) else {
            panic!("IPv4 only");
        };
        let mut builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(source.octets(), destination.octets(), 64).tcp(
            segment.from.port(),
            segment.to.port(),
            segment.sequence,
            65_535,
        );
        for (set, flag) in [(segment.syn, 0), (segment.ack, 1), (segment.fin, 2), (segment.rst, 3)] {
            builder = match flag {
                _ if !set => builder,
                0 => builder.syn(),
                1 => builder.ack(0),
                2 => builder.fin(),
                _ => builder.rst(),
            };
        }
        let mut frame = Vec::new();
        builder.write(&mut frame, segment.payload).expect("a vector takes all");
        frame
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{testing::pcap, *};

    fn sample() -> Segment<'static> {
        Segment {
            from: "10.1.1.1:40000".parse().expect("an address"),
            to: "10.1.1.2:80".parse().expect("an address"),
            sequence: 7,
            syn: false,
            ack: true,
            fin: true,
            rst: false,
            payload: b"hello",
        }
    }

    #[test]
    fn reads_what_was_on_the_wire() {
        assert_eq!(segments(&pcap(&[sample(), sample()])).expect("a capture"), [sample(), sample()]);
    }

    #[test]
    fn refuses_what_is_not_all_there() {
        let whole = pcap(&[sample()]);
        let message = |bytes: &[u8]| segments(bytes).expect_err("not all there").to_string();
        assert_eq!(message(b"GIF89a"), "not a capture file");
        assert_eq!(message(&whole[..whole.len() - 1]), "the capture ends in the middle of frame 1");
        assert_eq!(message(&whole[..30]), "the capture ends in the middle of frame 1");
        let mut cut = whole.clone();
        cut[36] += 1;
        assert!(message(&cut).starts_with("frame 1 was cut to "), "{}", message(&cut));
        let mut other = whole;
        other[20] = 113;
        assert!(message(&other).contains("not of Ethernet"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..130, flip: u8) {
            let _ = segments(&bytes);
            let mut file = pcap(&[sample()]);
            if let Some(byte) = file.get_mut(at) {
                *byte ^= flip;
            }
            file.extend(&bytes);
            let _ = segments(&file);
            let _ = segment(&bytes);
        }
    }
}
