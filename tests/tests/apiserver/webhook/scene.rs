//! A control plane with what `install` writes, and replicas of the webhook in this process behind a balancer that, like
//! a Service, knows connections only.

use std::{
    io::Write,
    net::SocketAddr,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use hauberk_e2e::ControlPlane;
use hauberk_kubernetes::{LeaseTimes, MeshConfig};
use hauberk_mesh::{CONTROL_NAMESPACE, TRUST_MAP, TRUST_ROOTS_KEY, WEBHOOK_ACCOUNT, WEBHOOK_CONFIGURATION};
use hauberk_webhook::{
    Config, Lifetimes, Limits, NativeSidecars, Source, Webhook,
    registration::{Entry, configuration},
};
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    core::v1::{Namespace, Pod},
};
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// On a machine that does many other things.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) const LIFETIMES: Lifetimes = Lifetimes {
    ca: Duration::from_secs(100 * 3600),
    leaf: Duration::from_secs(20 * 3600),
    settle: Duration::from_secs(1),
};

pub(crate) struct Scene {
    pub(crate) plane: ControlPlane,
    api_servers: u16,
    mesh: MeshConfig,
    targets: Arc<Mutex<Vec<SocketAddr>>>,
    balancer: SocketAddr,
    _tasks: JoinSet<()>,
}

pub(crate) struct Replica {
    pub(crate) reviews: SocketAddr,
    pub(crate) admin: SocketAddr,
    stop: CancellationToken,
    task: JoinSet<Result<(), hauberk_webhook::RunError>>,
}

impl Scene {
    /// With everything but the registration and the webhook itself.
    pub(crate) async fn new(api_servers: u16, mesh: MeshConfig) -> Self {
        let options = ControlPlane::options().audit().api_servers(api_servers);
        let plane = options.start().await.expect("a control plane");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let balancer = listener.local_addr().expect("bound");
        let targets = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        tasks.spawn(balance(listener, targets.clone()));
        let scene = Self { plane, api_servers, mesh, targets, balancer, _tasks: tasks };
        let wanted = ["Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
        let mut objects = hauberk_deploy::manifests(&scene.mesh);
        objects.retain(|object| {
            let kind = object["kind"].as_str().expect("a kind");
            wanted.contains(&kind) || ["ConfigMap", "Service"].contains(&kind)
        });
        scene.apply(&objects);
        scene
    }

    /// With one replica, registered, ready and asked by the API server.
    pub(crate) async fn running() -> (Self, Replica) {
        let scene = Self::new(1, MeshConfig::default()).await;
        scene.publish_trust();
        let replica = scene.replica("webhook-0", LIFETIMES).await;
        scene.register();
        scene.serving(&[&replica]).await;
        (scene, replica)
    }

    /// As identity does.
    pub(crate) fn publish_trust(&self) {
        let root = rcgen::generate_simple_self_signed(["root.test".to_owned()]).expect("a certificate").cert.pem();
        self.apply(&[json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": TRUST_MAP, "namespace": CONTROL_NAMESPACE },
            "data": { TRUST_ROOTS_KEY: root },
        })]);
    }

    /// As `install` does, but for the address. May be done again.
    pub(crate) fn register(&self) {
        let mut registration = configuration(&self.mesh);
        for webhook in registration.webhooks.as_mut().expect("some") {
            let entry = Entry::named(&webhook.name).expect("ours");
            webhook.client_config.service = None;
            webhook.client_config.url = Some(format!("https://{}{}", self.balancer, entry.path()));
        }
        let mut object = serde_json::to_value(registration).expect("JSON");
        object["apiVersion"] = json!("admissionregistration.k8s.io/v1");
        object["kind"] = json!("MutatingWebhookConfiguration");
        self.apply(&[object]);
    }

    pub(crate) async fn registration(&self) -> MutatingWebhookConfiguration {
        let api = Api::all(self.plane.client());
        api.get(WEBHOOK_CONFIGURATION).await.expect("it is registered")
    }

    /// The bundle that all entries hold; none while they hold none, or different ones.
    pub(crate) async fn bundle(&self) -> Option<String> {
        let webhooks = self.registration().await.webhooks.expect("some");
        let bundles: Vec<_> = webhooks.into_iter().map(|webhook| webhook.client_config.ca_bundle).collect();
        let first = bundles.first().cloned().flatten()?;
        let same = bundles.iter().all(|bundle| bundle.as_ref() == Some(&first));
        same.then(|| String::from_utf8(first.0).expect("PEM"))
    }

    /// A replica that runs as the webhook's ServiceAccount, and that the balancer knows.
    pub(crate) async fn replica(&self, name: &str, lifetimes: Lifetimes) -> Replica {
        let limits = Limits { drain: Duration::ZERO, ..Limits::default() };
        self.replica_with(name, lifetimes, limits).await
    }

    pub(crate) async fn replica_with(&self, name: &str, lifetimes: Lifetimes, limits: Limits) -> Replica {
        let config = Config {
            listen: "127.0.0.1:0".parse().expect("an address"),
            admin: "127.0.0.1:0".parse().expect("an address"),
            instance: name.to_owned(),
            source: Source {
                namespace: CONTROL_NAMESPACE.to_owned(),
                api_server: Some("10.96.0.1:443".parse().expect("an address")),
                native_sidecars: NativeSidecars::Auto,
            },
            extra_names: vec!["127.0.0.1".to_owned()],
            lifetimes,
            lease: LeaseTimes::default(),
            limits,
        };
        let token = self.plane.token(CONTROL_NAMESPACE, WEBHOOK_ACCOUNT, None, None).await.expect("a token");
        let client = self.plane.client_with_token(&token);
        let webhook = Webhook::bind(config).await.expect("bound");
        let (reviews, admin) = webhook.addresses().expect("bound");
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(webhook.run(client, stop.clone()));
        self.targets.lock().expect("unbroken").push(reviews);
        Replica { reviews, admin, stop, task }
    }

    /// Waits until the replicas are ready, and every API server asks them.
    pub(crate) async fn serving(&self, replicas: &[&Replica]) {
        for replica in replicas {
            until("the replica is ready", async || replica.ask("/ready").await.starts_with("HTTP/1.1 200")).await;
        }
        until("the registration holds the CA", async || self.bundle().await.is_some()).await;
        let namespaces = Api::<Namespace>::all(self.plane.client());
        if namespaces.get_opt("serving").await.expect("asked").is_none() {
            self.plane.namespace("serving", &[("hauberk.dev/inject", "enabled")]).await.expect("a namespace");
        }
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        for number in 0..self.api_servers {
            let client = self.plane.client_of(number);
            until("the API server asks the webhook", async || {
                let pods = Api::<Pod>::namespaced(client.clone(), "serving");
                pods.create(&dry, &pod(json!({ "generateName": "asked-" }))).await.is_ok_and(|pod| injected(&pod))
            })
            .await;
        }
    }

    /// `kubectl apply --server-side`, as whoever installs.
    pub(crate) fn apply(&self, objects: &[Value]) {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        let mut kubectl = self.plane.kubectl().expect("kubectl");
        kubectl.args(["apply", "--server-side", "--field-manager=hauberk-install", "-f", "-"]);
        let mut child = kubectl.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("kubectl starts");
        child.stdin.take().expect("piped").write_all(list.to_string().as_bytes()).expect("it reads");
        assert!(child.wait().expect("it ends").success(), "kubectl apply: {list:#}");
    }

    pub(crate) fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.plane.client(), namespace)
    }
}

impl Replica {
    /// What its admin port answers, header and all.
    pub(crate) async fn ask(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).await.expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("text");
        answer
    }

    /// A line of its metrics, by what it begins with: its value, 0 where there is none.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let metrics = self.ask("/metrics").await;
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    pub(crate) async fn end(mut self) {
        self.stop.cancel();
        let ended = self.task.join_next().await.expect("it ran").expect("no panic");
        ended.expect("it ended in order");
    }
}

/// The next target for each connection; one that does not listen is passed over.
async fn balance(listener: TcpListener, targets: Arc<Mutex<Vec<SocketAddr>>>) {
    let mut open = JoinSet::new();
    for turn in 0.. {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = open.join_next() => continue,
        };
        let Ok((mut client, _)) = accepted else { continue };
        let mut targets = targets.lock().expect("unbroken").clone();
        if !targets.is_empty() {
            let first = turn % targets.len();
            targets.rotate_left(first);
        }
        open.spawn(async move {
            for target in targets {
                if let Ok(mut server) = TcpStream::connect(target).await {
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                    return;
                }
            }
        });
    }
}

pub(crate) async fn until(what: &str, holds: impl AsyncFnMut() -> bool) {
    until_within(LIMIT, what, holds).await;
}

/// Asks again until it holds; what is asked gives no sign.
pub(crate) async fn until_within(limit: Duration, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    hauberk_e2e::until(what, limit, async || Ok(holds().await.then_some(()).context("not yet")))
        .await
        .expect("in time");
}

pub(crate) fn pod(metadata: Value) -> Pod {
    let spec = json!({ "containers": [{ "name": "app", "image": "app" }] });
    serde_json::from_value(json!({ "metadata": metadata, "spec": spec })).expect("a pod")
}

pub(crate) async fn create(client: Client, namespace: &str, pod: &Pod) -> kube::Result<Pod> {
    Api::<Pod>::namespaced(client, namespace).create(&PostParams::default(), pod).await
}

pub(crate) fn injected(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref().expect("a spec");
    spec.init_containers.iter().flatten().chain(&spec.containers).any(|container| container.name == "hauberk-proxy")
}
