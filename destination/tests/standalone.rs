//! The `hauberk-destination` process in standalone mode: a real identity server beside it, gRPC over mutual TLS.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};

use hauberk_identity::{
    Store, grpc,
    grpc::IncomingLimits,
    server::{Ca, CertifyLimits, Lifetimes, LocalTokens, Server, ServerConfig, SourcesConfig},
};
use hauberk_mesh::{DESTINATION_ACCOUNT, MeshFile, TOKEN_AUDIENCE, TrustDomain};
use linkerd2_proxy_api::destination::{
    GetDestination, Update, destination_client::DestinationClient, update::Update as Kind,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStderr, Command},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Streaming, transport::Channel};

/// Line 11 is the name of `web-1`.
const MESH: &str = "\
networks: 10.1.0.0/16,10.2.0.0/16
pods:
  - name: web-0
    namespace: shop
    uid: u0
    serviceAccount: web
    ips: [10.1.0.2]
    proxy: {}

  # Unmeshed.
  - name: web-1
    namespace: shop
    uid: u1
    serviceAccount: web
    ips: [10.1.0.3]
  - {name: destination-0, namespace: hauberk, uid: u2, serviceAccount: hauberk-destination, ips: [127.0.0.1]}
services:
  - {name: web, namespace: shop, ips: [10.2.0.10], ports: [{port: 80, target: 8080}], endpoints: [web-0, web-1]}
  - {name: empty, namespace: shop, ips: [10.2.0.11], ports: [{port: 80}]}
";

/// Longer than anything here takes; a test that gets here has failed.
const LONG: Duration = Duration::from_secs(60);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(LONG, future).await.unwrap_or_else(|_| panic!("{what}: nothing within {LONG:?}"))
}

/// A mesh file, an identity server, and what a destination process is started with.
struct Mesh {
    dir: tempfile::TempDir,
    identity: SocketAddr,
    ca: Arc<Ca>,
    _tasks: JoinSet<()>,
}

impl Mesh {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("mesh.yaml");
        fs::write(&file, MESH).expect("written");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = ServerConfig {
            sources: SourcesConfig::Files { services: file, dir: dir.path().join("ca") },
            listen: any,
            admin: any,
            domain: TrustDomain::default(),
            lifetimes: Lifetimes::default(),
            certify: CertifyLimits::default(),
            incoming: IncomingLimits::default(),
        };
        let server = Server::bind(config).await.expect("an identity server");
        let (identity, _) = server.addresses().expect("bound");
        let ca = server.ca().expect("of files");
        fs::write(dir.path().join("roots.pem"), ca.bundle().to_pem()).expect("written");
        let mesh = MeshFile::parse(MESH).expect("valid");
        let pod = mesh.pod("hauberk", "destination-0").expect("there");
        let tokens = LocalTokens::open_or_create(&dir.path().join("ca")).expect("a key");
        fs::write(dir.path().join("token"), tokens.mint(pod, TOKEN_AUDIENCE, LONG * 60)).expect("written");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { server.run(CancellationToken::new()).await.expect("runs until it is dropped") });
        Self { dir, identity, ca, _tasks: tasks }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn edit(&self, from: &str, to: &str) {
        assert!(MESH.contains(from));
        fs::write(self.path("new"), MESH.replace(from, to)).expect("written");
        fs::rename(self.path("new"), self.path("mesh.yaml")).expect("renamed");
    }

    fn command(&self, identity: SocketAddr) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hauberk-destination"));
        command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--identity-addr", &identity.to_string()]);
        for (flag, name) in [("--services", "mesh.yaml"), ("--trust-roots", "roots.pem"), ("--token-file", "token")] {
            command.arg(flag).arg(self.path(name));
        }
        command.arg("--identity-dir").arg(self.path("identity")).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    async fn start(&self) -> Process {
        Process::start(self.command(self.identity)).await
    }

    /// A client with a certificate of `ca`.
    fn client(&self, process: &Process, ca: &Ca) -> DestinationClient<Channel> {
        let domain = TrustDomain::default();
        let name = domain.identity("web", "shop").expect("valid");
        let credentials = ca.credentials(&name, 1, SystemTime::now()).expect("signed");
        let server = domain.identity(DESTINATION_ACCOUNT, "hauberk").expect("valid");
        DestinationClient::new(grpc::channel(process.grpc, server, Store::fixed(credentials.into())))
    }
}

/// A running destination.
struct Process {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    grpc: SocketAddr,
    admin: SocketAddr,
}

impl Process {
    async fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the binary was built");
        let mut log = BufReader::new(child.stderr.take().expect("piped")).lines();
        let line = logged(&mut log, "\"serving\"").await;
        let line: serde_json::Value = serde_json::from_str(&line).expect("the log is JSON");
        let addr = |field: &str| line["fields"][field].as_str().and_then(|text| text.parse().ok()).expect("logged");
        Self { child, log, grpc: addr("listen"), admin: addr("admin") }
    }

    /// Status and body of a GET.
    async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).await.expect("the admin port answers");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        within(path, stream.read_to_string(&mut answer)).await.expect("an answer");
        answer
    }

    async fn terminate(mut self) -> ExitStatus {
        let pid = self.child.id().expect("running").to_string();
        assert!(Command::new("kill").arg(pid).status().await.expect("kill runs").success());
        within("the end of the process", self.child.wait()).await.expect("waited for")
    }
}

/// The next line of `log` that contains `what`.
async fn logged(log: &mut Lines<BufReader<ChildStderr>>, what: &str) -> String {
    let find = async {
        loop {
            let line = log.next_line().await.expect("text").unwrap_or_else(|| panic!("ended before it said {what}"));
            if line.contains(what) {
                return line;
            }
        }
    };
    within(what, find).await
}

async fn get(client: &mut DestinationClient<Channel>, path: &str) -> Streaming<Update> {
    let request = GetDestination { path: path.to_owned(), ..GetDestination::default() };
    within(path, client.get(request)).await.expect("a stream").into_inner()
}

/// The next update, each endpoint as `address`, or `address account` where it is meshed.
async fn next(stream: &mut Streaming<Update>) -> String {
    let update = within("an update", stream.message()).await.expect("no fault").expect("not the end");
    let addr = |addr: Option<_>| SocketAddr::try_from(addr.expect("set")).expect("valid").to_string();
    match update.update.expect("set") {
        Kind::Add(set) => {
            let endpoints = set.addrs.into_iter().map(|it| {
                let name = it.tls_identity.and_then(|tls| tls.server_name).map(|name| name.name);
                let account = name.and_then(|name| name.split_once('.').map(|(account, _)| format!(" {account}")));
                format!("{}{}", addr(it.addr), account.unwrap_or_default())
            });
            format!("add {}", endpoints.collect::<Vec<_>>().join(", "))
        }
        Kind::Remove(set) => {
            format!("remove {}", set.addrs.into_iter().map(|it| addr(Some(it))).collect::<Vec<_>>().join(", "))
        }
        Kind::NoEndpoints(none) => format!("exists: {}", none.exists),
    }
}

#[tokio::test]
async fn a_bad_edit_keeps_the_last_state_and_names_the_line() {
    let mesh = Mesh::new().await;
    let mut process = mesh.start().await;
    let mut client = mesh.client(&process, &mesh.ca);
    let mut before = get(&mut client, "10.2.0.10:80").await;
    assert_eq!(next(&mut before).await, "add 10.1.0.2:8080 web, 10.1.0.3:8080");

    mesh.edit("uid: u1", "uid: u0");
    let line = logged(&mut process.log, "ERROR").await;
    assert!(line.contains("mesh.yaml: line 11, column 5: pod shop/web-1: uid"), "{line}");
    assert!(line.contains("the last good state stays in force"), "{line}");
    let metrics = process.get("/metrics").await;
    assert!(metrics.contains("hauberk_destination_mesh_file_valid 0"), "{metrics}");
    let ready = process.get("/ready").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "an old state is better than none: {ready}");
    let mut during = get(&mut client, "web.shop:80").await;
    assert_eq!(next(&mut during).await, "add 10.1.0.2:8080 web, 10.1.0.3:8080");

    mesh.edit("endpoints: [web-0, web-1]", "endpoints: [web-0]");
    for stream in [&mut before, &mut during] {
        assert_eq!(next(stream).await, "remove 10.1.0.3:8080", "the bad edit was never told");
    }
    assert!(process.get("/metrics").await.contains("hauberk_destination_mesh_file_valid 1"));
}

#[tokio::test]
async fn an_unknown_service_and_an_empty_one_are_told_apart() {
    let mesh = Mesh::new().await;
    let process = mesh.start().await;
    let mut client = mesh.client(&process, &mesh.ca);
    for (path, expected) in [
        ("10.2.0.99:80", "exists: false"),
        ("10.1.0.99:80", "exists: false"),
        ("nobody.shop.svc.cluster.local:80", "exists: false"),
        ("10.2.0.11:80", "exists: true"),
        ("empty.shop.svc.cluster.local:80", "exists: true"),
    ] {
        let mut stream = get(&mut client, path).await;
        assert_eq!(next(&mut stream).await, expected, "{path}");
    }
}

#[tokio::test]
async fn a_bad_file_at_the_first_start_ends_the_process_with_its_line() {
    let mesh = Mesh::new().await;
    mesh.edit("ips: [10.1.0.3]", "ips: [10.1.0]");
    let output = within("the end", mesh.command(mesh.identity).output()).await.expect("ran");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("mesh.yaml: line 15") && said.contains("ips: [10.1.0]"), "{said}");
}

#[tokio::test]
async fn ready_names_the_certificate_while_it_is_pending() {
    let mesh = Mesh::new().await;
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("bound");
    let mut process = Process::start(mesh.command(nobody)).await;
    logged(&mut process.log, "no certificate").await;
    let ready = process.get("/ready").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("pending: certificate: "), "{ready}");
    assert!(process.get("/live").await.starts_with("HTTP/1.1 200"));
    assert_eq!(process.terminate().await.code(), Some(0));
}

#[tokio::test]
async fn who_has_no_certificate_of_this_mesh_gets_no_answer() {
    let mesh = Mesh::new().await;
    let process = mesh.start().await;
    let request = || GetDestination { path: "10.2.0.10:80".to_owned(), ..GetDestination::default() };
    let other = Ca::in_memory(Lifetimes::default()).expect("a CA");
    let mut stranger = mesh.client(&process, &other);
    assert!(within("an answer", stranger.get(request())).await.is_err(), "another CA");

    let name = TrustDomain::default().identity("web", "shop").expect("valid");
    let (roots, token) = (mesh.ca.bundle().to_pem(), mesh.path("token"));
    let config = hauberk_identity::AgentConfig::new(name, mesh.identity, token, None, roots);
    let (_agent, without) = hauberk_identity::Agent::new(config).expect("valid");
    let server = TrustDomain::default().identity(DESTINATION_ACCOUNT, "hauberk").expect("valid");
    let mut anonymous = DestinationClient::new(grpc::channel(process.grpc, server, without));
    let status = within("an answer", anonymous.get(request())).await.expect_err("no certificate");
    assert_ne!(status.code(), Code::Unauthenticated, "not even the handshake ends well");

    let mut client = mesh.client(&process, &mesh.ca);
    let mut stream = get(&mut client, "10.2.0.10:80").await;
    assert_eq!(next(&mut stream).await, "add 10.1.0.2:8080 web, 10.1.0.3:8080", "the positive control");
    let bad = GetDestination { path: "web".to_owned(), ..GetDestination::default() };
    let status = within("an answer", client.get(bad)).await.expect_err("refused");
    assert!(status.code() == Code::InvalidArgument && status.message().contains("\"web\" is not a destination"));
}

#[tokio::test]
async fn streams_end_cleanly_on_sigterm() {
    let mesh = Mesh::new().await;
    let process = mesh.start().await;
    let mut client = mesh.client(&process, &mesh.ca);
    let mut stream = get(&mut client, "10.2.0.10:80").await;
    next(&mut stream).await;
    let ended = process.terminate().await;
    assert_eq!(ended.code(), Some(0));
    assert!(within("the end", stream.message()).await.expect("no fault").is_none());
}
