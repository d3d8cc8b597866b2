//! Counts system calls of processes with perf's tracepoint, which slows them far less than strace.

use std::{
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

const EVENT: &str = "raw_syscalls:sys_enter";
/// How long perf may take to attach or to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A count that runs. Dropped, perf ends.
#[derive(Debug)]
pub(crate) struct Counter {
    perf: Child,
    control: File,
    acknowledged: File,
    dir: PathBuf,
}

impl Counter {
    /// Counts what `pids` and their threads call from now on.
    pub(crate) fn start(pids: &[u32]) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("hauberk-bench-perf-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let [control, acknowledged] = ["control", "ack"].map(|name| dir.join(name));
        let made = Command::new("mkfifo").args([&control, &acknowledged]).status().context("cannot run mkfifo")?;
        ensure!(made.success(), "mkfifo: {made}");
        let pids: Vec<_> = pids.iter().map(ToString::to_string).collect();
        let perf = Command::new("perf")
            .args(["stat", "--delay=-1", "--field-separator=,", "--event", EVENT, "--pid", &pids.join(",")])
            .arg(format!("--control=fifo:{},{}", control.display(), acknowledged.display()))
            .arg("--output")
            .arg(dir.join("counts"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run perf: install linux-perf (make setup)")?;
        // Open for reading and writing, so that neither open waits for perf.
        let open = |path| File::options().read(true).write(true).custom_flags(O_NONBLOCK).open(path);
        let mut counter = Self { perf, control: open(&control)?, acknowledged: open(&acknowledged)?, dir };
        counter.tell("enable")?;
        Ok(counter)
    }

    /// The count so far, and the end of counting.
    pub(crate) fn stop(mut self) -> Result<u64> {
        self.tell("disable")?;
        kill(Pid::from_raw(self.perf.id().cast_signed()), Signal::SIGINT)?;
        let status = self.perf.wait()?;
        let text = fs::read_to_string(self.dir.join("counts"))?;
        parse(&text).with_context(|| format!("perf ({status}) has no count of {EVENT}: {text:?}"))
    }

    /// Has perf do `what`, and waits until it has.
    fn tell(&mut self, what: &str) -> Result<()> {
        self.control.write_all(format!("{what}\n").as_bytes())?;
        let mut answer = String::new();
        wait_for(&format!("perf does {what:?}"), PATIENCE, || {
            if let Some(status) = self.perf.try_wait()? {
                bail!("perf ended: {status}: does this kernel have the tracepoint {EVENT} (tracefs)?");
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

impl Drop for Counter {
    fn drop(&mut self) {
        // It has ended already, or nobody wants its count any more.
        let _ = self.perf.kill();
        let _ = self.perf.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// `count,unit,event,…`
fn parse(text: &str) -> Option<u64> {
    let counted = |line: &str| line.contains(EVENT).then(|| line.split(',').next()?.parse().ok()).flatten();
    let counts: Vec<u64> = text.lines().filter_map(counted).collect();
    (!counts.is_empty()).then(|| counts.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_perf_writes() {
        let text = "# started on Sun Nov 22 10:00:00 2026\n\n12345,,raw_syscalls:sys_enter,1000,100.00,,\n";
        assert_eq!(parse(text), Some(12345));
        assert_eq!(parse("<not counted>,,raw_syscalls:sys_enter,0,100.00,,\n"), None);
    }
}
