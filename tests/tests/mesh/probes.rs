//! K08, as far as it needs no kubelet: the probe listener through real redirection. The node asks, as kubelet does; each
//! kind of probe fails once only the application is gone; in `required` the probed port itself stays closed to it.

use std::{
    any::Any,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{Arc, mpsc::channel},
    time::Duration,
};

use hauberk_lab::{Lab, Pod, PodOptions, wait_for};
use hauberk_mesh::{CloseCause, Direction, PROBES_PORT, Probe, ProbeAction, ProbeKind, Reason, SidecarKind, TlsMode};
use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::{
    common::{LIMIT, Server, dial, exchange, give_back},
    scene::{meshed, scene},
    talk::{Samples, assert_refused, socket, tell_by},
};
use health::{
    HealthCheckRequest, HealthCheckResponse,
    health_server::{Health, HealthServer},
};

mod health {
    #![allow(missing_docs, unreachable_pub, reason = "generated code")]
    tonic::include_proto!("grpc.health.v1");
}

const HTTP: u16 = 7000;
const HTTPS: u16 = 7001;
const TCP: u16 = 7002;
const GRPC: u16 = 7003;
/// In every answer of the application; nobody who asks for a probe is to see it.
const SECRET: &str = "a-secret-of-the-application-9c1f";

fn get(https: bool, port: u16) -> ProbeAction {
    ProbeAction::HttpGet { https, host: None, port, path: "/health".to_owned(), headers: Vec::new() }
}

/// One container for each kind of probe: each kind once.
fn declared() -> Vec<Probe> {
    let probe = |container: &str, kind: ProbeKind, action: ProbeAction| {
        let timeout_seconds = if kind.is_hook() { 0 } else { 2 };
        Probe { container: container.to_owned(), kind, action, timeout_seconds }
    };
    vec![
        probe("web", ProbeKind::Readiness, get(false, HTTP)),
        probe("web", ProbeKind::Startup, get(true, HTTPS)),
        probe("db", ProbeKind::Liveness, ProbeAction::TcpSocket { host: None, port: TCP }),
        probe("cart", ProbeKind::Readiness, ProbeAction::Grpc { port: GRPC, service: "cart".to_owned() }),
        probe("web", ProbeKind::PostStart, get(false, HTTP)),
        probe("web", ProbeKind::PreStop, get(true, HTTPS)),
    ]
}

fn probed(name: &str) -> PodOptions {
    meshed(name).spec(|spec| spec.probes = declared())
}

/// The application of all containers. Dropped, it is killed: only the proxy is left.
fn application(pod: &Pod, ip: IpAddr) -> Vec<Box<dyn Any>> {
    let at = |port| SocketAddr::new(ip, port);
    vec![
        Box::new(Server::listen(pod, at(HTTP), |mut tcp| answer(&mut tcp))),
        Box::new(Server::listen(pod, at(HTTPS), by_tls())),
        Box::new(Server::listen(pod, at(TCP), give_back)),
        Box::new(grpc(pod, at(GRPC))),
    ]
}

/// Reads a request and answers it.
fn answer(stream: &mut (impl Read + Write)) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let status = if head.starts_with(b"GET /health HTTP/1.1\r\n") { "200 OK" } else { "400 Bad Request" };
    let length = SECRET.len();
    // Whoever does not wait for it is the test's.
    let _ = write!(stream, "HTTP/1.1 {status}\r\nX-{SECRET}: 1\r\nContent-Length: {length}\r\n\r\n{SECRET}");
    let _ = stream.flush();
}

/// The same by TLS, with a certificate that nobody would believe.
fn by_tls() -> impl Fn(TcpStream) + Send + Sync + Clone + 'static {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["elsewhere.example".to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("signed").der().clone();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .expect("a pair");
    let config = Arc::new(config);
    move |tcp| {
        let tls = ServerConnection::new(config.clone()).expect("a valid configuration");
        let mut stream = StreamOwned::new(tls, tcp);
        answer(&mut stream);
        stream.conn.send_close_notify();
        let _ = stream.flush();
    }
}

struct Cart;

#[tonic::async_trait]
impl Health for Cart {
    async fn check(&self, asked: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match asked.into_inner().service.as_str() {
            "cart" => Ok(Response::new(HealthCheckResponse { status: 1 })),
            _ => Err(Status::not_found(SECRET)),
        }
    }
}

/// A thread inside the pod that serves until this is dropped.
struct Running(Option<oneshot::Sender<()>>, Option<std::thread::JoinHandle<()>>);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.take());
        drop(self.1.take().map(std::thread::JoinHandle::join));
    }
}

fn grpc(pod: &Pod, addr: SocketAddr) -> Running {
    let (stop, stopped) = oneshot::channel::<()>();
    let (listens, listening) = channel();
    let pod = pod.clone();
    let serving = std::thread::spawn(move || {
        pod.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("descriptors are free").block_on(async {
                let listener = TcpListener::bind(addr).await.expect("the port is free");
                listens.send(()).expect("the test waits for it");
                let serving = tonic::transport::Server::builder()
                    .add_service(HealthServer::new(Cart))
                    .serve_with_incoming(TcpListenerStream::new(listener));
                // Ends with its connections, too, when the other end of the channel is gone.
                tokio::select! {
                    served = serving => served.expect("serves"),
                    _ = stopped => {}
                }
            });
        });
    });
    listening.recv_timeout(LIMIT).expect("the server listens");
    Running(Some(stop), Some(serving))
}

/// What curl on the node is answered: the status, 0 where there is no answer; and all that came.
fn curl(lab: &Lab, addr: SocketAddr, path: &str) -> (u16, String) {
    let url = format!("http://{addr}{path}");
    let args = ["-sS", "-i", "-A", "kube-probe/1.34", "--max-time", "20", "-w", "\n%{http_code}", &url];
    let output = lab.command("curl").args(args).output().expect("curl runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let (all, status) = text.rsplit_once('\n').expect("it ends with the status");
    (status.parse().expect("a number"), all.to_owned())
}

fn ask(lab: &Lab, pod: &Pod, ip: IpAddr, probe: &Probe) -> u16 {
    let (status, all) = curl(lab, SocketAddr::new(ip, PROBES_PORT), &probe.path());
    assert!(!all.contains(SECRET), "{} of {}: {all}", probe.path(), pod.name());
    status
}

#[test]
fn each_kind_of_probe_fails_once_only_the_application_is_gone() {
    let pods = [
        probed("optional").dual_stack(),
        probed("strict").tls(TlsMode::Required),
        probed("six").ipv6_only(),
        probed("off").tls(TlsMode::Disabled),
        meshed("without"),
    ];
    let (lab, pods) = scene(pods, []);
    for pod in &pods[..4] {
        for ip in pod.ips() {
            let running = application(pod, *ip);
            for probe in declared() {
                assert_eq!(ask(&lab, pod, *ip, &probe), 200, "{} of {ip}", probe.path());
            }
            drop(running);
            for probe in declared() {
                // To kubelet any answer to a hook is a success.
                let expected = if probe.kind.is_hook() { 0 } else { 503 };
                assert_eq!(ask(&lab, pod, *ip, &probe), expected, "{} of {ip}", probe.path());
            }
        }
        assert_eq!(pod.admin("/live").expect("it answers"), "live\n", "the proxy goes on");
        check_counts(pod);
    }
    let (status, all) = curl(&lab, pods[4].at(PROBES_PORT), "/probe/web/readiness");
    assert!(status == 404 && all.contains("no probe is declared"), "{status} {all}");
}

/// Probes are counted as such, and nowhere among the application's connections.
fn check_counts(pod: &Pod) {
    let samples = Samples::of(pod);
    let rounds = pod.ips().len() as f64;
    for (result, all) in [("success", 6.0), ("failure", 6.0)] {
        assert_eq!(samples.sum("hauberk_probes_total", &[("result", result)]), all * rounds, "{}", pod.name());
    }
    let own = pod.connections().expect("it answers");
    assert!(own.live.is_empty() && own.closed.is_empty(), "{}: {own:#?}", pod.name());
    assert_eq!(samples.sum("hauberk_connections_opened_total", &[]), 0.0, "{}", pod.name());
}

#[test]
fn in_required_the_node_gets_probes_answered_and_the_probed_port_refused() {
    let pods = [probed("strict").tls(TlsMode::Required), meshed("peer")];
    let (lab, [strict, peer]) = scene(pods, []);
    let _running = application(&strict, strict.ip());
    for probe in declared() {
        assert_eq!(ask(&lab, &strict, strict.ip(), &probe), 200, "{}", probe.path());
    }
    for port in [HTTP, HTTPS, TCP, GRPC] {
        assert_eq!(curl(&lab, strict.at(port), "/health"), (0, String::new()), "port {port}");
        let visit = tell_by(lab.enter(|| socket(strict.at(port))), hauberk_lab::NODE_V4.into(), strict.at(port), b"?");
        let refused = (CloseCause::Refused, Some(Reason::UnmeshedClient));
        assert_refused(&strict, Direction::Inbound, &visit, refused, &format!("port {port}"));
    }
    // Mesh peers reach the application.
    let answer = exchange(&peer, strict.at(HTTP), b"GET /health HTTP/1.1\r\n\r\n").expect("mTLS");
    assert!(String::from_utf8_lossy(&answer).contains(SECRET));
}

#[test]
fn hooks_work_while_the_proxy_drains_and_a_plain_sidecar_waits_for_their_end() {
    /// Longer than a plain sidecar waits for another connection.
    const LONGER: Duration = Duration::from_secs(3);
    let hook =
        Probe { container: "web".to_owned(), kind: ProbeKind::PreStop, action: get(false, HTTP), timeout_seconds: 0 };
    let pods = [SidecarKind::Native, SidecarKind::Plain].map(|kind| {
        let name = if kind == SidecarKind::Native { "native" } else { "plain" };
        meshed(name).spec(|spec| (spec.sidecar, spec.probes) = (kind, vec![hook.clone()]))
    });
    let (lab, [native, plain]) = scene(pods, []);

    let _echo = Server::echo(&native, TCP);
    let _web = Server::start(&native, HTTP, |mut tcp| answer(&mut tcp));
    let mut held = dial(&plain, native.at(TCP)).expect("mTLS");
    held.write_all(b"x").and_then(|()| held.read_exact(&mut [0])).expect("echo");
    native.terminate_proxy().expect("it runs");
    wait_draining(&native);
    assert_eq!(ask(&lab, &native, native.ip(), &hook), 200, "an open connection keeps the drain going");
    drop(held);
    assert!(native.with_proxy(|proxy| proxy.wait_exit(LIMIT)).expect("it ends").success());

    let (begins, begun) = channel();
    let _web = Server::start(&plain, HTTP, move |mut tcp| {
        begins.send(()).expect("the test waits for it");
        std::thread::sleep(LONGER);
        answer(&mut tcp);
    });
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&lab, &plain, plain.ip(), &hook));
        begun.recv_timeout(LIMIT).expect("the application is asked");
        plain.terminate_proxy().expect("it runs");
        assert_eq!(asking.join().expect("no panic"), 200);
    });
    assert!(plain.with_proxy(|proxy| proxy.wait_exit(LIMIT)).expect("it ends").success());
}

/// Waits until `pod`'s proxy has taken note of SIGTERM.
pub(crate) fn wait_draining(pod: &Pod) {
    let draining = || pod.with_proxy(|proxy| Ok(proxy.log().contains("draining")));
    wait_for("the proxy drains", LIMIT, || Ok(if draining()? { Ok(()) } else { Err("not yet".to_owned()) }))
        .expect("it does");
}
