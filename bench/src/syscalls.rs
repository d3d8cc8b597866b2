//! Counts system calls of processes with perf's tracepoint, which slows them far less than strace.

use std::fs;

use anyhow::{Context, Result};

use crate::perf::Perf;

const EVENT: &str = "raw_syscalls:sys_enter";

/// Calls of `pids` and their threads while `work` runs, and what it returns.
pub(crate) fn count<T>(pids: &[u32], work: impl FnOnce() -> Result<T>) -> Result<(u64, T)> {
    let path = std::env::temp_dir().join(format!("hauberk-bench-syscalls-{}", std::process::id()));
    let perf = Perf::start(&["stat", "--field-separator=,", "--event", EVENT], pids, path.as_os_str())?;
    let done = work()?;
    perf.stop()?;
    let text = fs::read_to_string(&path)?;
    fs::remove_file(&path)?;
    Ok((parse(&text).with_context(|| format!("perf has no count of {EVENT}: {text:?}"))?, done))
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
