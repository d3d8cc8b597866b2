//! WebSocket through the mesh: a request of HTTP that nginx upgrades, to a backend of its own pod or of another.

use std::{
    any::Any,
    net::{Ipv6Addr, SocketAddr, TcpStream},
};

use hauberk_lab::{Pod, PodOptions};
use tungstenite::{Message, WebSocket};

use crate::{
    applications::{Application, show_alone},
    common::{Server, dial, pair},
    evidence::{assert_mtls_both_ends, assert_only_tls13, assert_unseen},
    nginx::nginx,
};

const GREETING: &str = "a-greeting-over-websocket-2fd6";
const MESSAGE: &str = "a-message-over-websocket-90b3";
const BACKEND: u16 = 9001;

pub(crate) const WEBSOCKET: Application =
    Application { name: "websocket", port: 8081, start, talk, connections: 1, markers: &[GREETING, MESSAGE] };

#[test]
fn nginx_upgrades_a_websocket_through_the_mesh() {
    show_alone(&WEBSOCKET);
}

#[test]
fn a_websocket_crosses_the_mesh_twice_when_its_backend_is_another_pod() {
    let (lab, client, gateway) = pair();
    let backend = lab.pod(PodOptions::new("backend").namespace("shop").account("backend").meshed()).expect("a pod");
    lab.start_proxy(&backend).expect("the backend's proxy starts");
    let _backend = websocket_server(&backend, backend.at(BACKEND));
    let _nginx = nginx(&gateway, 8081, &upgrade_to(backend.at(BACKEND)));
    let capture = lab.capture().expect("tcpdump starts");
    talk(&client, &gateway, gateway.at(8081));
    for (from, to, port) in [(&client, &gateway, 8081), (&gateway, &backend, BACKEND)] {
        let ends = assert_mtls_both_ends(from, to, to.at(port));
        assert_eq!(ends.client.len(), 1, "{:#?}", ends.client);
    }
    let captured = capture.stop().expect("tcpdump ends");
    assert_only_tls13(&captured, &client, &gateway, 1);
    assert_only_tls13(&captured, &gateway, &backend, 1);
    assert_unseen(&captured, WEBSOCKET.markers);
}

/// nginx, and a backend that only its own pod can reach.
fn start(pod: &Pod, port: u16) -> Vec<Box<dyn Any>> {
    let backend = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), BACKEND);
    vec![Box::new(websocket_server(pod, backend)), Box::new(nginx(pod, port, &upgrade_to(backend)))]
}

fn upgrade_to(backend: SocketAddr) -> String {
    format!(
        "location / {{ proxy_pass http://{backend}; proxy_http_version 1.1; \
         proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection \"upgrade\"; }}"
    )
}

/// Greets, then gives back each message until the client closes.
fn websocket_server(pod: &Pod, at: SocketAddr) -> Server {
    Server::listen(pod, at, |stream| {
        let mut socket = tungstenite::accept(stream).expect("nginx passes the upgrade on");
        socket.send(Message::text(GREETING)).expect("nginx reads");
        while let Ok(message) = socket.read() {
            if message.is_text() || message.is_binary() {
                socket.send(message).expect("nginx reads");
            }
        }
    })
}

/// The server speaks first, once there is a socket; then text, a megabyte, a ping, and an orderly close.
fn talk(client: &Pod, _server: &Pod, at: SocketAddr) {
    let stream = dial(client, at).expect("nginx accepts");
    let (mut socket, answer) = tungstenite::client(format!("ws://{at}/chat"), stream).expect("nginx upgrades");
    assert_eq!(answer.status(), 101);
    assert_eq!(hear(&mut socket), Message::text(GREETING));
    let long = Message::binary(MESSAGE.repeat(1_000_000 / MESSAGE.len()));
    for message in [Message::text(MESSAGE), long] {
        socket.send(message.clone()).expect("nginx reads");
        assert!(hear(&mut socket) == message, "each message comes back");
    }
    socket.send(Message::Ping(MESSAGE.into())).expect("nginx reads");
    assert_eq!(hear(&mut socket), Message::Pong(MESSAGE.into()));
    socket.close(None).expect("nginx reads");
    while socket.read().is_ok() {}
}

fn hear(socket: &mut WebSocket<TcpStream>) -> Message {
    socket.read().expect("the backend answers")
}
