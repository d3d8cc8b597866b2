//! `hauberk-identity` on Kubernetes: the real binary, as its own ServiceAccount with the rights that it gets, against a
//! real API server. There are no nodes here, so no pod runs: where a pod has to have ended, its status is written.

#[path = "identity/authority.rs"]
mod authority;
#[path = "identity/tokens.rs"]
mod tokens;
#[path = "identity/trust.rs"]
mod trust;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use hauberk_e2e::ControlPlane;
use hauberk_identity::{Agent, AgentConfig, Credentials, SecretKey, Store, TrustBundle, grpc};
use hauberk_lab::{Process, Processes, find_binary};
use hauberk_mesh::{
    CONTROL_NAMESPACE, IDENTITY_ACCOUNT, IdentityName, ProxySpec, TOKEN_AUDIENCE, TRUST_GENERATION_KEY, TRUST_MAP,
    TRUST_ROOTS_KEY, TrustDomain,
};
use k8s_openapi::api::{
    core::v1::{ConfigMap, Pod},
    events::v1::Event,
};
use kube::{
    Api,
    api::{DynamicObject, ListParams, PostParams},
    core::GroupVersionKind,
    discovery::ApiResource,
};
use linkerd2_proxy_api::identity::{CertifyRequest, identity_client::IdentityClient};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::{Status, transport::Channel};

/// Nothing here takes as long; what does, hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// Asks again until there is an answer; what is asked gives no sign.
async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    hauberk_e2e::until(what, LIMIT, async || Ok(ask().await.context("not yet"))).await.expect("in time")
}

fn identity(account: &str, namespace: &str) -> IdentityName {
    TrustDomain::default().identity(account, namespace).expect("valid")
}

/// A control plane with the namespaces and accounts of the tests, and identity servers.
struct Cluster {
    // Before the control plane, so that they end first.
    processes: Processes,
    ip: IpAddr,
    kubeconfig: String,
    plane: ControlPlane,
}

/// An identity server that runs.
struct Replica {
    process: Process,
    grpc: SocketAddr,
    admin: SocketAddr,
}

impl Cluster {
    async fn start() -> Self {
        let plane = ControlPlane::start().await.expect("it starts");
        for (namespace, account) in [(CONTROL_NAMESPACE, IDENTITY_ACCOUNT), ("shop", "web"), ("bank", "web")] {
            plane.namespace(namespace, &[]).await.expect("a namespace");
            plane.service_account(namespace, account).await.expect("an account");
        }
        let processes = Processes::new("hauberk-identity-").expect("a directory");
        for object in hauberk_deploy::rbac(CONTROL_NAMESPACE) {
            create(&plane, object).await;
        }
        let token = plane.token(CONTROL_NAMESPACE, IDENTITY_ACCOUNT, None, None).await.expect("a token");
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{ "name": "it", "cluster": {
                "server": plane.url(), "certificate-authority-data": base64(plane.ca_pem().as_bytes()),
            } }],
            "users": [{ "name": "it", "user": { "token": token } }],
            "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }],
        })
        .to_string();
        // Its own loopback address: nobody else is there.
        let url: http::Uri = plane.url().parse().expect("valid");
        let ip = url.host().expect("a host").parse().expect("an address");
        Self { processes, ip, kubeconfig, plane }
    }

    /// Starts replica `number`; `args` are added.
    fn replica(&self, number: u16, args: &[&str]) -> Replica {
        let file = self.processes.dir().join("kubeconfig");
        fs::write(&file, &self.kubeconfig).expect("written");
        let (grpc, admin) = (SocketAddr::new(self.ip, 18080 + number), SocketAddr::new(self.ip, 19990 + number));
        let mut command = Command::new(find_binary("hauberk-identity").expect("built"));
        command.env_clear().env("KUBECONFIG", file).env("HOME", self.processes.dir());
        command.args(["--kubernetes", &format!("--pod-name=identity-{number}")]);
        command.args([format!("--listen={grpc}"), format!("--admin={admin}")]).args(args);
        let process = self.processes.spawn(&format!("identity-{number}"), &mut command).expect("started");
        Replica { process, grpc, admin }
    }

    /// Replica 0, ready.
    async fn server(&self, args: &[&str]) -> Replica {
        let replica = self.replica(0, args);
        replica.ready().await;
        replica
    }

    /// A pod of `account` whose proxy was told to be `told`, as the webhook makes it.
    async fn pod(&self, namespace: &str, name: &str, account: &str, told: Option<IdentityName>) {
        let addr = |port: u16| SocketAddr::new(self.ip, port);
        let proxy = told.map(|told| {
            let told = ProxySpec::new(told, addr(18080), addr(18086), "PEM".to_owned());
            let env: Vec<_> =
                told.to_env().into_iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
            json!({ "name": "hauberk-proxy", "image": "proxy", "restartPolicy": "Always", "env": env })
        });
        let spec = json!({
            "serviceAccountName": account,
            "initContainers": proxy.into_iter().collect::<Vec<_>>(),
            "containers": [{ "name": "app", "image": "app" }],
        });
        let pod = serde_json::from_value(json!({ "metadata": { "name": name }, "spec": spec })).expect("a pod");
        self.pods(namespace).create(&PostParams::default(), &pod).await.expect("created");
    }

    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.plane.client(), namespace)
    }

    /// A token for us that is bound to the pod.
    async fn token(&self, namespace: &str, account: &str, pod: &str) -> String {
        self.plane.token(namespace, account, Some(TOKEN_AUDIENCE), Some(pod)).await.expect("a token")
    }

    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.plane.client(), CONTROL_NAMESPACE)
    }

    /// What `hauberk-trust` says now, once it is there.
    async fn published(&self) -> (u64, String) {
        let data = until("hauberk-trust", async || {
            self.maps().get_opt(TRUST_MAP).await.expect("an answer").and_then(|map| map.data)
        })
        .await;
        (data[TRUST_GENERATION_KEY].parse().expect("a number"), data[TRUST_ROOTS_KEY].clone())
    }

    async fn bundle(&self) -> TrustBundle {
        let (generation, roots) = self.published().await;
        TrustBundle::from_pem(generation, roots.as_bytes()).expect("roots")
    }

    /// Waits for an event with `reason` about an object of that kind and name.
    async fn event(&self, namespace: &str, kind: &str, name: &str, reason: &str, note: &str) -> Event {
        let events = Api::<Event>::namespaced(self.plane.client(), namespace);
        until(&format!("event {reason} on {kind} {name}: {note}"), async || {
            let all = events.list(&ListParams::default()).await.expect("a list");
            all.items.into_iter().find(|event| {
                let regarding = event.regarding.clone().unwrap_or_default();
                regarding.kind.as_deref() == Some(kind)
                    && regarding.name.as_deref() == Some(name)
                    && event.reason.as_deref() == Some(reason)
                    && event.note.as_deref().is_some_and(|text| text.contains(note))
            })
        })
        .await
    }

    /// What an agent is told that has `roots` pinned.
    fn agent(&self, replica: &Replica, roots: &str, token: &str) -> AgentConfig {
        let file = self.processes.dir().join(format!("token-{}", replica.grpc.port()));
        fs::write(&file, token).expect("written");
        let mut config = AgentConfig::new(identity("web", "shop"), replica.grpc, file, None, roots.to_owned());
        (config.retry_first, config.retry_most) = (Duration::from_millis(20), Duration::from_millis(200));
        config
    }

    /// A client that knows the roots and has no certificate.
    async fn client(&self, replica: &Replica) -> IdentityClient<Channel> {
        let roots = self.published().await.1;
        let store: Store = Agent::new(self.agent(replica, &roots, "none")).expect("valid").1;
        IdentityClient::new(grpc::channel(replica.grpc, identity(IDENTITY_ACCOUNT, CONTROL_NAMESPACE), store))
    }
}

impl Replica {
    async fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.admin).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    async fn ready(&self) {
        until("ready", async || {
            self.process.check_running().expect("it runs");
            self.get("/ready").await.filter(|answer| answer.starts_with("HTTP/1.1 200"))
        })
        .await;
    }

    /// Waits until the metrics have that line.
    async fn shows(&self, line: &str) {
        until(line, async || self.get("/metrics").await.filter(|text| text.lines().any(|one| one == line))).await;
    }

    /// The value of a metric, if it is there.
    async fn metric(&self, series: &str) -> Option<u64> {
        let text = self.get("/metrics").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        line.parse().ok()
    }

    /// Waits until this one leads.
    async fn leads(&self) {
        self.shows("hauberk_identity_leader 1").await;
    }
}

/// Asks for a certificate.
async fn certify(
    client: &mut IdentityClient<Channel>,
    who: &IdentityName,
    token: &str,
) -> Result<(SecretKey, Vec<Vec<u8>>), Status> {
    let key = SecretKey::generate().expect("a key");
    let request = CertifyRequest {
        identity: who.to_string(),
        token: token.as_bytes().to_vec(),
        certificate_signing_request: key.request(who).expect("a request"),
    };
    let answered = timeout(LIMIT, client.certify(request)).await.expect("in time")?.into_inner();
    Ok((key, std::iter::once(answered.leaf_certificate).chain(answered.intermediate_certificates).collect()))
}

/// A certificate that those who trust `bundle` believe.
async fn certified(
    client: &mut IdentityClient<Channel>,
    who: &IdentityName,
    token: &str,
    bundle: &TrustBundle,
) -> Arc<Credentials> {
    let (key, chain) = certify(client, who, token).await.expect("issued");
    let chain = chain.into_iter().map(Into::into).collect();
    Credentials::new(who, &key, chain, bundle, 1, SystemTime::now()).expect("believed").into()
}

/// Creates whatever it is.
async fn create(plane: &ControlPlane, object: Value) {
    let field = |name: &str| object[name].as_str().expect("a text").to_owned();
    let (api_version, kind) = (field("apiVersion"), field("kind"));
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(plane.client(), namespace, &resource),
        None => Api::all_with(plane.client(), &resource),
    };
    let object: DynamicObject = serde_json::from_value(object).expect("an object");
    api.create(&PostParams::default(), &object).await.expect("created");
}

fn base64(bytes: &[u8]) -> String {
    let encoded = serde_json::to_value(k8s_openapi::ByteString(bytes.to_vec())).expect("a text");
    encoded.as_str().expect("a text").to_owned()
}

/// The data of a Secret of the control namespace.
async fn secret(cluster: &Cluster, name: &str) -> BTreeMap<String, k8s_openapi::ByteString> {
    let secrets = Api::<k8s_openapi::api::core::v1::Secret>::namespaced(cluster.plane.client(), CONTROL_NAMESPACE);
    secrets.get(name).await.expect("there").data.unwrap_or_default()
}
