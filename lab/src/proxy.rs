//! A pod's proxy: the real `hauberk-proxy init` and `hauberk-proxy run`, and what its admin ports say.

use std::{
    fs::{self, Permissions},
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context, Result, anyhow, ensure};
use hauberk_mesh::{
    ADMIN_PORT, Connections, DESTINATION_PORT, IDENTITY_PORT, LOCAL_ADMIN_PORT, ProxySpec, TrustDomain,
};

use crate::{Lab, Pod, Process, Signal, binaries, control::READY_LIMIT, http, wait_for};

const BINARY: &str = "hauberk-proxy";

impl Lab {
    /// Sets the redirection in `pod`, starts its proxy and waits until it is ready.
    pub fn start_proxy(&self, pod: &Pod) -> Result<()> {
        self.launch_proxy(pod)?;
        pod.wait_proxy_ready()
    }

    /// [`Lab::start_proxy`] without the wait: for what a proxy does before it has a certificate.
    pub fn launch_proxy(&self, pod: &Pod) -> Result<()> {
        ensure!(pod.options().meshed, "{} is not meshed: make it with PodOptions::meshed", pod.name());
        let token = pod.dir().join("token");
        fs::write(&token, self.inner.mint(pod)?)?;
        let identity_dir = pod.dir().join("identity");
        fs::create_dir_all(&identity_dir)?;
        pod.edit_spec(|spec| self.complete(pod, spec, &token, &identity_dir))?;
        let uid = pod.spec().redirection.proxy_uid;
        for (path, mode) in [(&token, 0o400), (&identity_dir, 0o700)] {
            chown(path, Some(uid), Some(uid))?;
            fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
        pod.init()?;
        pod.launch_proxy()
    }

    /// Fills in what a pod's options leave open.
    fn complete(&self, pod: &Pod, spec: &mut ProxySpec, token: &Path, identity_dir: &Path) -> Result<()> {
        let (identity, destination) = self.control_pods()?;
        let family = |control: &Pod, port| {
            let ip = control.ips().iter().find(|ip| ip.is_ipv4() == pod.ip().is_ipv4());
            SocketAddr::new(*ip.expect("the control plane has addresses of both families"), port)
        };
        spec.identity = TrustDomain::default().identity(pod.account(), pod.namespace())?;
        spec.identity_addr = family(&identity, IDENTITY_PORT);
        spec.destination_addr = family(&destination, DESTINATION_PORT);
        spec.trust_roots = self.trust_roots()?;
        spec.networks = self.mesh().networks.clone();
        spec.token_file = token.display().to_string();
        spec.identity_dir = identity_dir.display().to_string();
        Ok(())
    }
}

impl Pod {
    /// What its proxy is told at start.
    pub fn spec(&self) -> ProxySpec {
        self.proxy_state().spec.clone()
    }

    /// Changes what its proxy is told when it starts the next time.
    pub fn edit_spec<T>(&self, change: impl FnOnce(&mut ProxySpec) -> T) -> T {
        change(&mut self.proxy_state().spec)
    }

    /// Runs `hauberk-proxy init` with the settings of [`Pod::spec`]; its output.
    pub fn init(&self) -> Result<String> {
        let redirection = self.spec().redirection;
        let mut args = vec!["init".to_owned(), "--backend".to_owned(), "auto".to_owned()];
        for (flag, value) in [
            ("--proxy-uid", redirection.proxy_uid.to_string()),
            ("--skip-inbound-ports", redirection.skip_inbound_ports.to_string()),
            ("--skip-outbound-ports", redirection.skip_outbound_ports.to_string()),
            ("--skip-subnets", redirection.skip_subnets.to_string()),
        ] {
            if !value.is_empty() {
                args.extend([flag.to_owned(), value]);
            }
        }
        self.run(self.proxy_binary()?, args)
    }

    /// Starts `hauberk-proxy run`, without waiting for it.
    pub fn launch_proxy(&self) -> Result<()> {
        let spec = self.spec();
        let (uid, binary) = (spec.redirection.proxy_uid, self.proxy_binary()?);
        let mut command = self.command_as(uid, binary);
        if let Some(seconds) = self.options().clock {
            command.env("LD_PRELOAD", self.clock_library(seconds)?);
        }
        command.arg("run").args(&self.options().proxy_args).env("RUST_LOG", "info").envs(spec.to_env());
        command.envs(self.options().proxy_env.iter().map(|(name, value)| (name, value)));
        let process = self.spawn("proxy", &mut command)?;
        self.proxy_state().process = Some(process);
        Ok(())
    }

    /// What makes the time of day wrong for whoever is started with it; waits are as long as ever.
    fn clock_library(&self, seconds: i64) -> Result<PathBuf> {
        let library = self.dir().join("clock.so");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-Wall", "-Werror", &format!("-DSECONDS={seconds}"), "-x", "c", "-", "-o"]);
        let mut compiling = compiler.arg(&library).stdin(Stdio::piped()).spawn().context("cc does not run")?;
        let source = include_bytes!("clock.c");
        compiling.stdin.take().context("cc has an input")?.write_all(source).context("cc reads its input")?;
        ensure!(compiling.wait()?.success(), "cc refuses clock.c");
        Ok(library)
    }

    /// Waits until its proxy is ready.
    pub fn wait_proxy_ready(&self) -> Result<()> {
        self.with_proxy(|process| self.lab().wait_ready(process, self.at(ADMIN_PORT)))
    }

    /// SIGTERM to its proxy, without waiting for the end.
    pub fn terminate_proxy(&self) -> Result<()> {
        self.with_proxy(|process| process.signal(Signal::SIGTERM))
    }

    /// SIGTERM to its proxy, and its end.
    pub fn stop_proxy(&self) -> Result<ExitStatus> {
        self.take_proxy()?.stop()
    }

    /// SIGKILL to its proxy, and its end.
    pub fn kill_proxy(&self) -> Result<ExitStatus> {
        self.take_proxy()?.kill()
    }

    /// Starts its proxy again, as a restarted container: same files, same redirection. Kills it if it runs.
    pub fn restart_proxy(&self) -> Result<()> {
        if self.proxy_state().process.is_some() {
            self.kill_proxy()?;
        }
        self.launch_proxy()?;
        self.wait_proxy_ready()
    }

    /// Does `work` with its proxy's process.
    pub fn with_proxy<T>(&self, work: impl FnOnce(&Process) -> Result<T>) -> Result<T> {
        let missing = || anyhow!("{} has no proxy that runs: call Lab::start_proxy", self.name());
        work(self.proxy_state().process.as_ref().ok_or_else(missing)?)
    }

    /// What its proxy says of its connections.
    pub fn connections(&self) -> Result<Connections> {
        let body = self.local_admin("/connections")?;
        serde_json::from_str(&body).with_context(|| format!("/connections of {}: {body}", self.name()))
    }

    /// Waits until `find` finds what it looks for in its proxy's `/connections`.
    pub fn wait_connections<T>(&self, what: &str, mut find: impl FnMut(&Connections) -> Option<T>) -> Result<T> {
        wait_for(&format!("{}: {what}", self.name()), READY_LIMIT, || {
            let connections = self.connections()?;
            Ok(find(&connections).ok_or_else(|| format!("{connections:#?}")))
        })
    }

    /// Its proxy's metrics.
    pub fn metrics(&self) -> Result<String> {
        self.admin("/metrics")
    }

    /// A page of its proxy's admin port on the pod's address, as the node gets it.
    pub fn admin(&self, path: &str) -> Result<String> {
        found(self.lab().node.enter(|| http::get(self.at(ADMIN_PORT), path))?)
    }

    /// A page of its proxy's admin port on loopback.
    pub fn local_admin(&self, path: &str) -> Result<String> {
        let addr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), LOCAL_ADMIN_PORT);
        found(self.enter(|| http::get(addr, path))?)
    }

    fn take_proxy(&self) -> Result<Process> {
        let process = self.proxy_state().process.take();
        process.ok_or_else(|| anyhow!("{} has no proxy that runs", self.name()))
    }

    /// Under a name in the lab's directory that the proxy's user can reach.
    fn proxy_binary(&self) -> Result<PathBuf> {
        let path = self.lab().dir().join(BINARY);
        binaries::publish(&binaries::find(BINARY)?, &path)?;
        Ok(path)
    }
}

fn found((status, body): (u16, String)) -> Result<String> {
    ensure!(status == 200, "{status} {body}");
    Ok(body)
}
