//! A mesh of a few pods in a temporary directory, a server for it, and a server that does as a test says.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use hauberk_api::trust::{
    Bundle, WatchRequest,
    trust_server::{Trust, TrustServer},
};
use hauberk_identity::{
    Agent, AgentConfig, SecretKey, Store,
    grpc::{self, ClientAuth, ConnectInfo, IncomingLimits},
    server::{Ca, CertifyLimits, Lifetimes, LocalTokens, Server, ServerConfig, SourcesConfig},
    server_name,
};
use hauberk_mesh::{IDENTITY_ACCOUNT, IdentityName, MeshFile, Pod, TOKEN_AUDIENCE, TrustDomain};
use linkerd2_proxy_api::identity::{
    CertifyRequest, CertifyResponse,
    identity_client::IdentityClient,
    identity_server::{Identity, IdentityServer},
};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::Channel};

pub(crate) const MESH: &str = "\
networks: 10.1.0.0/16
pods:
  - {name: web-0, namespace: shop, uid: u-web, serviceAccount: web, ips: [10.1.0.2], proxy: {}}
  - {name: plain, namespace: shop, uid: u-plain, serviceAccount: plain, ips: [10.1.0.3]}
  - {name: job, namespace: shop, uid: u-job, serviceAccount: web, ips: [10.1.0.4], proxy: {}, ended: true}
  - {name: destination-0, namespace: hauberk, uid: u-dst, serviceAccount: hauberk-destination, ips: [10.1.0.5]}
  - {name: other, namespace: hauberk, uid: u-other, serviceAccount: other, ips: [10.1.0.6]}
";

/// Nothing here takes long; what takes this long hangs.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), what).await.expect("not within 30 s")
}

pub(crate) fn identity(account: &str, namespace: &str) -> IdentityName {
    TrustDomain::default().identity(account, namespace).expect("a valid name")
}

pub(crate) fn web() -> IdentityName {
    identity("web", "shop")
}

pub(crate) fn server_identity() -> IdentityName {
    identity(IDENTITY_ACCOUNT, "hauberk")
}

/// Certificates start far in the past, so that a test can have one that has ended, or will soon.
pub(crate) fn long_skew() -> Lifetimes {
    Lifetimes { skew: Duration::from_secs(72 * 3600), ..Lifetimes::default() }
}

pub(crate) fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

/// A running server, with its directory.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) tokens: LocalTokens,
    pub(crate) ca: Arc<Ca>,
    pub(crate) addr: SocketAddr,
    pub(crate) admin: SocketAddr,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(Lifetimes::default()).await
    }

    pub(crate) async fn start_with(lifetimes: Lifetimes) -> Self {
        let dir = TempDir::new().expect("a directory");
        std::fs::write(dir.path().join("mesh.yaml"), MESH).expect("written");
        let config = ServerConfig {
            sources: SourcesConfig::Files { services: dir.path().join("mesh.yaml"), dir: dir.path().join("ca") },
            listen: loopback(),
            admin: loopback(),
            domain: TrustDomain::default(),
            lifetimes,
            certify: CertifyLimits::default(),
            incoming: IncomingLimits::default(),
        };
        let server = Server::bind(config).await.expect("bound");
        let (addr, admin) = server.addresses().expect("bound");
        let (ca, stop, mut tasks) = (server.ca().expect("of files"), CancellationToken::new(), JoinSet::new());
        let stopped = stop.clone();
        tasks.spawn(async move { server.run(stopped).await.expect("runs until stopped") });
        let tokens = LocalTokens::open_or_create(&dir.path().join("ca")).expect("tokens");
        Self { dir, tokens, ca, addr, admin, stop, tasks }
    }

    /// Stops the server; the directory stays.
    pub(crate) async fn stop(mut self) -> TempDir {
        self.stop.cancel();
        while let Some(ended) = soon(self.tasks.join_next()).await {
            ended.expect("no panic");
        }
        self.dir
    }

    pub(crate) fn ca_dir(&self) -> PathBuf {
        self.dir.path().join("ca")
    }

    pub(crate) fn edit_mesh(&self, from: &str, to: &str) {
        let path = self.dir.path().join("mesh.yaml");
        let text = std::fs::read_to_string(&path).expect("read");
        assert!(text.contains(from), "{from}");
        std::fs::write(&path, text.replace(from, to)).expect("written");
    }

    /// What an agent in web-0 is told.
    pub(crate) fn agent(&self) -> AgentConfig {
        agent_config(self.addr, self.dir.path(), &self.tokens, &self.ca)
    }

    /// A client that has no certificate yet.
    pub(crate) fn client(&self) -> IdentityClient<Channel> {
        IdentityClient::new(grpc::channel(self.addr, server_identity(), self.stranger()))
    }

    /// A store that knows the roots and has no certificate.
    pub(crate) fn stranger(&self) -> Store {
        Agent::new(AgentConfig { dir: None, ..self.agent() }).expect("a valid configuration").1
    }

    pub(crate) async fn metrics(&self) -> String {
        get(self.admin, "/metrics").await
    }
}

/// What an agent in web-0 is told, with its token minted and its volume in `dir`.
pub(crate) fn agent_config(server: SocketAddr, dir: &Path, tokens: &LocalTokens, ca: &Ca) -> AgentConfig {
    let token_file = dir.join("token");
    let token = tokens.mint(&pod("web-0"), TOKEN_AUDIENCE, Duration::from_secs(3600));
    std::fs::write(&token_file, token).expect("written");
    let mut config = AgentConfig::new(web(), server, token_file, Some(dir.join("volume")), ca.bundle().to_pem());
    config.retry_first = Duration::from_millis(20);
    config.retry_most = Duration::from_millis(200);
    config
}

pub(crate) fn pod(name: &str) -> Pod {
    let mesh = MeshFile::parse(MESH).expect("valid");
    mesh.pods.into_values().find(|pod| pod.name == name).expect("a pod of that name")
}

/// What web-0 asks for, all of it right.
pub(crate) fn request(tokens: &LocalTokens) -> CertifyRequest {
    CertifyRequest {
        identity: web().to_string(),
        token: tokens.mint(&pod("web-0"), TOKEN_AUDIENCE, Duration::from_secs(3600)).into_bytes(),
        certificate_signing_request: SecretKey::generate().expect("a key").request(&web()).expect("a request"),
    }
}

/// An agent that runs until dropped.
pub(crate) struct Running {
    pub(crate) store: Store,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Running {
    pub(crate) fn start(config: AgentConfig) -> Self {
        let (agent, store) = Agent::new(config).expect("a valid configuration");
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        tasks.spawn(agent.run(stop.clone()));
        Self { store, stop, tasks }
    }

    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = soon(self.tasks.join_next()).await {
            ended.expect("no panic");
        }
    }
}

/// A mesh client's TLS configuration for the identity server, with what `ca` trusts and signs now.
pub(crate) fn client_config(ca: &Ca) -> rustls::ClientConfig {
    let own = ca.credentials(&web(), 1, SystemTime::now()).expect("a certificate");
    let mut config = (*own.mesh_client(&server_identity(), Arc::default())).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// The chain that the identity server at `addr` proves itself with to such a client, if it does.
pub(crate) async fn shown(addr: SocketAddr, ca: &Ca) -> std::io::Result<Vec<CertificateDer<'static>>> {
    let tcp = TcpStream::connect(addr).await?;
    let connector = TlsConnector::from(Arc::new(client_config(ca)));
    let tls = soon(connector.connect(server_name(&server_identity()), tcp)).await?;
    Ok(tls.get_ref().1.peer_certificates().unwrap_or_default().to_vec())
}

/// Over plain HTTP: what an admin port answers, its status line first.
pub(crate) async fn get(addr: SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = TcpStream::connect(addr).await.expect("connected");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.expect("answered");
    answer
}

/// An identity server that answers as the test says. Each call of Certify is handed to the test.
pub(crate) struct Script {
    pub(crate) addr: SocketAddr,
    pub(crate) ca: Arc<Ca>,
    /// Calls of Certify, with where to answer.
    pub(crate) calls: mpsc::Receiver<(CertifyRequest, mpsc::Sender<Result<CertifyResponse, Status>>)>,
    /// What Trust.Watch streams next, to whoever watches.
    pub(crate) bundles: mpsc::Sender<Bundle>,
    /// What the caller of Trust.Watch said it has adopted last.
    pub(crate) adopted: watch::Receiver<u64>,
    /// Who called Trust.Watch.
    pub(crate) callers: mpsc::Receiver<ConnectInfo>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Scripted {
    calls: mpsc::Sender<(CertifyRequest, mpsc::Sender<Result<CertifyResponse, Status>>)>,
    bundles: tokio::sync::Mutex<mpsc::Receiver<Bundle>>,
    adopted: watch::Sender<u64>,
    callers: mpsc::Sender<ConnectInfo>,
}

impl Script {
    pub(crate) async fn start(ca: Arc<Ca>, auth: ClientAuth) -> Self {
        let own = ca.credentials(&server_identity(), 1, SystemTime::now()).expect("a certificate");
        Self::start_as(ca, Store::fixed(own.into()), auth, IncomingLimits::default()).await
    }

    pub(crate) async fn start_as(ca: Arc<Ca>, own: Store, auth: ClientAuth, limits: IncomingLimits) -> Self {
        let listener = TcpListener::bind(loopback()).await.expect("bound");
        let addr = listener.local_addr().expect("bound");
        let ((calls_in, calls), (bundles, bundles_out)) = (mpsc::channel(8), mpsc::channel(8));
        let ((adopted_in, adopted), (callers_in, callers)) = (watch::channel(0), mpsc::channel(8));
        let bundles_out = tokio::sync::Mutex::new(bundles_out);
        let scripted =
            Arc::new(Scripted { calls: calls_in, bundles: bundles_out, adopted: adopted_in, callers: callers_in });
        let router = grpc::server()
            .add_service(IdentityServer::from_arc(scripted.clone()))
            .add_service(TrustServer::from_arc(scripted));
        let incoming = grpc::incoming(listener, own, auth, limits);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { router.serve_with_incoming(incoming).await.expect("serves") });
        Self { addr, ca, calls, bundles, adopted, callers, _tasks: tasks }
    }

    /// The next call, answered with a leaf that was signed at `now`.
    pub(crate) async fn sign(&mut self, now: SystemTime) -> CertifyRequest {
        let ca = self.ca.clone();
        self.answer(|asked| Ok(ca.sign(&asked.certificate_signing_request, &web(), now).expect("signed").into())).await
    }

    pub(crate) async fn answer(
        &mut self,
        with: impl FnOnce(&CertifyRequest) -> Result<CertifyResponse, Status>,
    ) -> CertifyRequest {
        let (asked, answer) = soon(self.calls.recv()).await.expect("a call");
        answer.send(with(&asked)).await.expect("the caller waits");
        asked
    }
}

#[tonic::async_trait]
impl Identity for Scripted {
    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<CertifyResponse>, Status> {
        let (answer, mut answered) = mpsc::channel(1);
        let ended = |_| Status::cancelled("the test has ended");
        self.calls.send((request.into_inner(), answer)).await.map_err(ended)?;
        answered.recv().await.unwrap_or_else(|| Err(Status::cancelled("not answered"))).map(Response::new)
    }
}

#[tonic::async_trait]
impl Trust for Scripted {
    type WatchStream = ReceiverStream<Result<Bundle, Status>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let info = request.extensions().get::<ConnectInfo>().expect("known").clone();
        let _ = self.callers.try_send(info);
        let (bundles, out) = mpsc::channel(8);
        let mut said = request.into_inner();
        let adopted = self.adopted.clone();
        // Ends with the test's runtime; a stream of a test is one stream.
        let mut next = std::mem::replace(&mut *self.bundles.lock().await, mpsc::channel(1).1);
        let mut relay = JoinSet::new();
        relay.spawn(async move {
            loop {
                tokio::select! {
                    Some(bundle) = next.recv() => drop(bundles.send(Ok(bundle)).await),
                    Ok(Some(request)) = said.message() => drop(adopted.send_replace(request.adopted_generation)),
                    else => return,
                }
            }
        });
        relay.detach_all();
        Ok(Response::new(ReceiverStream::new(out)))
    }
}
