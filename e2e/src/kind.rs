//! A cluster of kind with real nodes, made by the scripts in `e2e/kind`; one Docker engine of our own serves all clusters
//! of this machine.
//!
//! The cluster ends with its handle. A process of its own waits for the end of a pipe that only this program holds, then
//! deletes the cluster: however the program ends.

use std::{
    io::Write,
    net::{IpAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use hauberk_lab::{Captured, Netns, Processes, Tcpdump};
use hauberk_mesh::{
    CONTROL_NAMESPACE, Connections, DESTINATION_ACCOUNT, IDENTITY_ACCOUNT, LOCAL_ADMIN_PORT, WEBHOOK_ACCOUNT,
};
use serde_json::Value;

use crate::{Images, binaries};

/// How long one command may take, unless it says otherwise.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// How long a cluster may take to be there; the image of its nodes is made first where there is none.
const UP_LIMIT: Duration = Duration::from_secs(600);
/// The Deployments of the control plane.
const PARTS: [&str; 3] = [IDENTITY_ACCOUNT, DESTINATION_ACCOUNT, WEBHOOK_ACCOUNT];
/// MiB of the kernel's buffer for one pod's packets.
const BUFFER_MIB: u32 = 32;
/// Nobody listens there; what is sent to it passes the pod's wire.
const DISCARD_PORT: u16 = 9;

/// What nodes a cluster has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One node for everything: there soonest.
    Single,
    /// A control plane and two workers in two zones.
    Zones,
}

/// A running cluster. Dropped, it is deleted; in a panic, after what is in it was printed. With `HAUBERK_KEEP` set it
/// stays, until `e2e/kind/down.sh NAME`.
#[derive(Debug)]
pub struct Kind {
    name: String,
    kubeconfig: PathBuf,
    engine: Netns,
    captures: AtomicU16,
    processes: Processes,
    keeper: Option<Keeper>,
}

/// Who deletes the cluster at the end of the pipe.
#[derive(Debug)]
struct Keeper {
    child: Child,
    pipe: ChildStdin,
}

impl Kind {
    /// A new cluster of that name, until all of kube-system is ready.
    pub fn up(name: &str, shape: Shape) -> Result<Self> {
        binaries::find("kind")?;
        // First, so that a cluster which was broken off goes too.
        let keeper = (std::env::var_os("HAUBERK_KEEP").is_none()).then(|| Keeper::new(name)).transpose()?;
        let config = match shape {
            Shape::Single => "single.yaml",
            Shape::Zones => "cluster.yaml",
        };
        let mut up = script("up.sh");
        up.arg(name).arg(scripts().join(config));
        run(limited(up, UP_LIMIT)).with_context(|| format!("cannot make the cluster {name}"))?;
        let dir = state()?;
        let pid = std::fs::read_to_string(dir.join("docker/pid"))?;
        Ok(Self {
            name: name.to_owned(),
            kubeconfig: dir.join(format!("kubeconfig-{name}")),
            engine: Netns::of(pid.trim().parse()?)?,
            captures: AtomicU16::new(0),
            processes: Processes::new("hauberk-kind-")?,
            keeper,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Puts images on every node.
    pub fn load(&self, images: &Images) -> Result<()> {
        let mut load = script("load.sh");
        load.arg(&self.name).args(images.archives());
        run(limited(load, UP_LIMIT))?;
        Ok(())
    }

    /// Installs Hauberk as people do, `hauberk install ARGS | kubectl apply -f -`, and waits until it serves.
    pub fn install(&self, args: &[&str]) -> Result<()> {
        let mut install = self.command("timeout");
        install.arg(COMMAND_LIMIT.as_secs().to_string()).arg(hauberk_lab::find_binary("hauberk")?).arg("install");
        install.args(args);
        let manifest = run(install)?;
        self.kubectl_with(&["apply", "--server-side", "-f", "-"], &String::from_utf8(manifest.stdout)?)?;
        let limit = format!("--timeout={}s", COMMAND_LIMIT.as_secs() - 5);
        for part in PARTS {
            self.kubectl(&["rollout", "status", "-n", CONTROL_NAMESPACE, &format!("deployment/{part}"), &limit])?;
        }
        Ok(())
    }

    /// `program` where the API server can be reached, with the cluster's kubeconfig and a clean environment.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.engine.command(program, None);
        command.env("KUBECONFIG", &self.kubeconfig).env("HOME", self.processes.dir());
        command
    }

    /// Runs `kubectl` to its end; what it wrote, or an error with what it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_with(args, "")
    }

    /// [`Kind::kubectl`] with input.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> Result<String> {
        let mut command = self.command("timeout");
        command.arg(COMMAND_LIMIT.as_secs().to_string()).arg(binaries::find("kubectl")?).args(args);
        Ok(String::from_utf8_lossy(&run_with(command, input)?.stdout).into_owned())
    }

    /// Applies a manifest, YAML or JSON.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.kubectl_with(&["apply", "--server-side", "-f", "-"], manifest)
    }

    /// What `kubectl get` knows, as JSON.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], args].concat())?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// Runs a command in a container of a pod; what it wrote, or an error with what it said.
    pub fn exec(&self, namespace: &str, pod: &str, container: &str, command: &[&str]) -> Result<String> {
        self.kubectl(&[&["exec", "-n", namespace, pod, "-c", container, "--"], command].concat())
    }

    /// Waits until objects are as `condition` says: `&["pod", "-l", "app=web"]`, `delete`.
    pub fn wait(&self, namespace: &str, objects: &[&str], condition: &str) -> Result<()> {
        let (condition, limit) = (format!("--for={condition}"), format!("--timeout={}s", COMMAND_LIMIT.as_secs() - 5));
        self.kubectl(&[&["wait", "-n", namespace, &condition, &limit], objects].concat())?;
        Ok(())
    }

    /// The one pod that has that label: `app=web`.
    pub fn pod(&self, namespace: &str, label: &str) -> Result<String> {
        let name = self.kubectl(&["get", "pods", "-n", namespace, "-l", label, "-o", "name"])?;
        let mut names = name.lines().filter_map(|line| line.strip_prefix("pod/"));
        match (names.next(), names.next()) {
            (Some(name), None) => Ok(name.to_owned()),
            _ => bail!("not one pod of {namespace} has the label {label}: {name:?}"),
        }
    }

    /// The first address of a pod.
    pub fn ip(&self, namespace: &str, pod: &str) -> Result<IpAddr> {
        let pod = self.get(&["pod", "-n", namespace, pod])?;
        Ok(pod["status"]["podIP"].as_str().context("the pod has no address")?.parse()?)
    }

    /// What a pod's proxy says of its connections. `container` has `curl`.
    pub fn connections(&self, namespace: &str, pod: &str, container: &str) -> Result<Connections> {
        let url = format!("http://127.0.0.1:{LOCAL_ADMIN_PORT}/connections");
        let text = self.exec(namespace, pod, container, &["curl", "-sS", "--fail", "--max-time", "10", &url])?;
        serde_json::from_str(&text).with_context(|| format!("not the document of connections: {text}"))
    }

    /// Runs a command on a node; what it wrote, or an error with what it said.
    pub fn on_node(&self, node: &str, command: &[&str]) -> Result<String> {
        docker(&[&["exec", node], command].concat())
    }

    /// The network namespace of a node.
    pub fn node(&self, name: &str) -> Result<Netns> {
        let pid = docker(&["inspect", "--format", "{{.State.Pid}}", name])?.trim().parse()?;
        Netns::of(pid)
    }

    /// Begins to capture every packet of a pod, on the node's end of its wire. `container` has `cat`.
    pub fn capture(&self, namespace: &str, pod: &str, container: &str) -> Result<PodCapture> {
        let ip = self.ip(namespace, pod)?;
        let node = self.kubectl(&["get", "pod", "-n", namespace, pod, "-o", "jsonpath={.spec.nodeName}"])?;
        let index = self.exec(namespace, pod, container, &["cat", "/sys/class/net/eth0/iflink"])?;
        let node = self.node(&node)?;
        let device = device(&node, index.trim())?;
        let name = format!("tcpdump-{}-{pod}", self.captures.fetch_add(1, Ordering::Relaxed));
        let tcpdump = Tcpdump::start(&self.processes, &name, node.command("tcpdump", None), &device, BUFFER_MIB)?;
        Ok(PodCapture { node, ip, tcpdump })
    }

    /// For people, when something went wrong: pods, events, and the last of the logs of `namespaces`.
    pub fn report(&self, namespaces: &[&str]) -> String {
        let mut report = String::new();
        let mut add = |args: &[&str]| {
            let text = self.kubectl(args).unwrap_or_else(|error| format!("{error:#}"));
            report.push_str(&format!("\n== kubectl {}\n{text}", args.join(" ")));
        };
        add(&["get", "nodes,pods", "--all-namespaces", "-o", "wide"]);
        for namespace in namespaces {
            add(&["get", "events", "-n", namespace, "--sort-by=.metadata.creationTimestamp"]);
            add(&["describe", "pods", "-n", namespace]);
            let names = self.kubectl(&["get", "pods", "-n", namespace, "-o", "name"]).unwrap_or_default();
            for pod in names.lines() {
                add(&["logs", "-n", namespace, pod, "--all-containers", "--prefix", "--tail=60"]);
            }
        }
        report
    }
}

impl Drop for Kind {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.report(&[CONTROL_NAMESPACE]));
        }
        self.processes.end();
        if let Some(keeper) = self.keeper.take() {
            keeper.end();
        }
    }
}

impl Keeper {
    fn new(name: &str) -> Result<Self> {
        // A session of its own: what ends the program from a terminal must not end it.
        let mut child = Command::new("setsid")
            .args(["bash", "-c", r#"cat >/dev/null; exec "$0" "$1""#])
            .arg(scripts().join("down.sh"))
            .arg(name)
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot run setsid: install util-linux (make setup)")?;
        let pipe = child.stdin.take().expect("stdin is piped");
        Ok(Self { child, pipe })
    }

    fn end(mut self) {
        drop(self.pipe);
        let _ = self.child.wait();
    }
}

/// A capture of one pod that is running.
#[derive(Debug)]
pub struct PodCapture {
    node: Netns,
    ip: IpAddr,
    tcpdump: Tcpdump,
}

impl PodCapture {
    /// Waits until all packets so far are in the file, ends the capture and reads it.
    pub fn stop(self) -> Result<Captured> {
        let Self { node, ip, tcpdump } = self;
        tcpdump.stop(|word| {
            node.enter(|| {
                let any: IpAddr = if ip.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
                UdpSocket::bind((any, 0))?.send_to(word, (ip, DISCARD_PORT))?;
                Ok(())
            })
        })
    }
}

/// The containers that are nodes of the cluster `name`; none if the engine does not run.
pub fn nodes_of(name: &str) -> Result<Vec<String>> {
    if !state()?.join("docker/sock").exists() {
        return Ok(Vec::new());
    }
    let filter = format!("label=io.x-k8s.kind.cluster={name}");
    let names = docker(&["ps", "--all", "--filter", &filter, "--format", "{{.Names}}"])?;
    Ok(names.lines().map(str::to_owned).collect())
}

fn docker(args: &[&str]) -> Result<String> {
    let mut docker = Command::new("docker");
    docker.env("DOCKER_HOST", format!("unix://{}", state()?.join("docker/sock").display())).args(args);
    Ok(String::from_utf8(run(limited(docker, COMMAND_LIMIT))?.stdout)?)
}

/// Where the scripts keep what they made.
fn state() -> Result<PathBuf> {
    Ok(binaries::cache()?.join(format!("kubernetes-{}", binaries::KUBERNETES)))
}

/// The name of the device with that index in `node`.
fn device(node: &Netns, index: &str) -> Result<String> {
    let mut ip = node.command("ip", None);
    ip.args(["-j", "link"]);
    let output = run(ip)?;
    let devices: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    let index: u64 = index.parse().with_context(|| format!("not the index of a device: {index:?}"))?;
    let found = devices.iter().find(|device| device["ifindex"] == index);
    let name = found.and_then(|device| device["ifname"].as_str());
    name.map(str::to_owned).with_context(|| format!("the node has no device {index}"))
}

fn scripts() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/kind"))
}

pub(crate) fn script(name: &str) -> Command {
    Command::new(scripts().join(name))
}

/// `command`, killed when the time is over.
pub(crate) fn limited(command: Command, limit: Duration) -> Command {
    let mut timed = Command::new("timeout");
    timed.arg(limit.as_secs().to_string()).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => timed.env(name, value),
            None => timed.env_remove(name),
        };
    }
    timed
}

pub(crate) fn run(command: Command) -> Result<Output> {
    run_with(command, "")
}

fn run_with(mut command: Command, input: &str) -> Result<Output> {
    let shown = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {shown}"))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.to_owned();
    // On its own: both may be longer than a pipe.
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    // Who ends without reading has said why.
    let _ = writer.join();
    if !output.status.success() {
        let said = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
        bail!("{shown}: {}\n{}{}", output.status, said[0], said[1]);
    }
    Ok(output)
}
