//! The listener against real applications: what they are asked, and what kubelet is told.

mod answers;
mod application;
mod hooks;
mod requests;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hauberk_mesh::{Limits, Probe, ProbeAction, ProbeKind};
use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::Probes;
use crate::{metrics::Metrics, socket};

/// Longer than anything that works takes.
const LIMIT: Duration = Duration::from_secs(20);
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A listener, and what runs for it. Dropped, all of it ends.
struct Kubelet {
    addr: SocketAddr,
    registry: Registry,
    _tasks: JoinSet<()>,
}

impl Kubelet {
    fn new(probes: &[Probe]) -> Self {
        let listener = socket::listen(SocketAddr::new(LOCAL, 0)).expect("a free port");
        let addr = listener.local_addr().expect("it listens");
        let mut registry = Registry::with_prefix("hauberk");
        let metrics = Arc::new(Metrics::register(&mut registry, &Limits::default()));
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::new(Probes::new(probes, metrics)).serve(listener, CancellationToken::new()));
        Self { addr, registry, _tasks: tasks }
    }

    /// Status and body for `path`; nothing where the connection ends without an answer.
    async fn get(&self, path: &str) -> Option<(u16, String)> {
        self.say(&format!("GET {path} HTTP/1.1\r\nHost: pod\r\nUser-Agent: kube-probe/1.34\r\n\r\n")).await
    }

    async fn say(&self, request: &str) -> Option<(u16, String)> {
        let mut tcp = TcpStream::connect(self.addr).await.expect("it accepts");
        tcp.write_all(request.as_bytes()).await.expect("it reads");
        answer(&mut tcp).await
    }

    /// What it says of the one probe that is declared.
    async fn ask(&self, probe: &Probe) -> Option<(u16, String)> {
        self.get(&probe.path()).await
    }

    fn metrics(&self) -> String {
        let mut out = String::new();
        prometheus_client::encoding::text::encode(&mut out, &self.registry).expect("a String takes everything");
        out
    }
}

async fn answer(tcp: &mut TcpStream) -> Option<(u16, String)> {
    let mut answer = String::new();
    timeout(LIMIT, tcp.read_to_string(&mut answer)).await.expect("it ends").ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Some((status, body.to_owned()))
}

fn probe(kind: ProbeKind, action: ProbeAction) -> Probe {
    let timeout_seconds = if kind.is_hook() { 0 } else { 5 };
    Probe { container: "app".to_owned(), kind, action, timeout_seconds }
}

fn readiness(action: ProbeAction) -> Probe {
    probe(ProbeKind::Readiness, action)
}

fn http(port: u16, path: &str) -> ProbeAction {
    ProbeAction::HttpGet { https: false, host: None, port, path: path.to_owned(), headers: Vec::new() }
}

fn with_headers(action: ProbeAction, declared: &[(&str, &str)]) -> ProbeAction {
    let declared = declared.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    match action {
        ProbeAction::HttpGet { https, host, port, path, .. } => {
            ProbeAction::HttpGet { https, host, port, path, headers: declared }
        }
        other => other,
    }
}

fn secure(action: ProbeAction) -> ProbeAction {
    match action {
        ProbeAction::HttpGet { host, port, path, headers, .. } => {
            ProbeAction::HttpGet { https: true, host, port, path, headers }
        }
        other => other,
    }
}

/// A port of loopback that nothing listens on while this is held.
fn closed_port() -> (TcpSocket, u16) {
    let socket = TcpSocket::new_v4().expect("descriptors are free");
    socket.bind(SocketAddr::new(LOCAL, 0)).expect("a free port");
    let port = socket.local_addr().expect("bound").port();
    (socket, port)
}
