//! The pod's own addresses are led over `lo`: a socket bound to it gets its answer, and ports are used again at once.

use std::{net::SocketAddr, time::Duration};

use nix::unistd::{Uid, setfsuid};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    netns::{Netns, Pair},
    run,
};

const POD: &str = "10.77.0.2";
const FOREIGN: &str = "local 10.99.0.1 dev lo proto 200 scope host src 10.77.0.2";

fn routes(netns: &Netns) -> String {
    netns.sh("ip route show table local")
}

/// Connects as the proxy does to the application: bound to `lo`.
fn over_lo(netns: &Netns, target: SocketAddr) -> std::io::Result<Socket> {
    netns.enter(|| {
        // The rules let the proxy's own connections pass.
        setfsuid(Uid::from_raw(2102));
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        socket.bind_device(Some(b"lo"))?;
        socket.connect_timeout(&target.into(), Duration::from_millis(500))?;
        Ok(socket)
    })
}

#[test]
fn the_pods_address_is_reached_over_lo_once_init_has_run() {
    let pair = Pair::ipv4_only();
    let _listener = pair.pod.listen(&["0.0.0.0:8080"]);
    let target: SocketAddr = format!("{POD}:8080").parse().expect("an address");
    // What makes the route needed at all. Should a kernel not need it, this says so.
    over_lo(&pair.pod, target).expect_err("the kernel counts the answer as coming from another device");
    run(&pair.pod, &[]);
    over_lo(&pair.pod, target).expect("an answer");
    assert!(routes(&pair.pod).contains(&format!("local {POD} dev lo proto 214")), "{}", routes(&pair.pod));
}

#[test]
fn twice_is_once_and_cleanup_removes_only_our_routes() {
    let pair = Pair::ipv4_only();
    pair.pod.sh(&format!("ip route add {FOREIGN} table local"));
    let before = routes(&pair.pod);
    run(&pair.pod, &["--dry-run"]);
    assert_eq!(routes(&pair.pod), before);
    run(&pair.pod, &[]);
    let once = routes(&pair.pod);
    assert_ne!(once, before);
    run(&pair.pod, &[]);
    assert_eq!(routes(&pair.pod), once);
    run(&pair.pod, &["--cleanup"]);
    assert_eq!(routes(&pair.pod), before);
}
