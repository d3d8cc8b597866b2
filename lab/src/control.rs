//! The control plane of a lab: identity and destination, the real binaries in pods of their own.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::MutexGuard,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use hauberk_identity::server::LocalTokens;
use hauberk_mesh::{
    CONTROL_ADMIN_PORT, CONTROL_NAMESPACE, DESTINATION_ACCOUNT, DESTINATION_PORT, IDENTITY_ACCOUNT, IDENTITY_PORT,
    TOKEN_AUDIENCE, TRUST_DOMAIN, format_duration,
};

use crate::{ControlOptions, Lab, Pod, PodOptions, Process, binaries, http, lab::Inner, wait_for};

/// How long a part may take from its start to ready.
pub(crate) const READY_LIMIT: Duration = Duration::from_secs(30);
/// Longer than any lab lives.
const TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The control plane's pods, once it has been started, and what runs in them.
#[derive(Debug)]
pub(crate) struct Control {
    options: ControlOptions,
    pub(crate) identity_pod: Pod,
    pub(crate) destination_pod: Pod,
    identity: Option<Process>,
    destination: Option<Process>,
}

impl Lab {
    /// Starts identity and destination in pods of their own, and waits until both are ready.
    pub fn start_control_plane(&self) -> Result<()> {
        self.start_control_plane_with(ControlOptions::default())
    }

    /// [`Lab::start_control_plane`] with other settings.
    pub fn start_control_plane_with(&self, options: ControlOptions) -> Result<()> {
        let pod = |account: &str| {
            self.pod(PodOptions::new(account).namespace(CONTROL_NAMESPACE).account(account).dual_stack())
        };
        let (identity_pod, destination_pod) = (pod(IDENTITY_ACCOUNT)?, pod(DESTINATION_ACCOUNT)?);
        let control = Control { options, identity_pod, destination_pod, identity: None, destination: None };
        *self.inner.control() = Some(control);
        self.start_identity()?;
        self.start_destination()
    }

    /// Starts identity again, with the state it had, and waits until it is ready.
    pub fn start_identity(&self) -> Result<()> {
        self.start_part(IDENTITY_ACCOUNT, |control| {
            let dir = self.inner.identity_dir();
            fs::create_dir_all(&dir)?;
            let binary = binaries::find("hauberk-identity")?;
            let mut command = self.part(&control.identity_pod, &binary, IDENTITY_PORT, &control.options);
            command.arg("--dir").arg(dir);
            command.args(["--leaf-lifetime", &format_duration(control.options.leaf_lifetime)]);
            command.args(&control.options.identity_args);
            control.identity = Some(control.identity_pod.spawn("run", &mut command)?);
            Ok(())
        })
    }

    /// Starts destination again, and waits until it is ready.
    pub fn start_destination(&self) -> Result<()> {
        self.start_part(DESTINATION_ACCOUNT, |control| {
            let (pod, dir) = (&control.destination_pod, control.destination_pod.dir());
            let token = dir.join("token");
            fs::write(&token, self.inner.mint(pod)?)?;
            let binary = binaries::find("hauberk-destination")?;
            let mut command = self.part(pod, &binary, DESTINATION_PORT, &control.options);
            command.arg("--identity-addr").arg(control.identity_pod.at(IDENTITY_PORT).to_string());
            command.arg("--trust-roots").arg(self.inner.identity_dir().join("bundle.pem"));
            command.arg("--token-file").arg(token).arg("--identity-dir").arg(dir.join("identity"));
            command.args(&control.options.destination_args);
            control.destination = Some(pod.spawn("run", &mut command)?);
            Ok(())
        })
    }

    /// SIGKILL to identity: its port refuses from now on.
    pub fn stop_identity(&self) -> Result<()> {
        self.with_control(|control| control.identity.take().ok_or_else(|| anyhow!("identity does not run"))?.kill())?;
        Ok(())
    }

    /// SIGKILL to destination: its port refuses from now on.
    pub fn stop_destination(&self) -> Result<()> {
        let stop = |control: &mut Control| {
            control.destination.take().ok_or_else(|| anyhow!("destination does not run"))?.kill()
        };
        self.with_control(stop)?;
        Ok(())
    }

    /// The pods of identity and destination.
    pub fn control_pods(&self) -> Result<(Pod, Pod)> {
        self.with_control(|control| Ok((control.identity_pod.clone(), control.destination_pod.clone())))
    }

    /// The pid of destination, as the lab's own process sees it.
    pub fn destination_pid(&self) -> Result<u32> {
        self.with_control(|control| {
            Ok(control.destination.as_ref().ok_or_else(|| anyhow!("destination does not run"))?.pid())
        })
    }

    /// The directory of the CA and of the key that signs the pods' tokens.
    pub fn identity_dir(&self) -> PathBuf {
        self.inner.identity_dir()
    }

    /// The trust bundle, PEM.
    pub fn trust_roots(&self) -> Result<String> {
        self.inner.trust_roots()
    }

    /// Starts a part, then waits for it, so that a failure has the part's log.
    fn start_part(&self, account: &str, start: impl FnOnce(&mut Control) -> Result<()>) -> Result<()> {
        self.with_control(start)?;
        self.with_control(|control| {
            let identity = account == IDENTITY_ACCOUNT;
            let (pod, process) = if identity {
                (&control.identity_pod, &control.identity)
            } else {
                (&control.destination_pod, &control.destination)
            };
            let process = process.as_ref().expect("it has just been started");
            self.inner.wait_ready(process, pod.at(CONTROL_ADMIN_PORT))
        })
    }

    fn with_control<T>(&self, work: impl FnOnce(&mut Control) -> Result<T>) -> Result<T> {
        work(self.inner.control().as_mut().context("there is no control plane yet: call start_control_plane")?)
    }

    /// What both parts are told. They listen on every address: pods of either family come to them.
    fn part(&self, pod: &Pod, binary: &Path, port: u16, options: &ControlOptions) -> Command {
        let mut command = pod.command(binary);
        command.arg("--services").arg(self.mesh_path());
        command.args(["--listen", &format!("[::]:{port}"), "--admin", &format!("[::]:{CONTROL_ADMIN_PORT}")]);
        command.args(["--control-namespace", CONTROL_NAMESPACE, "--trust-domain", TRUST_DOMAIN, "--log", &options.log]);
        command
    }
}

impl Inner {
    pub(crate) fn control(&self) -> MutexGuard<'_, Option<Control>> {
        self.control.lock().expect("no one panics with the lock held")
    }

    pub(crate) fn identity_dir(&self) -> PathBuf {
        self.dir().join("ca")
    }

    pub(crate) fn trust_roots(&self) -> Result<String> {
        let path = self.identity_dir().join("bundle.pem");
        fs::read_to_string(&path).with_context(|| format!("no trust bundle in {}", path.display()))
    }

    /// A token of `pod` for the identity server, as kubelet would project it.
    pub(crate) fn mint(&self, pod: &Pod) -> Result<String> {
        let mesh = self.mesh();
        let pod = mesh.pods.get(&pod.key()).with_context(|| format!("{} is not in mesh.yaml", pod.key()))?;
        Ok(LocalTokens::open_or_create(&self.identity_dir())?.mint(pod, TOKEN_AUDIENCE, TOKEN_LIFETIME))
    }

    /// Waits until `/ready` of the admin port at `addr` says yes; fails, with its log, if `process` ends before.
    pub(crate) fn wait_ready(&self, process: &Process, addr: SocketAddr) -> Result<()> {
        let waited = wait_for(&format!("{} is ready", process.name()), READY_LIMIT, || {
            ensure!(process.exited().is_none(), "{} has ended before it was ready", process.name());
            Ok(match self.node.enter(|| http::get(addr, "/ready")) {
                Ok((200, _)) => Ok(()),
                Ok((status, pending)) => Err(format!("{status} {}", pending.trim())),
                Err(error) => Err(format!("{error:#}")),
            })
        });
        waited.map_err(|error| anyhow!("{error:#}\n{}", process.tail()))
    }
}
