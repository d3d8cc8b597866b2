use super::*;
use proptest::prelude::*;

const HEADER: &str =
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

/// A line as the kernel writes it.
fn line(local: &str, remote: &str, state: u8, uid: u32) -> String {
    let hex = |addr: &str| {
        let addr: SocketAddr = addr.parse().expect("an address");
        let bytes = match addr.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let words = bytes.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().expect("4 bytes")));
        format!("{}:{:04X}", words.map(|word| format!("{word:08X}")).collect::<String>(), addr.port())
    };
    format!(
        "   0: {} {} {state:02X} 00000000:00000000 00:00000000 00000000 {uid:>5}        0 12345 1 0 100 0 0 10 0\n",
        hex(local),
        hex(remote)
    )
}

fn rules() -> Redirection {
    Redirection {
        skip_inbound_ports: "22,5000-5010".parse().expect("valid"),
        skip_outbound_ports: "25".parse().expect("valid"),
        skip_subnets: "10.9.0.0/16,fd09::/64".parse().expect("valid"),
        ..Redirection::default()
    }
}

/// What a look at `table` finds that is not in `before`, and what it remembers.
fn look(before: &HashSet<Pair>, table: &str) -> (Vec<(Direction, u16, u64)>, HashSet<Pair>, u64) {
    let rules = rules();
    let mut round = Round::new(&rules, before);
    round.tcp(format!("{HEADER}{table}").as_bytes()).expect("a table");
    let found = round.found.iter().map(|(&(direction, port), &count)| (direction, port, count)).collect();
    (found, round.seen, round.untracked)
}

const LISTEN: u8 = 10;
const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const TIME_WAIT: u8 = 6;

#[cfg(target_endian = "little")]
#[test]
fn reads_a_line_of_a_real_kernel() {
    let v4 = "   1: 0100007F:A0B6 0100007F:1F90 06 00000000:00000000 03:00001770 00000000     0        0 0 3 0";
    let v6 = "   0: 00000000000000000000000001000000:1F90 0000000000000000FFFF00000200000A:0000 0A \
              00000000:00000000 00:00000000 00000000  2102        0 1 1 0 100 0 0 10 0";
    let addr = |text: &str| text.parse::<SocketAddr>().expect("an address");
    assert_eq!(
        Socket::parse(v4),
        Some(Socket {
            local: addr("127.0.0.1:41142"),
            remote: addr("127.0.0.1:8080"),
            state: State::Connected,
            uid: 0
        })
    );
    assert_eq!(
        Socket::parse(v6),
        Some(Socket { local: addr("[::1]:8080"), remote: addr("10.0.0.2:0"), state: State::Listen, uid: 2102 })
    );
}

#[test]
fn what_the_rules_let_pass_is_counted_by_the_port_that_accepts() {
    let (inbound, outbound) = (Direction::Inbound, Direction::Outbound);
    let app = 1000;
    for (name, local, remote, state, uid, expected) in [
        ("skipped port", "10.0.0.2:40000", "10.1.0.1:25", ESTABLISHED, app, Some((outbound, 25))),
        ("skipped subnet", "10.0.0.2:40000", "10.9.3.4:80", ESTABLISHED, app, Some((outbound, 80))),
        ("IPv6", "[fd00::2]:40000", "[fd09::1]:80", ESTABLISHED, app, Some((outbound, 80))),
        ("link-local", "[fe80::2]:40000", "[fe80::1]:80", ESTABLISHED, app, Some((outbound, 80))),
        ("client on the link", "[fe80::2]:80", "[fe80::1]:50000", ESTABLISHED, app, None),
        ("mapped", "[::ffff:10.0.0.2]:40000", "[::ffff:10.9.0.1]:80", ESTABLISHED, app, Some((outbound, 80))),
        ("closed", "10.0.0.2:40000", "10.1.0.1:25", TIME_WAIT, 0, Some((outbound, 25))),
        ("not yet open", "10.0.0.2:40000", "10.1.0.1:25", SYN_SENT, app, None),
        ("redirected", "10.0.0.2:40000", "10.1.0.1:80", ESTABLISHED, app, None),
        ("the proxy's", "10.0.0.2:40000", "10.1.0.1:25", ESTABLISHED, 2102, None),
        ("loopback", "127.0.0.1:40000", "127.0.0.1:25", ESTABLISHED, app, None),
        ("the proxy's side of a redirected one", "127.0.0.1:4140", "10.0.0.2:25", ESTABLISHED, 2102, None),
        ("another loopback address", "127.0.0.1:40000", "127.0.0.53:25", ESTABLISHED, app, None),
        ("own address", "10.0.0.2:40000", "10.0.0.2:25", ESTABLISHED, app, None),
        ("client of a skipped port", "10.0.0.2:22", "10.1.0.1:25", ESTABLISHED, 0, Some((inbound, 22))),
        ("client of a skipped range", "10.0.0.2:5005", "10.1.0.1:999", ESTABLISHED, 0, Some((inbound, 5005))),
        ("client in a skipped subnet", "10.0.0.2:80", "10.9.0.1:999", ESTABLISHED, 0, Some((inbound, 80))),
        ("nobody listens any more", "10.0.0.2:81", "10.9.0.1:50000", TIME_WAIT, 0, Some((inbound, 81))),
        ("server on a client's port", "10.0.0.2:40000", "10.9.0.1:50051", TIME_WAIT, 0, Some((outbound, 50051))),
        ("mesh peer in a skipped subnet", "10.0.0.2:4143", "10.9.0.1:999", TIME_WAIT, 0, None),
        ("client that was redirected", "10.0.0.2:4141", "10.1.0.1:999", ESTABLISHED, 2102, None),
    ] {
        let listening = [22, 80, 4140, 4141, 4143, 5005]
            .map(|port| line(&format!("0.0.0.0:{port}"), "0.0.0.0:0", LISTEN, 0))
            .concat();
        let (found, ..) = look(&HashSet::new(), &format!("{listening}{}", line(local, remote, state, uid)));
        let expected: Vec<_> = expected.map(|(direction, port)| (direction, port, 1)).into_iter().collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn a_connection_counts_once_while_it_is_seen() {
    let open = line("10.0.0.2:40000", "10.1.0.1:25", ESTABLISHED, 1000);
    let closed = line("10.0.0.2:40000", "10.1.0.1:25", TIME_WAIT, 0);
    let (found, seen, _) = look(&HashSet::new(), &open);
    assert_eq!(found, [(Direction::Outbound, 25, 1)]);
    let (found, seen, _) = look(&seen, &closed);
    assert_eq!((found, seen.len()), (vec![], 1));
    let (found, seen, _) = look(&seen, "");
    assert_eq!((found, seen.len()), (vec![], 0));
    assert_eq!(look(&seen, &open).0, [(Direction::Outbound, 25, 1)], "the addresses were used again");
}

#[test]
fn a_connection_of_the_proxy_does_not_become_the_applications_when_it_closes() {
    let (found, seen, _) = look(&HashSet::new(), &line("10.0.0.2:40000", "10.1.0.1:25", ESTABLISHED, 2102));
    assert_eq!(found, []);
    assert_eq!(look(&seen, &line("10.0.0.2:40000", "10.1.0.1:25", TIME_WAIT, 0)).0, []);
}

#[test]
fn more_connections_than_can_be_told_apart_are_reported() {
    let table = |hosts: std::ops::Range<usize>| -> String {
        let host = |i: usize| format!("10.9.{}.{}:80", i / 250, i % 250 + 1);
        hosts.map(|i| line("10.0.0.2:40000", &host(i), ESTABLISHED, 1000)).collect()
    };
    let (found, seen, untracked) = look(&HashSet::new(), &table(0..MAX_TRACKED + 10));
    assert_eq!((found, seen.len(), untracked), (vec![(Direction::Outbound, 80, 16_384)], MAX_TRACKED, 10));
    let (found, seen, untracked) = look(&seen, &table(0..MAX_TRACKED + 10));
    assert_eq!((found, seen.len(), untracked), (vec![], MAX_TRACKED, 10), "nothing is counted twice");
    let (found, seen, _) = look(&seen, &table(20..MAX_TRACKED + 10));
    assert_eq!((found, seen.len()), (vec![], MAX_TRACKED - 20), "room is known at the next look");
    let (found, _, untracked) = look(&seen, &table(20..MAX_TRACKED + 10));
    assert_eq!((found, untracked), (vec![(Direction::Outbound, 80, 10)], 0));
}

#[test]
fn datagrams_are_the_difference_between_two_samples() {
    let snmp = "Ip: Forwarding DefaultTTL\nIp: 1 64\nIcmp: InMsgs InEchos OutEchoReps\nIcmp: 99 2 3\n\
                Udp: InDatagrams NoPorts InErrors OutDatagrams\nUdp: 10 1 0 20\n\
                UdpLite: InDatagrams OutDatagrams\nUdpLite: 1 1\n";
    let snmp6 = "Ip6InReceives                   \t99\nUdp6InDatagrams                 \t5\nUdp6OutDatagrams\t6\nIcmp6InEchos\t7\n";
    let mut now = Datagrams::default();
    now.snmp(snmp.as_bytes()).expect("a table");
    now.snmp6(snmp6.as_bytes()).expect("a table");
    now.snmp6("SctpOutSCTPPacks\t100\n".as_bytes()).expect("a table");
    assert_eq!(now, Datagrams { udp_in: 15, udp_out: 26, other_in: 10, other_out: 104 });
    let before = Datagrams { udp_in: 15, udp_out: 20, other_in: 11, other_out: 103 };
    let new: Vec<_> = now.since(before).map(|b| (b.direction, b.protocol, b.port, b.count)).collect();
    assert_eq!(
        new,
        [(Direction::Outbound, BypassedProtocol::Udp, 0, 6), (Direction::Outbound, BypassedProtocol::Other, 0, 1)]
    );
}

#[test]
fn the_tables_of_this_kernel_are_understood() {
    let mut sampler = Sampler::new(rules());
    sampler.sample().expect("the tables of this kernel");
    assert!(sampler.datagrams.is_some());
}

#[test]
fn a_line_that_is_not_understood_is_named() {
    let rules = rules();
    let before = HashSet::new();
    let long = "x".repeat(5000);
    for (table, line) in [(format!("{HEADER}what"), 2), (format!("{HEADER}{long}\n"), 2), (long, 1)] {
        let error = Round::new(&rules, &before).tcp(table.as_bytes()).expect_err("not a table");
        assert!(matches!(error, Broken::Line(number) if number == line), "{error:?}");
    }
    let error = Datagrams::default().snmp("Udp: InDatagrams\nUdp: many\n".as_bytes()).expect_err("not a number");
    assert!(matches!(error, Broken::Line(2)), "{error:?}");
}

proptest! {
    #[test]
    fn no_bytes_panic_the_parsers(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let (rules, before) = (rules(), HashSet::new());
        let _ = Round::new(&rules, &before).tcp(bytes.as_slice());
        let _ = Datagrams::default().snmp(bytes.as_slice());
        let _ = Datagrams::default().snmp6(bytes.as_slice());
    }

    #[test]
    fn no_text_like_a_table_panics_the_parsers(
        text in "([0-9A-F]{8}|[0-9A-F]{32}|[0-9]{1,30}|Udp:|Udp6InDatagrams|InDatagrams|0A|06|é|:| |\n){0,60}"
    ) {
        let (rules, before) = (rules(), HashSet::new());
        let _ = Round::new(&rules, &before).tcp(format!("\n{text}").as_bytes());
        let _ = Datagrams::default().snmp(text.as_bytes());
        let _ = Datagrams::default().snmp6(text.as_bytes());
    }

    #[test]
    fn an_address_survives_being_written(ip: IpAddr, port: u16) {
        let addr = SocketAddr::new(ip, port);
        let remote = if addr.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = Socket::parse(&line(&addr.to_string(), remote, LISTEN, 7)).expect("a line");
        prop_assert_eq!((socket.local, socket.uid), (SocketAddr::new(ip.to_canonical(), port), 7));
    }
}
