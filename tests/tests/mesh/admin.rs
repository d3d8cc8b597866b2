//! The admin ports: what anyone who reaches the pod may ask, what only the pod itself may, and who cannot keep others
//! from asking.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use hauberk_lab::{Lab, Pod, wait_for};
use hauberk_mesh::{ADMIN_PORT, CloseCause, Connections, Direction, LOCAL_ADMIN_PORT};

use crate::{
    common::{LIMIT, dial, identity},
    scene::{meshed, outbound, plain, scene},
    talk::{Samples, assert_refused, visit},
};

/// Status and body of one request.
fn request(from: &Pod, to: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = dial(from, to).expect("it accepts");
    // Whoever believes the header is told that this comes from inside.
    let host = format!("127.0.0.1:{LOCAL_ADMIN_PORT}");
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("a status"), body.to_owned())
}

#[test]
fn the_pods_address_answers_live_ready_and_metrics_and_nothing_else() {
    let pods = [meshed("web").dual_stack(), plain("old").dual_stack(), meshed("peer").dual_stack()];
    let (_lab, [web, old, peer]) = scene(pods, []);
    for (from, ip) in [&old, &peer].into_iter().flat_map(|from| web.ips().iter().map(move |ip| (from, *ip))) {
        let ask = |method, path| request(from, SocketAddr::new(ip, ADMIN_PORT), method, path);
        assert_eq!(ask("GET", "/live"), (200, "live\n".to_owned()), "{ip}");
        assert_eq!(ask("GET", "/ready"), (200, "ready\n".to_owned()), "{ip}");
        let (status, metrics) = ask("GET", "/metrics");
        assert!(status == 200 && metrics.ends_with("# EOF\n"), "{ip}: {status} {metrics}");
        for path in [
            "/",
            "/connections",
            "/connections/",
            "/connections?",
            "/Connections",
            "/%63onnections",
            "//connections",
            "/live/../connections",
            "/live/",
            "/debug/pprof",
            "http://127.0.0.1:4192/connections",
        ] {
            assert_eq!(ask("GET", path), (404, "not here\n".to_owned()), "{ip} {path}");
        }
        for (method, path) in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"]
            .into_iter()
            .flat_map(|method| ["/live", "/ready", "/metrics", "/connections", "/shutdown"].map(|path| (method, path)))
        {
            assert_eq!(ask(method, path).0, 405, "{ip} {method} {path}");
        }
    }
}

#[test]
fn connections_are_shown_on_loopback_which_nobody_else_reaches() {
    let pods = [meshed("web").dual_stack(), plain("old").dual_stack(), meshed("peer").dual_stack()];
    let (_lab, [web, old, peer]) = scene(pods, []);
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let ask = |path| request(&web, SocketAddr::new(ip, LOCAL_ADMIN_PORT), "GET", path);
        let (status, body) = ask("/connections");
        let document: Connections = serde_json::from_str(&body).expect("the document");
        assert_eq!((status, document.identity), (200, Some(identity("web"))), "{ip}");
        assert_eq!(["/live", "/ready", "/metrics", "/"].map(|path| ask(path).0), [200, 200, 200, 404], "{ip}");
    }
    for addr in web.ips().iter().map(|ip| SocketAddr::new(*ip, LOCAL_ADMIN_PORT)) {
        assert_eq!(visit(&old, addr).broken, Some(ErrorKind::ConnectionRefused), "{addr}: nothing listens");
        let by_proxy = visit(&peer, addr);
        assert_eq!(by_proxy.broken, Some(ErrorKind::ConnectionReset), "{addr}");
        let close = outbound(&peer, &by_proxy).close.expect("closed");
        assert_eq!(close.cause, CloseCause::ConnectRefused, "{addr}: the other proxy found that nothing listens");
        let own = visit(&web, addr);
        assert_refused(&web, Direction::Outbound, &own, (CloseCause::PortNotAllowed, None), "from the pod itself");
    }
}

#[test]
fn ready_says_what_is_pending_until_the_first_certificate() {
    let lab = Lab::new().expect("root and iproute2");
    let [web, old] = [meshed("web"), plain("old")].map(|options| lab.pod(options).expect("a pod"));
    lab.start_control_plane().expect("it starts");
    lab.stop_identity().expect("it ran");
    lab.launch_proxy(&web).expect("it starts");
    web.with_proxy(|proxy| web.wait_listening(ADMIN_PORT, proxy)).expect("it listens");
    let ready = || request(&old, web.at(ADMIN_PORT), "GET", "/ready");
    let refused = |(status, said): (u16, String)| {
        assert!(status == 503 && said.starts_with("waiting for the certificate: "), "{status} {said}");
        if said.contains("refused") { Ok(()) } else { Err(said) }
    };
    wait_for("it says why", LIMIT, || Ok(refused(ready()))).expect("the last attempt");
    assert_eq!(request(&old, web.at(ADMIN_PORT), "GET", "/live"), (200, "live\n".to_owned()));
    lab.start_identity().expect("it starts");
    web.wait_proxy_ready().expect("it gets its certificate");
    assert_eq!(ready(), (200, "ready\n".to_owned()));
}

#[test]
fn clients_that_never_finish_their_requests_do_not_keep_others_from_asking() {
    /// Far more than either port serves at once.
    const SLOW: usize = 300;
    let (_lab, [web, stranger]) = scene([meshed("web"), plain("stranger")], []);
    let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), LOCAL_ADMIN_PORT);
    let begin = |from: &Pod, to| {
        let mut stream = dial(from, to).expect("the kernel accepts");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: ").expect("the kernel takes it");
        stream
    };
    let _outside: Vec<_> = (0..SLOW).map(|_| begin(&stranger, web.at(ADMIN_PORT))).collect();
    let _inside: Vec<_> = (0..SLOW).map(|_| begin(&web, local)).collect();
    // The lab, as the node, waits less long than a slow client may take.
    assert_eq!(web.admin("/live").expect("it answers"), "live\n");
    assert_eq!(web.admin("/ready").expect("it answers"), "ready\n");
    let evicted = Samples::of(&web).sum("hauberk_limit_reached_total", &[("listener", "admin")]);
    // How many depends on the machine: on a slow one some ran out of time before they had to go.
    assert!(evicted > 0.0, "the oldest made room");
    assert_eq!(web.connections().expect("it answers").identity, Some(identity("web")));
}
