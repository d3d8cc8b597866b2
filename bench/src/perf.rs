//! perf, attached to processes and told when to begin and to end, so that nothing before or after is in what it says.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use hauberk_lab::{Signal, wait_for};
use nix::{libc::O_NONBLOCK, sys::signal::kill, unistd::Pid};

/// How long perf may take to attach or to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A perf that watches. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct Perf {
    perf: Child,
    control: File,
    acknowledged: File,
    dir: PathBuf,
}

impl Perf {
    /// Runs perf with `args` and `--output`; it watches `pids` and their threads from now on.
    pub(crate) fn start(args: &[&str], pids: &[u32], output: &OsStr) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("hauberk-bench-perf-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let [control, acknowledged] = ["control", "ack"].map(|name| dir.join(name));
        let made = Command::new("mkfifo").args([&control, &acknowledged]).status().context("cannot run mkfifo")?;
        ensure!(made.success(), "mkfifo: {made}");
        // Open for reading and writing, so that neither open waits for perf.
        let open = |path| File::options().read(true).write(true).custom_flags(O_NONBLOCK).open(path);
        let (control_file, acknowledged_file) = (open(&control)?, open(&acknowledged)?);
        let pids: Vec<_> = pids.iter().map(ToString::to_string).collect();
        let perf = Command::new("perf")
            .args(args)
            .args(["--delay=-1", "--pid", &pids.join(",")])
            .arg(format!("--control=fifo:{},{}", control.display(), acknowledged.display()))
            .arg("--output")
            .arg(output)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run perf: install linux-perf (make setup)")?;
        let mut perf = Self { perf, control: control_file, acknowledged: acknowledged_file, dir };
        perf.tell("enable")?;
        Ok(perf)
    }

    /// Ends the watch; the output is whole then.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.tell("disable")?;
        kill(Pid::from_raw(self.perf.id().cast_signed()), Signal::SIGINT)?;
        self.perf.wait()?;
        Ok(())
    }

    /// Has perf do `what`, and waits until it has.
    fn tell(&mut self, what: &str) -> Result<()> {
        self.control.write_all(format!("{what}\n").as_bytes())?;
        let mut answer = String::new();
        wait_for(&format!("perf does {what:?}"), PATIENCE, || {
            if let Some(status) = self.perf.try_wait()? {
                bail!("perf ended: {status}: may it watch here, and does this kernel have tracefs?");
            }
            let mut bytes = [0; 16];
            match self.acknowledged.read(&mut bytes) {
                Ok(count) => answer += &String::from_utf8_lossy(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            Ok(if answer.contains("ack\n") { Ok(()) } else { Err(format!("{answer:?}")) })
        })
    }
}

impl Drop for Perf {
    fn drop(&mut self) {
        // It has ended already, or nobody wants what it saw any more.
        let _ = self.perf.kill();
        let _ = self.perf.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
