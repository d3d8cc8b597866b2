//! Performs one probe on the pod's own address, and says how it ended.

use std::{fmt, io, net::IpAddr, net::SocketAddr, time::Duration};

use ::http::StatusCode;
use hauberk_mesh::{PROXY_PORTS, Probe, ProbeAction, ProbeKind};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

use super::{
    grpc,
    http::{self, Get},
};
use crate::socket::{self, ConnectError, Route};

/// Who asks, and where.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// The pod's address that the question came to.
    pub(super) own: IpAddr,
    /// Who kubelet says it is.
    pub(super) agent: String,
}

/// How a probe ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was done.
    Done,
    /// By HTTP the application answered so.
    Answered(StatusCode),
    /// It could not be done, in words of ours.
    Failed(String),
}

impl Outcome {
    /// What kubelet makes of it: for a hook, every answer is a success.
    pub(super) fn succeeds(&self, kind: ProbeKind) -> bool {
        match self {
            Self::Done => true,
            Self::Answered(status) => kind.is_hook() || (200..400).contains(&status.as_u16()),
            Self::Failed(_) => false,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Answered(status) => write!(f, "the application answered {}", status.as_u16()),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// Why a probe could not be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{0} has no address: {1}")]
    Resolve(String, io::Error),
    #[error("port {0} is the proxy's own")]
    OwnPort(u16),
    #[error("the application answers HTTPS with something else")]
    NotTls,
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("the declared request is not valid: {0}")]
    Request(String),
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("the application answered {0}, which ends no request")]
    Status(u16),
    #[error("10 redirects and no end")]
    Redirects,
    #[error("the application redirects to what is no URL")]
    Location,
    #[error("gRPC: {0}")]
    Grpc(String),
}

/// Performs `probe` within `limit`.
pub(super) async fn perform(probe: &Probe, asked: &Asked, limit: Duration) -> Outcome {
    match timeout(limit, attempt(probe, asked, limit)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(fault)) => Outcome::Failed(fault.to_string()),
        Err(_) => Outcome::Failed(format!("no answer within {limit:?}")),
    }
}

async fn attempt(probe: &Probe, asked: &Asked, limit: Duration) -> Result<Outcome, Fault> {
    match &probe.action {
        ProbeAction::HttpGet { https, host, port, path, headers } => {
            let host = host_of(host.as_deref(), asked);
            let get = Get { https: *https, host: &host, port: *port, path, headers, agent: &asked.agent };
            let status = match http::get(&get, limit).await {
                // Kubelet does so for hooks alone, and then keeps credentials to itself.
                Err(Fault::NotTls) if probe.kind.is_hook() => {
                    let headers: Vec<_> = headers.iter().filter(|(name, _)| !is_authorization(name)).cloned().collect();
                    http::get(&Get { https: false, headers: &headers, ..get }, limit).await
                }
                other => other,
            };
            status.map(Outcome::Answered)
        }
        ProbeAction::TcpSocket { host, port } => {
            connect(&host_of(host.as_deref(), asked), *port, limit).await.map(|_| Outcome::Done)
        }
        ProbeAction::Grpc { port, service } => {
            check_port(*port)?;
            grpc::check(SocketAddr::new(asked.own, *port), service, &asked.agent).await.map(|()| Outcome::Done)
        }
    }
}

fn is_authorization(name: &str) -> bool {
    name.eq_ignore_ascii_case("authorization")
}

fn host_of(declared: Option<&str>, asked: &Asked) -> String {
    declared.filter(|host| !host.is_empty()).map_or_else(|| asked.own.to_string(), str::to_owned)
}

/// Connects to `host`, an address or a name, past the redirection: these are packets of the proxy's uid.
pub(super) async fn connect(host: &str, port: u16, limit: Duration) -> Result<TcpStream, Fault> {
    check_port(port)?;
    let addrs: Vec<SocketAddr> = match host.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => {
            let found = lookup_host((host, port)).await.map_err(|error| Fault::Resolve(host.to_owned(), error))?;
            found.collect()
        }
    };
    let mut last = Fault::Resolve(host.to_owned(), io::ErrorKind::NotFound.into());
    for addr in addrs {
        match socket::connect(addr, Route::Any, limit).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// What answers there would be the proxy, and say nothing of the application.
fn check_port(port: u16) -> Result<(), Fault> {
    if PROXY_PORTS.contains(&port) { Err(Fault::OwnPort(port)) } else { Ok(()) }
}
