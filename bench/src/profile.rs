//! Where our proxies spend their time under a load: perf's samples of both, as text to read.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use hauberk_lab::Signal;
use nix::{sys::signal::kill, unistd::Pid};

/// Samples a second and thread. Not a divisor of what timers tick at.
const FREQUENCY: &str = "997";

/// Samples that are being taken.
#[derive(Debug)]
pub(crate) struct Profile {
    perf: Child,
    data: std::path::PathBuf,
}

impl Profile {
    /// Samples `pids` from now on. The CPU clock is the event: virtual machines often have no other.
    pub(crate) fn start(pids: &[u32], dir: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let data = dir.join(format!("{name}.data"));
        let pids: Vec<_> = pids.iter().map(ToString::to_string).collect();
        let perf = Command::new("perf")
            .args(["record", "--quiet", "--event=cpu-clock", "--freq", FREQUENCY, "-g", "--pid", &pids.join(",")])
            .arg("--output")
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run perf: install linux-perf (make setup)")?;
        Ok(Self { perf, data })
    }

    /// Ends, and writes what was seen beside the samples: by function, and by caller. While the processes live: perf
    /// reads their symbols.
    pub(crate) fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.perf.id().cast_signed()), Signal::SIGINT)?;
        self.perf.wait()?;
        for (kind, how) in [("functions", "--no-children"), ("callers", "--children")] {
            let graph = if kind == "functions" { "none" } else { "caller,0.5,callee,function,percent" };
            let report = Command::new("perf")
                .args([
                    "report",
                    "--stdio",
                    how,
                    "--percent-limit=0.4",
                    "--sort=comm,dso,symbol",
                    "--call-graph",
                    graph,
                ])
                .arg("--input")
                .arg(&self.data)
                .stdin(Stdio::null())
                .output()?;
            ensure!(report.status.success(), "perf report: {}", String::from_utf8_lossy(&report.stderr));
            fs::write(self.data.with_extension(format!("{kind}.txt")), report.stdout)?;
        }
        Ok(())
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        // It has ended already, or nobody wants its samples any more.
        let _ = self.perf.kill();
        let _ = self.perf.wait();
    }
}
