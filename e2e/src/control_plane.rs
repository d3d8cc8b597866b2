//! A control plane without nodes: etcd, API servers, controller-manager, as upstream built from source.
//!
//! Each listens on a loopback address of its own, so that any number can run side by side with the same ports.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use hauberk_lab::{Process, Processes};
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, Namespace, ServiceAccount},
};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use crate::{ControlPlaneOptions, binaries, certificates::Authority, kubeconfig, until};

/// Where Services get addresses: IPv4 first, then IPv6.
const SERVICE_NETWORKS: &str = "10.96.0.0/16,fd00:10:96::/112";
/// Held while the control plane lives, so that its address is nobody else's.
const LOCK_PORT: u16 = 12378;
const ETCD_PORT: u16 = 12379;
const ETCD_PEER_PORT: u16 = 12380;
/// Of the first API server; the next ones have the next ports.
const API_PORT: u16 = 16443;
/// It takes about 3 s, on a machine that has nothing else to do.
const START_LIMIT: Duration = Duration::from_secs(120);
/// What a namespace gets from the controller-manager comes in milliseconds.
const NAMESPACE_LIMIT: Duration = Duration::from_secs(60);
/// A token that outlives every test.
const TOKEN_SECONDS: i64 = 3600;

/// A running control plane. Dropped, all its processes are killed, its files gone; also in a panic, after their logs'
/// ends were printed.
#[derive(Debug)]
pub struct ControlPlane {
    ca: String,
    kubeconfig: PathBuf,
    config: Config,
    api_servers: u16,
    audit: bool,
    address: Address,
    running: Vec<Process>,
    processes: Processes,
}

/// A loopback address that no other control plane has.
#[derive(Debug)]
struct Address {
    ip: IpAddr,
    _lock: TcpListener,
}

impl ControlPlane {
    /// One API server and a controller-manager; returns once pods can be created in the namespace `default`.
    pub async fn start() -> Result<Self> {
        Self::options().start().await
    }

    /// What it is to be, if not the usual.
    pub fn options() -> ControlPlaneOptions {
        ControlPlaneOptions::default()
    }

    pub(crate) async fn with(options: ControlPlaneOptions) -> Result<Self> {
        let address = Address::take()?;
        let processes = Processes::new("hauberk-control-plane-")?;
        let dir = processes.dir().to_owned();
        let authority = Authority::new(&dir)?;
        authority.server("server", address.ip)?;
        authority.tokens("tokens")?;
        for (name, user, group) in [
            ("admin", "test-admin", Some("system:masters")),
            ("controller-manager", "system:kube-controller-manager", None),
            ("scheduler", "system:kube-scheduler", None),
            ("proxy-client", "front-proxy-client", None),
        ] {
            authority.client(name, user, group)?;
        }
        let kubeconfig = kubeconfig::write(&dir, "admin", &address.url(0))?;
        let config = read_config(&kubeconfig).await?;
        let mut plane = Self {
            ca: authority.pem().to_owned(),
            kubeconfig,
            config,
            api_servers: options.api_servers,
            audit: options.audit,
            address,
            running: Vec::new(),
            processes,
        };
        plane.run(&options).await?;
        Ok(plane)
    }

    /// A client of the first API server that may do everything. Belongs to the tokio runtime that it is made in.
    pub fn client(&self) -> Client {
        self.client_of(0)
    }

    /// Like [`ControlPlane::client`], of API server `number`, from 0.
    pub fn client_of(&self, number: u16) -> Client {
        let mut config = self.config.clone();
        config.cluster_url = self.url_of(number).parse().expect("the address is valid in a URL");
        connect(config)
    }

    /// A client that is `user` in `groups`, by impersonation.
    pub fn client_as(&self, user: &str, groups: &[&str]) -> Client {
        let mut config = self.config.clone();
        config.auth_info.impersonate = Some(user.to_owned());
        config.auth_info.impersonate_groups = Some(groups.iter().map(ToString::to_string).collect());
        connect(config)
    }

    /// A client that has nothing but that token.
    pub fn client_with_token(&self, token: &str) -> Client {
        let mut config = self.config.clone();
        config.auth_info = serde_json::from_value(json!({ "token": token })).expect("these are its fields");
        connect(config)
    }

    /// A file for `kubectl` and other programs, for who may do everything.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Where the first API server is.
    pub fn url(&self) -> String {
        self.url_of(0)
    }

    /// Where API server `number` is, from 0.
    pub fn url_of(&self, number: u16) -> String {
        assert!(number < self.api_servers, "there are {} API servers", self.api_servers);
        self.address.url(number)
    }

    /// Who signed the API servers' certificates.
    pub fn ca_pem(&self) -> &str {
        &self.ca
    }

    /// A directory for the test's files, gone with the control plane; logs of the processes are there.
    pub fn dir(&self) -> &Path {
        self.processes.dir()
    }

    /// `kubectl` for who may do everything, with a clean environment.
    pub fn kubectl(&self) -> Result<Command> {
        let mut command = Command::new(binaries::find("kubectl")?);
        command.env_clear().env("KUBECONFIG", &self.kubeconfig).env("HOME", self.dir());
        Ok(command)
    }

    /// A new namespace with labels; returns once pods can be created in it.
    pub async fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let labels: serde_json::Map<_, _> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value))).collect();
        let namespace = serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels } }))?;
        Api::<Namespace>::all(self.client()).create(&PostParams::default(), &namespace).await?;
        self.furnished(name).await
    }

    /// A new ServiceAccount.
    pub async fn service_account(&self, namespace: &str, name: &str) -> Result<()> {
        let account = serde_json::from_value(json!({ "metadata": { "name": name } }))?;
        Api::<ServiceAccount>::namespaced(self.client(), namespace).create(&PostParams::default(), &account).await?;
        Ok(())
    }

    /// A token of a ServiceAccount for `audience`, bound to a pod if one is named; the API server's own if no audience
    /// is.
    pub async fn token(
        &self,
        namespace: &str,
        account: &str,
        audience: Option<&str>,
        pod: Option<&str>,
    ) -> Result<String> {
        let bound = pod.map(|pod| BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.to_owned()),
            uid: None,
        });
        let spec = TokenRequestSpec {
            audiences: audience.into_iter().map(str::to_owned).collect(),
            bound_object_ref: bound,
            expiration_seconds: Some(TOKEN_SECONDS),
        };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let accounts = Api::<ServiceAccount>::namespaced(self.client(), namespace);
        let answer = accounts.create_token_request(account, &PostParams::default(), &request).await?;
        Ok(answer.status.context("the API server answers with a token")?.token)
    }

    /// What was asked of the API servers so far, from the audit log: one `audit.k8s.io/v1` Event each.
    pub fn audit(&self) -> Result<Vec<Value>> {
        assert!(self.audit, "the control plane was started without an audit log");
        let mut events = Vec::new();
        for number in 0..self.api_servers {
            let log = fs::read_to_string(self.dir().join(format!("audit-{number}.log")))?;
            // The last line may be half written.
            let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
            for line in whole.lines() {
                events.push(serde_json::from_str(line).with_context(|| format!("not an audit event: {line}"))?);
            }
        }
        Ok(events)
    }

    async fn run(&mut self, options: &ControlPlaneOptions) -> Result<()> {
        self.running.push(self.etcd()?);
        for number in 0..options.api_servers {
            self.running.push(self.api_server(number, options)?);
        }
        for number in 0..options.api_servers {
            let client = self.client_of(number);
            self.until("the API server is ready", START_LIMIT, async || ready(&client).await).await?;
        }
        // They end if their roles are not there yet.
        self.running.push(self.controller_manager(options)?);
        if options.scheduler {
            self.running.push(self.scheduler()?);
        }
        self.furnished("default").await
    }

    fn etcd(&self) -> Result<Process> {
        let ip = self.address.ip;
        let (clients, peers) = (format!("http://{ip}:{ETCD_PORT}"), format!("http://{ip}:{ETCD_PEER_PORT}"));
        self.spawn("etcd", "etcd", |command| {
            command.arg(format!("--data-dir={}", self.dir().join("etcd").display()));
            command.args([format!("--listen-client-urls={clients}"), format!("--advertise-client-urls={clients}")]);
            command.args([format!("--listen-peer-urls={peers}"), format!("--initial-advertise-peer-urls={peers}")]);
            command.arg(format!("--initial-cluster=default={peers}"));
            command.args(["--unsafe-no-fsync", "--log-level=warn"]);
        })
    }

    fn api_server(&self, number: u16, options: &ControlPlaneOptions) -> Result<Process> {
        let file = |name: &str| self.dir().join(name).display().to_string();
        let ip = self.address.ip;
        // Documentation's addresses: endpoints of the Service `kubernetes` may not be on loopback.
        let advertised = Ipv4Addr::new(192, 0, 2, number.to_be_bytes()[1].saturating_add(1));
        let mut flags = vec![
            format!("--etcd-servers=http://{ip}:{ETCD_PORT}"),
            format!("--bind-address={ip}"),
            format!("--secure-port={}", API_PORT + number),
            format!("--advertise-address={advertised}"),
            format!("--service-cluster-ip-range={SERVICE_NETWORKS}"),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-key-file={}", file("tokens.key")),
            format!("--service-account-signing-key-file={}", file("tokens.key")),
            format!("--requestheader-client-ca-file={}", file("ca.crt")),
            "--requestheader-allowed-names=front-proxy-client".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            format!("--proxy-client-cert-file={}", file("proxy-client.crt")),
            format!("--proxy-client-key-file={}", file("proxy-client.key")),
        ];
        if options.audit {
            let policy =
                json!({ "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{ "level": "Metadata" }] });
            fs::write(file("audit-policy.yaml"), policy.to_string())?;
            flags.push(format!("--audit-policy-file={}", file("audit-policy.yaml")));
            flags.push(format!("--audit-log-path={}", file(&format!("audit-{number}.log"))));
        }
        self.spawn(&format!("kube-apiserver-{number}"), "kube-apiserver", |command| {
            command.args(flags).args(&options.api_flags);
        })
    }

    fn controller_manager(&self, options: &ControlPlaneOptions) -> Result<Process> {
        let kubeconfig = kubeconfig::write(self.dir(), "controller-manager", &self.url())?;
        let file = |name: &str| self.dir().join(name).display().to_string();
        self.spawn("kube-controller-manager", "kube-controller-manager", |command| {
            command.arg(format!("--kubeconfig={}", kubeconfig.display()));
            command.args(["--use-service-account-credentials", "--leader-elect=false", "--secure-port=0"]);
            command.args(["--kube-api-qps=500", "--kube-api-burst=1000"]);
            command.arg(format!("--root-ca-file={}", file("ca.crt")));
            command.arg(format!("--service-account-private-key-file={}", file("tokens.key")));
            command.arg(format!("--cluster-signing-cert-file={}", file("ca.crt")));
            command.arg(format!("--cluster-signing-key-file={}", file("ca.key")));
            command.args(&options.manager_flags);
        })
    }

    fn scheduler(&self) -> Result<Process> {
        let kubeconfig = kubeconfig::write(self.dir(), "scheduler", &self.url())?;
        self.spawn("kube-scheduler", "kube-scheduler", |command| {
            command.arg(format!("--kubeconfig={}", kubeconfig.display()));
            command.args(["--leader-elect=false", "--secure-port=0"]);
        })
    }

    /// Starts the binary `program` with a clean environment: what the machine's says of proxies is not meant for it.
    fn spawn(&self, name: &str, program: &str, configure: impl FnOnce(&mut Command)) -> Result<Process> {
        let mut command = Command::new(binaries::find(program)?);
        command.env_clear().env("HOME", self.dir()).current_dir(self.dir());
        configure(&mut command);
        self.processes.spawn(name, &mut command)
    }

    /// Waits until a namespace has what pods need, by the controller-manager: an account and the cluster's certificate.
    async fn furnished(&self, namespace: &str) -> Result<()> {
        let accounts = Api::<ServiceAccount>::namespaced(self.client(), namespace);
        let maps = Api::<ConfigMap>::namespaced(self.client(), namespace);
        let what = format!("namespace {namespace} has its ServiceAccount and kube-root-ca.crt");
        self.until(&what, NAMESPACE_LIMIT, async || {
            accounts.get_opt("default").await?.context("no ServiceAccount yet")?;
            maps.get_opt("kube-root-ca.crt").await?.context("no kube-root-ca.crt yet")?;
            Ok(())
        })
        .await
    }

    /// Asks again until it holds; fails at once if a process has ended.
    async fn until(&self, what: &str, limit: Duration, check: impl AsyncFn() -> Result<()>) -> Result<()> {
        until(what, limit, async || {
            self.running.iter().try_for_each(Process::check_running)?;
            Ok(check().await)
        })
        .await
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // At once and together: nobody wants what they would say or write at an orderly end.
        self.processes.end();
    }
}

impl Address {
    /// The next that is free, for this process and for every other.
    fn take() -> Result<Self> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        // Programs begin at different addresses, so that they seldom try each other's.
        let start = std::process::id().wrapping_mul(251);
        for _ in 0..u16::MAX {
            let [.., c, d] = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed).into()).to_be_bytes();
            let ip = Ipv4Addr::new(127, 118, c, d);
            if let Ok(lock) = TcpListener::bind((ip, LOCK_PORT)) {
                return Ok(Self { ip: ip.into(), _lock: lock });
            }
        }
        bail!("port {LOCK_PORT} is taken on every address of 127.118.0.0/16: what listens on it everywhere?")
    }

    fn url(&self, api_server: u16) -> String {
        format!("https://{}:{}", self.ip, API_PORT + api_server)
    }
}

async fn ready(client: &Client) -> Result<()> {
    client.request_text(http::Request::get("/readyz").body(Vec::new())?).await?;
    Ok(())
}

async fn read_config(kubeconfig: &Path) -> Result<Config> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    Ok(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}

fn connect(config: Config) -> Client {
    Client::try_from(config).expect("the files are there, and this is called in a tokio runtime")
}
