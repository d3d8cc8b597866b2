//! The lab itself: the node's namespace with the bridge, the pods, the processes and their logs.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU16, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use hauberk_mesh::MeshFile;

use crate::{Pod, PodOptions, Process, Processes, ServiceOptions, control::Control, mesh_yaml::to_yaml, netns::Netns};

/// Where IPv4 addresses of services are. Nobody has one: whatever the proxy does not take is unreachable.
pub const SERVICE_NETWORK_V4: &str = "10.2.0.0/16";
/// Where IPv6 addresses of services are.
pub const SERVICE_NETWORK_V6: &str = "fd00:2::/64";
/// Where pods are.
const POD_NETWORKS: &str = "10.1.0.0/16,fd00:1::/64";
/// The bridge, in the node's namespace.
pub const BRIDGE: &str = "br0";
/// The node's own address on the bridge: pods' gateway, and where readiness is asked from.
pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
/// The node's own IPv6 address on the bridge.
pub const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);

/// A small mesh on this machine. Dropped, every process in it is killed and every namespace gone.
#[derive(Debug)]
pub struct Lab {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) node: Netns,
    pub(crate) processes: Processes,
    pods: AtomicU16,
    captures: AtomicU16,
    mesh: Mutex<MeshFile>,
    pub(crate) control: Mutex<Option<Control>>,
}

impl Lab {
    /// A node with a bridge, and no pods yet.
    pub fn new() -> Result<Self> {
        ensure!(nix::unistd::Uid::effective().is_root(), "network namespaces need root: run this as root");
        let networks = format!("{POD_NETWORKS},{SERVICE_NETWORK_V4},{SERVICE_NETWORK_V6}");
        let networks = networks.parse().expect("the lab's networks are valid");
        let inner = Inner {
            node: node()?,
            processes: Processes::new("hauberk-lab-")?,
            pods: AtomicU16::new(0),
            captures: AtomicU16::new(0),
            mesh: Mutex::new(MeshFile { networks, ..MeshFile::default() }),
            control: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// A new pod: a namespace with an address of its own, attached to the bridge. No proxy yet.
    pub fn pod(&self, options: PodOptions) -> Result<Pod> {
        let number = self.inner.pods.fetch_add(1, Ordering::Relaxed);
        let pod = Pod::new(self.inner.clone(), number, options)?;
        if let Some(listed) = pod.listing() {
            self.edit(|mesh| mesh.pods.insert(pod.key(), listed))?;
        }
        Ok(pod)
    }

    /// A new service; its pods must be there. Nobody has its addresses: proxies know where to go.
    pub fn service(&self, options: ServiceOptions) -> Result<()> {
        let service = options.0;
        self.edit(|mesh| mesh.services.insert(format!("{}/{}", service.namespace, service.name), service))?;
        Ok(())
    }

    /// Changes `mesh.yaml`, at once as a whole. Fails, and changes nothing, if the result would not be valid.
    pub fn edit<T>(&self, change: impl FnOnce(&mut MeshFile) -> T) -> Result<T> {
        let mut mesh = self.inner.mesh();
        let mut changed = mesh.clone();
        let result = change(&mut changed);
        let yaml = to_yaml(&changed);
        MeshFile::parse(&yaml).with_context(|| format!("this would not be a mesh:\n{yaml}"))?;
        self.write_mesh_yaml(&yaml)?;
        *mesh = changed;
        Ok(result)
    }

    /// Replaces `mesh.yaml` by any text, valid or not; the next [`Lab::edit`] starts from what was valid before.
    pub fn write_mesh_yaml(&self, text: &str) -> Result<()> {
        let new = self.dir().join("mesh.yaml.new");
        fs::write(&new, text)?;
        Ok(fs::rename(new, self.mesh_path())?)
    }

    /// Where `mesh.yaml` is.
    pub fn mesh_path(&self) -> PathBuf {
        self.dir().join("mesh.yaml")
    }

    /// What `mesh.yaml` says.
    pub fn mesh(&self) -> MeshFile {
        self.inner.mesh().clone()
    }

    /// Files of the lab: logs, and a directory for each pod. Gone with the lab.
    pub fn dir(&self) -> &Path {
        self.inner.dir()
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
        self.inner.processes.end();
        // Its pods hold the lab, which holds them.
        *self.inner.control() = None;
    }
}

impl Inner {
    pub(crate) fn dir(&self) -> &Path {
        self.processes.dir()
    }

    pub(crate) fn spawn(&self, name: &str, command: &mut Command) -> Result<Process> {
        self.processes.spawn(name, command)
    }

    /// Lets the node deliver packets for `ip`, which lies outside the pods' networks.
    pub(crate) fn route(&self, ip: IpAddr) -> Result<()> {
        self.node.ip(&format!("route add {ip} dev {BRIDGE}\n"))
    }

    pub(crate) fn next_capture(&self) -> u16 {
        self.captures.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn mesh(&self) -> MutexGuard<'_, MeshFile> {
        self.mesh.lock().expect("no one panics with the lock held")
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
         addr add {NODE_V4}/16 dev {BRIDGE}
         addr add {NODE_V6}/64 dev {BRIDGE} nodad
         route add unreachable {SERVICE_NETWORK_V4}
         route add unreachable {SERVICE_NETWORK_V6}
         route add unreachable default
         route add unreachable ::/0\n"
    ))?;
    Ok(node)
}
