//! A pod: a network namespace with addresses of its own on the bridge, and the processes in it.

use std::{
    ffi::OsStr,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    Process,
    lab::{BRIDGE, GATEWAY_V4, GATEWAY_V6, Inner},
    netns::Netns,
    wait_for,
};

/// How long a server may take to listen.
const LISTEN_LIMIT: Duration = Duration::from_secs(20);

/// What a pod is to be. Without more: namespace `default`, account `default`, one IPv4 address, not meshed.
#[derive(Debug, Clone)]
pub struct PodOptions {
    name: String,
    namespace: String,
    account: String,
    v4: bool,
    v6: bool,
    outside: Vec<IpAddr>,
    sysctls: Vec<(String, String)>,
}

impl PodOptions {
    /// A pod of that name, unique in its namespace.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            account: "default".to_owned(),
            v4: true,
            v6: false,
            outside: Vec::new(),
            sysctls: Vec::new(),
        }
    }

    /// Its namespace (of the mesh).
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// Its ServiceAccount.
    pub fn account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.account);
        self
    }

    /// An IPv6 address beside the IPv4 one.
    pub fn dual_stack(mut self) -> Self {
        (self.v4, self.v6) = (true, true);
        self
    }

    /// An IPv6 address only.
    pub fn ipv6_only(mut self) -> Self {
        (self.v4, self.v6) = (false, true);
        self
    }

    /// One more address, which may lie outside the cluster's networks; the mesh is not told of it.
    pub fn also_at(mut self, ip: &str) -> Self {
        self.outside.push(ip.parse().expect("also_at takes an IP address"));
        self
    }

    /// A setting of its network namespace, such as `net.ipv4.tcp_congestion_control`.
    pub fn sysctl(mut self, name: &str, value: &str) -> Self {
        self.sysctls.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A pod of the lab. Clones are the same pod.
#[derive(Debug, Clone)]
pub struct Pod(Arc<PodInner>);

#[derive(Debug)]
struct PodInner {
    lab: Arc<Inner>,
    netns: Netns,
    options: PodOptions,
    ips: Vec<IpAddr>,
    dir: PathBuf,
}

impl Pod {
    pub(crate) fn new(lab: Arc<Inner>, number: u16, options: PodOptions) -> Result<Self> {
        let ips = addresses(number, options.v4, options.v6)?;
        let dir = lab.dir().join(format!("{}-{}", options.namespace, options.name));
        fs::create_dir(&dir).with_context(|| format!("pod {} stands in this lab twice", options.name))?;
        let netns = attach(&lab, number, &ips, &options).with_context(|| format!("pod {}", options.name))?;
        Ok(Self(Arc::new(PodInner { lab, netns, options, ips, dir })))
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

    /// A directory for its files; everybody may read it.
    pub fn dir(&self) -> &PathBuf {
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
    pub fn run<S: AsRef<OsStr>>(&self, program: &str, args: impl IntoIterator<Item = S>) -> Result<String> {
        let output = self.command(program).args(args).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
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

fn attach(lab: &Inner, number: u16, ips: &[IpAddr], options: &PodOptions) -> Result<Netns> {
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
    lab.node.ip(&format!(
        "link add pod{number} type veth peer name eth0 netns {path}
         link set pod{number} master {BRIDGE} up\n"
    ))?;
    let mut inside = "link set eth0 up\n".to_owned();
    for ip in ips {
        inside += &match ip {
            IpAddr::V4(ip) => format!("addr add {ip}/16 dev eth0\nroute add default via {GATEWAY_V4}\n"),
            IpAddr::V6(ip) => format!("addr add {ip}/64 dev eth0 nodad\nroute add default via {GATEWAY_V6}\n"),
        };
    }
    for ip in &options.outside {
        let host = if ip.is_ipv4() { 32 } else { 128 };
        inside += &format!("addr add {ip}/{host} dev eth0\n");
    }
    netns.ip(&inside)?;
    options.outside.iter().try_for_each(|ip| lab.route(*ip))?;
    Ok(netns)
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
