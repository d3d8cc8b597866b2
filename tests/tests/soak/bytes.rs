//! F12: any bytes to any listener. No process ends, none grows, and traffic goes on.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use hauberk_lab::{Lab, Pod};
use hauberk_mesh::{
    ADMIN_PORT, CONTROL_ADMIN_PORT, DESTINATION_PORT, IDENTITY_PORT, INBOUND_PORT, LOCAL_ADMIN_PORT, MESH_PORT,
    OUTBOUND_PORT, PROBES_PORT,
};
use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{Config, TestRunner},
};

use crate::{
    common::{Server, exchange, pair, proxy_pid, resident},
    scene::PORT,
    streams::metric,
};

/// Each goes to every listener.
const CASES: u32 = 40;
/// For a listener that waits for more: it would wait for seconds.
const PATIENCE: Duration = Duration::from_millis(20);
/// Buffers, caches and arenas that a process keeps once it has needed them.
const KEPT_KIB: u64 = 16 * 1024;

/// Beginnings that get further than chance does.
const BEGINNINGS: [&[u8]; 6] = [
    b"",
    b"GET /metrics HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    b"\x16\x03\x03\x40\x01",
    b"transport.l5d.io/v1\r\n\r\n\0\0\0\x04",
];

struct Target {
    from: Pod,
    to: SocketAddr,
}

/// Every listener: of the server's proxy, from outside and from inside the pod, and of the control plane.
fn listeners(lab: &Lab, client: &Pod, server: &Pod) -> Vec<Target> {
    let (identity, destination) = lab.control_pods().expect("they run");
    let outside =
        [INBOUND_PORT, MESH_PORT, PROBES_PORT, ADMIN_PORT, PORT].map(|port| (identity.clone(), server.at(port)));
    let local = |port| (server.clone(), SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let inside = [OUTBOUND_PORT, INBOUND_PORT, MESH_PORT, LOCAL_ADMIN_PORT].map(local);
    let control = [
        (client.clone(), identity.at(IDENTITY_PORT)),
        (client.clone(), identity.at(CONTROL_ADMIN_PORT)),
        (client.clone(), destination.at(DESTINATION_PORT)),
        (client.clone(), destination.at(CONTROL_ADMIN_PORT)),
    ];
    outside.into_iter().chain(inside).chain(control).map(|(from, to)| Target { from, to }).collect()
}

fn send(target: &Target, bytes: &[u8]) {
    let mut stream = match target.from.enter(|| TcpStream::connect_timeout(&target.to, Duration::from_secs(5))) {
        Ok(stream) => stream,
        // The proxy's own ports reset who dials them, perhaps while it still connects.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
        Err(error) => panic!("{} does not listen any more: {error}", target.to),
    };
    stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
    // It may refuse the bytes at any point; what matters is what becomes of the process.
    let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    let _ = stream.read(&mut [0; 1024]);
}

#[test]
fn any_bytes_to_any_listener_end_no_process_and_make_none_grow() {
    let (lab, client, server) = pair();
    let _echo = Server::echo(&server, PORT);
    let targets = listeners(&lab, &client, &server);
    let pids = [proxy_pid(&server), proxy_pid(&client), lab.destination_pid().expect("it runs")];
    let strategy =
        (select(&BEGINNINGS[..]), vec(any::<u8>(), 0..3000)).prop_map(|(begin, rest)| [begin, &rest].concat());
    let round = || {
        let mut runner = TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
        let sent = runner.run(&strategy, |bytes| {
            targets.iter().for_each(|target| send(target, &bytes));
            Ok(())
        });
        sent.expect("every listener listens on");
        pids.map(resident)
    };
    let (first, second) = (round(), round());
    for (before, after) in first.iter().zip(second) {
        assert!(after.saturating_sub(*before) < KEPT_KIB, "{first:?} KiB, then {second:?} KiB");
    }
    assert_eq!(exchange(&client, server.at(PORT), b"still here?").expect("served"), b"still here?");
    for pod in [&client, &server] {
        pod.with_proxy(|proxy| proxy.check_running()).expect("it runs");
        assert_eq!(metric(pod, "hauberk_panics_total", &[]), 0.0);
    }
}
