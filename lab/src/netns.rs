//! A network namespace without a name: it lasts as long as this handle, or a process inside.

use std::{
    fs::{self, File},
    io::Write,
    os::fd::AsRawFd,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// What programs find in `PATH`: some of Debian's tools live in `sbin`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A network namespace, held open.
#[derive(Debug)]
pub struct Netns {
    handle: File,
    path: String,
}

impl Netns {
    /// A new namespace with nothing in it but a loopback device that is down.
    pub(crate) fn new() -> Result<Self> {
        let made = thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace: run this as root")?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        });
        Self::held(made.join().expect("the thread does not panic")?)
    }

    /// That of the process `pid`.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        Self::held(File::open(&path).with_context(|| format!("cannot open {path}"))?)
    }

    fn held(handle: File) -> Result<Self> {
        // The number that /proc has for us, which in a nested PID namespace is not the one of getpid.
        let pid = fs::read_link("/proc/self").context("/proc is not mounted")?;
        let path = format!("/proc/{}/fd/{}", pid.display(), handle.as_raw_fd());
        Ok(Self { handle, path })
    }

    /// Where other processes can open the namespace while this one lives.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Runs `work` on a thread of its own inside the namespace: its sockets, `/proc/net` and `/proc/sys/net` are the
    /// namespace's. A panic goes on in the caller.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.handle, CloneFlags::CLONE_NEWNET).expect("the namespace is open and this process may enter it");
            work()
        };
        match thread::scope(|scope| scope.spawn(inside).join()) {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// `program` inside the namespace, as `user` (root if none), with a clean environment and no input. It dies with
    /// the thread that starts it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>, user: Option<u32>) -> Command {
        let mut command = Command::new("nsenter");
        command.env_clear().env("PATH", PATH).stdin(Stdio::null());
        command.arg(format!("--net={}", self.path)).args(["setpriv", "--pdeathsig", "KILL"]);
        if let Some(user) = user {
            command.args([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()]);
        }
        command.arg("--").arg(program);
        command
    }

    /// Sets a `/proc/sys` entry of the namespace: `net.ipv4.ip_forward`.
    pub(crate) fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        ensure!(name.starts_with("net."), "sysctl {name}: only net.… belongs to a network namespace");
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.enter(|| fs::write(&path, value)).with_context(|| format!("cannot write {value:?} to {path}"))
    }

    /// Runs the lines of `batch` as `ip` commands inside the namespace; the first that fails is the error.
    pub(crate) fn ip(&self, batch: &str) -> Result<()> {
        let mut command = self.command("ip", None);
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot run nsenter: install util-linux (make setup)")?;
        child.stdin.take().expect("stdin is piped").write_all(batch.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("ip failed: {}\nof the commands\n{batch}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}
