//! What whoever asks is told.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use hauberk_mesh::{PROBES_PORT, Probe, ProbeAction};
use tokio::{io::AsyncWriteExt, net::TcpSocket, sync::Notify, task::JoinSet};

use super::{Kubelet, answer, application::Application, closed_port, http, readiness, secure};

fn tcp(port: u16) -> ProbeAction {
    ProbeAction::TcpSocket { host: None, port }
}

fn grpc(port: u16, service: &str) -> ProbeAction {
    ProbeAction::Grpc { port, service: service.to_owned() }
}

async fn outcome(action: ProbeAction) -> (u16, String) {
    let probe = readiness(action);
    Kubelet::new(std::slice::from_ref(&probe)).ask(&probe).await.expect("an answer")
}

#[tokio::test]
async fn the_applications_status_is_passed_on_and_no_byte_of_its_body() {
    for status in [200, 201, 204, 304, 399, 400, 404, 503, 599] {
        let said = format!("HTTP/1.1 {status} Whatever\r\nX-Secret: s\r\n\r\n{}", "secret".repeat(9999));
        let app = Application::saying(&[&said]).await;
        assert_eq!(outcome(http(app.port, "/")).await, (status, String::new()));
    }
    let app =
        Application::saying(&["HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"]).await;
    assert_eq!(outcome(http(app.port, "/")).await.0, 503);
}

#[tokio::test]
async fn what_is_no_whole_answer_is_a_failure() {
    for said in [
        "",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal",
        "SSH-2.0-OpenSSH\r\n\r\n",
        "HTTP/1.1 20",
    ] {
        let app = Application::saying(&[said]).await;
        let (status, why) = outcome(http(app.port, "/")).await;
        assert_eq!(status, 503, "{said:?}");
        assert_eq!(why.lines().count(), 1, "{why:?}");
        assert!(!why.contains("half") && !why.contains("OpenSSH"), "{why}");
    }
}

#[tokio::test]
async fn an_application_that_is_down_fails_each_kind_with_the_reason() {
    let (_held, port) = closed_port();
    for action in [http(port, "/"), secure(http(port, "/")), tcp(port), grpc(port, "")] {
        let what = format!("{action:?}");
        let (status, why) = outcome(action).await;
        assert_eq!(status, 503, "{what}");
        assert!(why.contains("refused") && why.lines().count() == 1, "{what}: {why}");
    }
}

#[tokio::test]
async fn tcp_is_opened_and_closed() {
    let app = Application::saying(&["unasked"]).await;
    assert_eq!(outcome(tcp(app.port)).await, (200, "done\n".to_owned()));
    assert_eq!(outcome(tcp(PROBES_PORT)).await, (503, format!("port {PROBES_PORT} is the proxy's own\n")));
}

#[tokio::test]
async fn grpc_health_is_asked_by_service() {
    let app = Application::health("shop.Cart").await;
    assert_eq!(outcome(grpc(app.port, "shop.Cart")).await, (200, "done\n".to_owned()));
    assert_eq!(outcome(grpc(app.port, "")).await, (503, "gRPC: not serving, status 2\n".to_owned()));
    assert_eq!(outcome(grpc(app.port, "unknown")).await, (503, "gRPC: NotFound\n".to_owned()), "no word of its own");
    let head = format!("http://127.0.0.1:{}/grpc.health.v1.Health/Check application/grpc kube-probe/1.34", app.port);
    assert!(app.heads().iter().all(|asked| asked.starts_with(&head)), "{:?}", app.heads());
    let mute = Application::saying(&["HTTP/1.1 400 Bad Request\r\n\r\n"]).await;
    assert_eq!(outcome(grpc(mute.port, "")).await.0, 503);
}

#[tokio::test]
async fn an_application_that_hangs_fails_when_its_time_is_over() {
    let never = Arc::new(Notify::new());
    let app = Application::when(never, "").await;
    for action in [http(app.port, "/"), secure(http(app.port, "/")), grpc(app.port, "")] {
        let probe = Probe { timeout_seconds: 1, ..readiness(action) };
        let kubelet = Kubelet::new(std::slice::from_ref(&probe));
        assert_eq!(kubelet.ask(&probe).await, Some((503, "no answer within 1s\n".to_owned())), "{probe:?}");
    }
}

#[tokio::test]
async fn whoever_asks_meanwhile_gets_the_same_answer_and_the_application_is_asked_once() {
    let released = Arc::new(Notify::new());
    let app = Application::when(released.clone(), "HTTP/1.1 418 Teapot\r\n\r\n").await;
    let probe = readiness(http(app.port, "/"));
    let kubelet = Arc::new(Kubelet::new(std::slice::from_ref(&probe)));
    let mut asking = JoinSet::new();
    for _ in 0..10 {
        let (kubelet, probe) = (kubelet.clone(), probe.clone());
        asking.spawn(async move { kubelet.ask(&probe).await });
    }
    // Every asker has had its turn on this one thread before the application's answer has.
    while app.heads().is_empty() {
        tokio::task::yield_now().await;
    }
    released.notify_one();
    while let Some(answer) = asking.join_next().await {
        assert_eq!(answer.expect("no panic"), Some((418, String::new())));
    }
    assert_eq!(app.accepted(), 1);
    released.notify_one();
    assert_eq!(kubelet.ask(&probe).await, Some((418, String::new())));
    assert_eq!(app.accepted(), 2, "what has ended is asked anew");
    let counted = r#"hauberk_probes_total{probe="readiness",result="failure"} 11"#;
    assert!(kubelet.metrics().contains(counted), "{}", kubelet.metrics());
}

#[tokio::test]
async fn an_unknown_path_is_told_what_exists() {
    let app = Application::saying(&["HTTP/1.1 200 OK\r\n\r\n"]).await;
    let kubelet = Kubelet::new(&[readiness(http(app.port, "/"))]);
    for path in ["/", "/probe/app/liveness", "/probe/App/readiness", "/probe/app/readiness/", "/connections"] {
        let said = format!("{path:?} is not declared; these are:\n/probe/app/readiness\n");
        assert_eq!(kubelet.get(path).await, Some((404, said)), "{path}");
    }
    let said = "no probe is declared, also not \"/probe/app/readiness\"\n".to_owned();
    assert_eq!(Kubelet::new(&[]).get("/probe/app/readiness").await, Some((404, said)));
    let post = "POST /probe/app/readiness HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(kubelet.say(post).await, Some((405, "use GET\n".to_owned())));
    assert_eq!(app.accepted(), 0);
}

#[tokio::test]
async fn one_address_cannot_hold_every_place() {
    let app = Application::saying(&["HTTP/1.1 200 OK\r\n\r\n"]).await;
    let probe = readiness(http(app.port, "/"));
    let kubelet = Kubelet::new(std::slice::from_ref(&probe));
    let stranger = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
    let mut held = Vec::new();
    for _ in 0..super::super::PER_SOURCE {
        let socket = TcpSocket::new_v4().expect("descriptors are free");
        socket.bind(SocketAddr::new(stranger, 0)).expect("a free port");
        let mut tcp = socket.connect(kubelet.addr).await.expect("it accepts");
        tcp.write_all(b"GET / HT").await.expect("open");
        held.push(tcp);
    }
    let socket = TcpSocket::new_v4().expect("descriptors are free");
    socket.bind(SocketAddr::new(stranger, 0)).expect("a free port");
    let mut more = socket.connect(kubelet.addr).await.expect("the kernel accepts");
    assert_eq!(answer(&mut more).await, None, "one more than its share");
    assert_eq!(kubelet.ask(&probe).await, Some((200, String::new())));
    assert!(kubelet.metrics().contains(r#"hauberk_limit_reached_total{listener="probes"} 1"#));
}
