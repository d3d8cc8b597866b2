//! What the kernel says of a process: its CPU time, its memory, the memory of its control group.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail};

/// CPU time of all threads of `pids` so far, in user space and in the kernel. From `schedstat`, which counts in
/// nanoseconds where `stat` counts in ticks of 10 ms; it is the same clock.
pub(crate) fn cpu(pids: &[u32]) -> Result<Duration> {
    let mut nanos = 0;
    for pid in pids {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} has ended"))?;
        for thread in threads {
            let path = thread?.path().join("schedstat");
            // A thread may end meanwhile; the ones that count do not.
            let Ok(text) = fs::read_to_string(&path) else { continue };
            nanos += run_nanos(&text).with_context(|| format!("{}: {text:?}", path.display()))?;
        }
    }
    Ok(Duration::from_nanos(nanos))
}

fn run_nanos(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().next()?.parse().ok()
}

/// Resident anonymous memory of `pid`, bytes.
pub(crate) fn anonymous(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("process {pid} has ended"))?;
    match status.lines().find_map(|line| line.strip_prefix("RssAnon:")).and_then(kilobytes) {
        Some(kilobytes) => Ok(kilobytes * 1024),
        None => bail!("{path} has no RssAnon"),
    }
}

fn kilobytes(text: &str) -> Option<u64> {
    text.trim().strip_suffix(" kB")?.parse().ok()
}

/// `pid` and everything that it started.
pub(crate) fn with_children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    std::iter::once(pid).chain(children.flat_map(with_children)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        assert_eq!(run_nanos("1499430 38770656 2\n"), Some(1_499_430));
        assert_eq!(kilobytes("\t    1234 kB"), Some(1234));
        let own = std::process::id();
        assert!(anonymous(own).expect("this process has memory") > 0);
        assert!(cpu(&[own]).expect("this process runs") > Duration::ZERO);
        assert!(with_children(own).contains(&own));
    }
}
