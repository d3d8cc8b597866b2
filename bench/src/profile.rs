//! Where our proxies spend their time under a load: perf's samples of both, as text to read.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, ensure};

use crate::perf::Perf;

/// Samples a second and thread. Not a divisor of what timers tick at.
const FREQUENCY: &str = "997";
/// Each report, and how perf is to make it: by function, and with what it was called from.
const REPORTS: [(&str, [&str; 2]); 2] = [
    ("functions", ["--no-children", "--call-graph=none"]),
    ("callers", ["--children", "--call-graph=caller,0.5,callee,function,percent"]),
];

/// Samples `pids` while `work` runs; the samples, and the reports of them, are in `dir` under `name`. The CPU clock is
/// the event: virtual machines often have no other.
pub(crate) fn take(pids: &[u32], dir: &Path, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    fs::create_dir_all(dir)?;
    let data = dir.join(format!("{name}.data"));
    let record = ["record", "--quiet", "--event=cpu-clock", "--freq", FREQUENCY, "-g"];
    let perf = Perf::start(&record, pids, data.as_os_str())?;
    work()?;
    perf.stop()?;
    // While the processes live: perf reads their symbols.
    for (kind, how) in REPORTS {
        let mut report = Command::new("perf");
        report.args(["report", "--stdio", "--percent-limit=0.4", "--sort=pid,dso,symbol"]).args(how);
        let report = report.arg("--input").arg(&data).output()?;
        ensure!(report.status.success(), "perf report: {}", String::from_utf8_lossy(&report.stderr));
        fs::write(data.with_extension(format!("{kind}.txt")), report.stdout)?;
    }
    Ok(())
}
