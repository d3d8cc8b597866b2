//! Congestion control of the pods' namespaces. The machine decides which algorithms a namespace may choose: where the
//! wanted one is not among them it is allowed for as long as pods are made, and what was set before comes back.

use std::fs;

use anyhow::{Context, Result, ensure};

const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
const AVAILABLE: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";
/// What a namespace is given.
pub(crate) const SYSCTL: &str = "net.ipv4.tcp_congestion_control";

/// While it lives, namespaces may choose the algorithm.
#[derive(Debug)]
pub(crate) struct Allowed {
    before: Option<String>,
}

impl Allowed {
    /// Says on stderr that something will have to be allowed; an error if the kernel does not have it.
    pub(crate) fn announce(wanted: &str) -> Result<()> {
        if Self::new(wanted)?.before.is_some() {
            eprintln!("note: namespaces may not choose {wanted} here: it is allowed each time that pods are made");
        }
        Ok(())
    }

    pub(crate) fn new(wanted: &str) -> Result<Self> {
        let has = |path| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        let (available, allowed) = (has(AVAILABLE)?, has(ALLOWED)?);
        ensure!(
            lists(&available, wanted),
            "this kernel has no congestion control {wanted:?}: it has {}: name one of them with --congestion",
            available.trim()
        );
        if lists(&allowed, wanted) {
            return Ok(Self { before: None });
        }
        let wider = format!("{} {wanted}", allowed.trim());
        fs::write(ALLOWED, wider).with_context(|| format!("cannot write {ALLOWED}"))?;
        Ok(Self { before: Some(allowed) })
    }
}

impl Drop for Allowed {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = fs::write(ALLOWED, before)
        {
            eprintln!("cannot restore {ALLOWED} to {before:?}: {error}");
        }
    }
}

fn lists(names: &str, name: &str) -> bool {
    names.split_whitespace().any(|listed| listed == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_listed_whole() {
        assert!(lists("reno bbr cubic\n", "cubic"));
        assert!(!lists("reno bbr2\n", "bbr"));
    }
}
