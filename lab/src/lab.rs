//! The lab itself: the node's namespace with the bridge, the pods, the processes and their logs.

use std::{
    fs::{self, File, Permissions},
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU16, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::{Pod, PodOptions, Process, netns::Netns, process::Shared, spawner::Spawner};

/// Where IPv4 addresses of services are. Nobody has one: whatever the proxy does not take is unreachable.
pub const SERVICE_NETWORK_V4: &str = "10.2.0.0/16";
/// Where IPv6 addresses of services are.
pub const SERVICE_NETWORK_V6: &str = "fd00:2::/64";
pub(crate) const BRIDGE: &str = "br0";
/// Pods' default gateways: the bridge's own addresses.
pub(crate) const GATEWAY_V4: &str = "10.1.0.1";
pub(crate) const GATEWAY_V6: &str = "fd00:1::1";

/// A small mesh on this machine. Dropped, every process in it is killed and every namespace gone.
#[derive(Debug)]
pub struct Lab {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) node: Netns,
    spawner: Spawner,
    processes: Mutex<Vec<Arc<Shared>>>,
    pods: AtomicU16,
    dir: TempDir,
}

impl Lab {
    /// A node with a bridge, and no pods yet.
    pub fn new() -> Result<Self> {
        ensure!(nix::unistd::Uid::effective().is_root(), "network namespaces need root: run this as root");
        let dir = tempfile::Builder::new().prefix("hauberk-lab-").tempdir()?;
        // Proxies and servers run as users of their own and have their files here.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        let inner = Inner {
            node: node()?,
            spawner: Spawner::new()?,
            processes: Mutex::default(),
            pods: AtomicU16::new(0),
            dir,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// A new pod: a namespace with an address of its own, attached to the bridge. No proxy yet.
    pub fn pod(&self, options: PodOptions) -> Result<Pod> {
        let number = self.inner.pods.fetch_add(1, Ordering::Relaxed);
        Pod::new(self.inner.clone(), number, options)
    }

    /// Files of the lab: logs, and a directory for each pod. Gone with the lab.
    pub fn dir(&self) -> &Path {
        self.inner.dir.path()
    }

    /// `program` in the node's namespace: it sees the bridge, and every pod's end of its wire there.
    pub fn command(&self, program: &str) -> Command {
        self.inner.node.command(program, None)
    }

    /// Runs `work` on a thread inside the node's namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.inner.node.enter(work)
    }

    /// Starts `command`, made by [`Lab::command`], as a process of the lab.
    pub fn spawn(&self, name: &str, command: &mut Command) -> Result<Process> {
        self.inner.spawn(&format!("node-{name}"), command)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for process in self.inner.processes().iter() {
                eprintln!("{}", process.report());
            }
        }
        self.inner.spawner.end();
    }
}

impl Inner {
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts `command` with its output in `<name>.log`. Takes what is in `command`, which is useless afterwards:
    /// so calls read like those of `Command::spawn`.
    pub(crate) fn spawn(&self, name: &str, command: &mut Command) -> Result<Process> {
        let path = self.dir().join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(&path)?;
        command.stderr(log.try_clone()?).stdout(log);
        let command = std::mem::replace(command, Command::new("false"));
        let child = self.spawner.spawn(command).with_context(|| format!("cannot start {name}"))?;
        let process = Process::watch(name.to_owned(), child, path);
        self.processes().push(process.shared().clone());
        Ok(process)
    }

    /// Lets the node deliver packets for `ip`, which lies outside the pods' networks.
    pub(crate) fn route(&self, ip: IpAddr) -> Result<()> {
        self.node.ip(&format!("route add {ip} dev {BRIDGE}\n"))
    }

    fn processes(&self) -> MutexGuard<'_, Vec<Arc<Shared>>> {
        self.processes.lock().expect("no one panics with the lock held")
    }
}

/// The node forwards, so that an address which nobody has is answered at once with "unreachable" instead of silence,
/// and so that pods can have addresses outside the cluster's networks.
fn node() -> Result<Netns> {
    let node = Netns::new()?;
    for (name, value) in [
        ("net.ipv6.conf.all.disable_ipv6", "0"),
        ("net.ipv6.conf.default.accept_dad", "0"),
        ("net.ipv4.conf.all.send_redirects", "0"),
        ("net.ipv4.conf.default.send_redirects", "0"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.default.rp_filter", "0"),
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv6.conf.all.forwarding", "1"),
        ("net.ipv4.icmp_ratelimit", "0"),
        ("net.ipv6.icmp.ratelimit", "0"),
    ] {
        node.sysctl(name, value)?;
    }
    node.ip(&format!(
        "link set lo up
         link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0
         link set {BRIDGE} up
         addr add {GATEWAY_V4}/16 dev {BRIDGE}
         addr add {GATEWAY_V6}/64 dev {BRIDGE} nodad
         route add unreachable {SERVICE_NETWORK_V4}
         route add unreachable {SERVICE_NETWORK_V6}
         route add unreachable default
         route add unreachable ::/0\n"
    ))?;
    Ok(node)
}
