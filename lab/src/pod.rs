//! A pod: a network namespace with addresses of its own on the bridge, and the processes in it.

use std::{
    ffi::OsStr,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hauberk_mesh::{PodProxy, ProxySpec};

use crate::{
    PodOptions, Process,
    lab::{BRIDGE, Inner, NODE_V4, NODE_V6},
    netns::Netns,
    wait_for,
    wire::Wire,
};

/// How long a server may take to listen.
const LISTEN_LIMIT: Duration = Duration::from_secs(20);

/// A pod of the lab. Clones are the same pod.
#[derive(Debug, Clone)]
pub struct Pod(Arc<PodInner>);

#[derive(Debug)]
struct PodInner {
    lab: Arc<Inner>,
    netns: Netns,
    /// Carries frames as long as the pod lives, if it has one.
    _wire: Option<Wire>,
    options: PodOptions,
    uid: String,
    ips: Vec<IpAddr>,
    dir: PathBuf,
    proxy: Mutex<ProxyState>,
}

/// What the pod's proxy is told, and the proxy if it runs.
#[derive(Debug)]
pub(crate) struct ProxyState {
    pub(crate) spec: ProxySpec,
    pub(crate) process: Option<Process>,
}

impl Pod {
    pub(crate) fn new(lab: Arc<Inner>, number: u16, options: PodOptions) -> Result<Self> {
        let ips = addresses(number, options.v4, options.v6)?;
        let dir = lab.dir().join(format!("{}-{}", options.namespace, options.name));
        fs::create_dir(&dir).with_context(|| format!("pod {} stands in this lab twice", options.name))?;
        let (netns, wire) = attach(&lab, number, &ips, &options).with_context(|| format!("pod {}", options.name))?;
        let uid = format!("{}-{number}", options.name);
        let proxy = Mutex::new(ProxyState { spec: options.spec.clone(), process: None });
        Ok(Self(Arc::new(PodInner { lab, netns, _wire: wire, options, uid, ips, dir, proxy })))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.options.name
    }

    /// Its namespace (of the mesh).
    pub fn namespace(&self) -> &str {
        &self.0.options.namespace
    }

    /// Its ServiceAccount.
    pub fn account(&self) -> &str {
        &self.0.options.account
    }

    /// Its key in `mesh.yaml`: `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace(), self.name())
    }

    /// Its first address: IPv4, unless it has none.
    pub fn ip(&self) -> IpAddr {
        self.0.ips[0]
    }

    /// All that the mesh knows it by.
    pub fn ips(&self) -> &[IpAddr] {
        &self.0.ips
    }

    /// Whether it has a proxy once [`crate::Lab::start_proxy`] has started it.
    pub fn is_meshed(&self) -> bool {
        self.0.options.meshed
    }

    /// A directory for its files; everybody may read it.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Where other processes can open its network namespace while the lab's process lives.
    pub fn netns_path(&self) -> &str {
        self.0.netns.path()
    }

    /// `program` in the pod as root, with a clean environment and no input. Run it with [`Pod::spawn`], or by itself if
    /// the calling thread waits for its end: it dies with that thread.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.0.netns.command(program, None)
    }

    /// Like [`Pod::command`], as `user`, with a group of the same number and no other group.
    pub fn command_as(&self, user: u32, program: impl AsRef<OsStr>) -> Command {
        self.0.netns.command(program, Some(user))
    }

    /// Starts `command`, made by [`Pod::command`], as a process of the lab with a log of that name.
    pub fn spawn(&self, name: &str, command: &mut Command) -> Result<Process> {
        self.0.lab.spawn(&format!("{}-{name}", self.name()), command)
    }

    /// Runs `program` to its end; its output, or an error with its output if it fails.
    pub fn run<S: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        let output = self.command(&program).args(args).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        let program = program.as_ref().display();
        ensure!(output.status.success(), "{program} in {}: {}: {text}{errors}", self.name(), output.status);
        Ok(text)
    }

    /// Runs `work` on a thread of its own inside the pod: its sockets are the pod's. It may build a runtime there.
    /// A panic goes on in the caller.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.0.netns.enter(work)
    }

    /// Waits until something in the pod listens on TCP `port`, without connecting to it; fails if `process` ends.
    pub fn wait_listening(&self, port: u16, process: &Process) -> Result<()> {
        let what = format!("{}: {} listens on port {port}", self.name(), process.name());
        wait_for(&what, LISTEN_LIMIT, || {
            process.check_running()?;
            let tables = self
                .enter(|| ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}"))));
            let listens = tables.iter().flatten().any(|table| has_listener(table, port));
            Ok(if listens { Ok(()) } else { Err("nothing listens there yet".to_owned()) })
        })
    }

    /// Its entry in `mesh.yaml`, as it was made.
    pub(crate) fn listing(&self) -> Option<hauberk_mesh::Pod> {
        let PodInner { options, uid, ips, .. } = &*self.0;
        let proxy = options.meshed.then(|| PodProxy {
            tls: options.spec.tls,
            skip_inbound_ports: options.spec.redirection.skip_inbound_ports.clone(),
        });
        options.listed.then(|| hauberk_mesh::Pod {
            name: options.name.clone(),
            namespace: options.namespace.clone(),
            uid: uid.clone(),
            service_account: options.account.clone(),
            ips: ips.clone(),
            proxy,
            ready: options.ready,
            terminating: false,
            ended: false,
            weight: options.weight,
            labels: options.labels.clone(),
        })
    }

    pub(crate) fn lab(&self) -> &Inner {
        &self.0.lab
    }

    pub(crate) fn options(&self) -> &PodOptions {
        &self.0.options
    }

    pub(crate) fn proxy_state(&self) -> MutexGuard<'_, ProxyState> {
        self.0.proxy.lock().expect("no one panics with the lock held")
    }

    /// `ip():port`.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(), port)
    }
}

/// 10.1.x.y and fd00:1::x:y; the bridge has x = 0.
fn addresses(number: u16, v4: bool, v6: bool) -> Result<Vec<IpAddr>> {
    ensure!(number < 62_500, "a lab has room for 62,500 pods");
    let (x, y) = (number / 250 + 1, number % 250 + 1);
    let low = |part: u16| part.to_be_bytes()[1];
    let all = [
        v4.then(|| IpAddr::V4(Ipv4Addr::new(10, 1, low(x), low(y)))),
        v6.then(|| IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, x, y))),
    ];
    Ok(all.into_iter().flatten().collect())
}

fn attach(lab: &Inner, number: u16, ips: &[IpAddr], options: &PodOptions) -> Result<(Netns, Option<Wire>)> {
    let netns = Netns::new()?;
    for name in ["net.ipv6.conf.all.accept_dad", "net.ipv6.conf.default.accept_dad", "net.ipv6.conf.default.accept_ra"]
    {
        netns.sysctl(name, "0")?;
    }
    for (name, value) in &options.sysctls {
        netns.sysctl(name, value)?;
    }
    let path = netns.path();
    netns.ip("link set lo up\n")?;
    let port = format!("pod{number}");
    let wire = match options.wire {
        None => {
            lab.node.ip(&format!("link add {port} type veth peer name eth0 netns {path}\n"))?;
            None
        }
        Some(wire) => Some(Wire::between((&lab.node, &port), (&netns, "eth0"), wire)?),
    };
    lab.node.ip(&format!("link set {port} master {BRIDGE} up\n"))?;
    let mut inside = "link set eth0 up\n".to_owned();
    for ip in ips {
        inside += &match ip {
            IpAddr::V4(ip) => format!("addr add {ip}/16 dev eth0\nroute add default via {NODE_V4}\n"),
            IpAddr::V6(ip) => format!("addr add {ip}/64 dev eth0 nodad\nroute add default via {NODE_V6}\n"),
        };
    }
    for ip in &options.also_at {
        let host = if ip.is_ipv4() { 32 } else { 128 };
        inside += &format!("addr add {ip}/{host} dev eth0\n");
    }
    netns.ip(&inside)?;
    options.also_at.iter().try_for_each(|ip| lab.route(*ip))?;
    Ok((netns, wire))
}

/// Whether a `/proc/net/tcp` table has a listening socket on `port`: `sl local_address rem_address st …`, hexadecimal.
fn has_listener(table: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    let local_port = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|local| local.ends_with(&local_port)) && fields.nth(1) == Some(LISTEN)
    })
}
