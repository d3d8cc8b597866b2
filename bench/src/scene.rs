//! The pods of a run: for each contender a client's pod and servers' pods, each a network namespace of its own, with
//! the same redirection. Made when they are first needed.

mod certificates;
mod haproxy;
mod mariadb;
mod nginx;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context, Result};
use hauberk_identity::EndpointSessions;
use hauberk_lab::{Lab, Pod, PodOptions, Process, ServiceOptions, wait_for};
use hauberk_mesh::{MESH_PORT, PROXY_UID};
use rustls::ClientConfig;

use self::certificates::Authority;
pub(crate) use self::certificates::{OWN, ROOTS, identity};
use crate::{
    app::{self, App, Mode},
    congestion,
    contender::{Contender, Family},
    floor, load, process,
};

/// The port that clients dial on a service's address.
const SERVICE_PORT: u16 = 80;
/// Address of the service that clients without a mesh dial: whatever it is, the redirection leads to their proxy.
const ANYWHERE: ([u8; 4], u16) = ([10, 2, 255, 1], SERVICE_PORT);

/// The pods, and what runs in them.
#[derive(Debug)]
pub(crate) struct Scene {
    /// Dropped first: it takes everything down at once.
    lab: Lab,
    pairs: BTreeMap<(Contender, usize), Pair>,
    servers: BTreeMap<Family, Vec<Side>>,
    databases: BTreeMap<Contender, Process>,
    authority: Authority,
    congestion: String,
    meshed: bool,
    pub(crate) app: App,
}

/// A pod and the proxy in it.
#[derive(Debug, Clone)]
pub(crate) struct Side {
    pub(crate) pod: Pod,
    proxy: Option<u32>,
    _process: Option<Arc<Process>>,
}

/// A client's side and its servers'.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) client: Side,
    pub(crate) servers: Vec<Side>,
    /// What the client dials, in turn.
    pub(crate) targets: Vec<SocketAddr>,
    /// How the client itself speaks TLS, where it has to.
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

impl Side {
    /// The proxy's processes; none where there is no proxy.
    pub(crate) fn proxy(&self) -> Vec<u32> {
        self.proxy.map_or(Vec::new(), process::with_children)
    }
}

impl Pair {
    /// The processes of all its proxies.
    pub(crate) fn proxies(&self) -> Vec<u32> {
        self.servers.iter().chain([&self.client]).flat_map(Side::proxy).collect()
    }
}

impl Scene {
    /// No pods yet. `congestion` is what their namespaces use.
    pub(crate) fn new(congestion: &str) -> Result<Self> {
        Ok(Self {
            lab: Lab::new()?,
            pairs: BTreeMap::new(),
            servers: BTreeMap::new(),
            databases: BTreeMap::new(),
            authority: Authority::new()?,
            congestion: congestion.to_owned(),
            meshed: false,
            app: App::new()?,
        })
    }

    /// The contender's pods with so many replicas of the server, made now if they are not there.
    pub(crate) fn pair(&mut self, contender: Contender, replicas: usize) -> Result<Pair> {
        if let Some(pair) = self.pairs.get(&(contender, replicas)) {
            return Ok(pair.clone());
        }
        let made = self.make(contender, replicas).and_then(|pair| self.check(&pair).map(|()| pair));
        let pair = made.with_context(|| format!("the pods of {} with {replicas} replicas", contender.name()))?;
        self.pairs.insert((contender, replicas), pair.clone());
        Ok(pair)
    }

    fn make(&mut self, contender: Contender, replicas: usize) -> Result<Pair> {
        let family = contender.family();
        if family == Family::Hauberk && !self.meshed {
            self.lab.start_control_plane()?;
            self.meshed = true;
        }
        while self.servers.get(&family).map_or(0, Vec::len) < replicas {
            let server = self.server(family)?;
            self.servers.entry(family).or_default().push(server);
        }
        let servers = self.servers[&family][..replicas].to_vec();
        let (client, targets) = self.client(contender, &servers)?;
        let tls = if family == Family::Floor { Some(self.client_tls(&client.pod)?) } else { None };
        Ok(Pair { client, servers, targets, tls })
    }

    /// Waits until a connection gets through: discovery may not have read of the new service yet.
    fn check(&self, pair: &Pair) -> Result<()> {
        self.app.behave(Mode::EchoOnce);
        if pair.tls.is_some() {
            return Ok(());
        }
        let exchange = || pair.client.pod.enter(|| load::exchange_once(pair.targets[0]));
        wait_for("a first connection gets through", app::PATIENCE, || {
            Ok(exchange().map_err(|error| format!("{error:#}")))
        })
    }

    fn server(&self, family: Family) -> Result<Side> {
        let number = self.servers.get(&family).map_or(0, Vec::len);
        let pod = self.pod(&format!("{}-server-{number}", family.name()), family, "server", "")?;
        self.app.serve(&pod)?;
        self.side(pod, family, |scene, pod| match family {
            Family::Haproxy => haproxy::inbound(scene, pod),
            Family::Nginx => nginx::inbound(scene, pod),
            Family::Floor => scene.floor(pod),
            Family::Direct | Family::Hauberk => anyhow::bail!("{} has no peer's proxy", pod.name()),
        })
    }

    fn client(&self, contender: Contender, servers: &[Side]) -> Result<(Side, Vec<SocketAddr>)> {
        let family = contender.family();
        let limits = match contender {
            Contender::HauberkResumed => "pool_total=0",
            Contender::HauberkFull => "pool_total=0,tickets=0",
            _ => "",
        };
        let name = format!("{}-client-{}", contender.name(), servers.len());
        let pod = self.pod(&name, family, "client", limits)?;
        let peers: Vec<_> = servers.iter().map(|server| server.pod.at(MESH_PORT)).collect();
        // The floor has only one side.
        let family_here = if family == Family::Floor { Family::Direct } else { family };
        let side = self.side(pod, family_here, |scene, pod| match contender {
            Contender::Nginx => nginx::outbound(scene, pod, &peers),
            _ => haproxy::outbound(scene, pod, &peers, contender == Contender::HaproxyFull),
        })?;
        let targets = match family {
            Family::Direct => servers.iter().map(|server| server.pod.at(app::PORT)).collect(),
            Family::Hauberk => vec![self.service(contender, servers)?],
            Family::Haproxy | Family::Nginx => vec![ANYWHERE.into()],
            Family::Floor => peers,
        };
        Ok((side, targets))
    }

    /// A MariaDB in the server's pod of `contender`, started now if it does not run; what clients dial.
    pub(crate) fn mariadb(&mut self, contender: Contender) -> Result<SocketAddr> {
        let server = self.pair(contender, 1)?.servers[0].pod.clone();
        if let Entry::Vacant(place) = self.databases.entry(contender) {
            place.insert(mariadb::start(&server)?);
        }
        // Discovery knows a pod's address as well as a service's.
        Ok(server.at(mariadb::PORT))
    }

    /// What the pods' namespaces use.
    pub(crate) fn congestion(&self) -> &str {
        &self.congestion
    }

    /// A service in front of `servers`, for the clients of one contender.
    fn service(&self, contender: Contender, servers: &[Side]) -> Result<SocketAddr> {
        let replicas = servers.len();
        let ip = [10, 2, contender as u8, u8::try_from(replicas).context("at most 255 replicas")?];
        let addr = SocketAddr::from((ip, SERVICE_PORT));
        let name = format!("{}-{replicas}", contender.name());
        let service = ServiceOptions::new(&name).ip(&addr.ip().to_string()).port(SERVICE_PORT, app::PORT);
        self.lab.service(service.endpoints(servers.iter().map(|server| server.pod.name())))?;
        Ok(addr)
    }

    fn pod(&self, name: &str, family: Family, account: &str, limits: &str) -> Result<Pod> {
        let options = PodOptions::new(name).account(account).sysctl(congestion::SYSCTL, &self.congestion);
        // What is logged for each connection would be measured too; the others log nothing either.
        let options = if family == Family::Hauberk {
            options.meshed().limits(limits).proxy_env("RUST_LOG", "warn")
        } else {
            options.unlisted()
        };
        congestion::allow(&self.congestion)?;
        self.lab.pod(options)
    }

    /// Starts the proxy of `family` in `pod`; that of a peer with `start`, behind the same redirection as ours.
    fn side(&self, pod: Pod, family: Family, start: impl FnOnce(&Self, &Pod) -> Result<Process>) -> Result<Side> {
        let process = match family {
            Family::Direct => None,
            Family::Hauberk => {
                self.lab.start_proxy(&pod)?;
                let proxy = pod.with_proxy(|process| Ok(process.pid()))?;
                return Ok(Side { pod, proxy: Some(proxy), _process: None });
            }
            Family::Haproxy | Family::Nginx => {
                pod.init()?;
                Some(start(self, &pod)?)
            }
            Family::Floor => Some(start(self, &pod)?),
        };
        let proxy = process.as_ref().map(Process::pid);
        Ok(Side { pod, proxy, _process: process.map(Into::into) })
    }

    /// The server that is the floor.
    fn floor(&self, pod: &Pod) -> Result<Process> {
        let dir = self.proxy_dir(pod, "server")?;
        let mut command = pod.command(std::env::current_exe()?);
        let process = pod.spawn("floor", command.arg("floor").arg(pod.at(MESH_PORT).to_string()).arg(dir))?;
        pod.wait_listening(MESH_PORT, &process)?;
        Ok(process)
    }

    fn client_tls(&self, pod: &Pod) -> Result<Arc<ClientConfig>> {
        let credentials = floor::credentials(&self.proxy_dir(pod, "client")?, "client")?;
        Ok(credentials.mesh_client(&identity("server"), Arc::new(EndpointSessions::new(0))))
    }

    /// A directory of the pod that the proxies' user owns, with the pod's certificate in it.
    fn proxy_dir(&self, pod: &Pod, account: &str) -> Result<PathBuf> {
        let dir = pod.dir().join("peer");
        std::fs::create_dir_all(&dir)?;
        self.authority.write(&dir, account)?;
        for path in std::fs::read_dir(&dir)?.map(|entry| entry.map(|entry| entry.path())).chain([Ok(dir.clone())]) {
            std::os::unix::fs::chown(path?, Some(PROXY_UID), Some(PROXY_UID))?;
        }
        Ok(dir)
    }
}
