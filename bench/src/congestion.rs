//! Congestion control of the pods' namespaces. The machine decides which algorithms a namespace may choose: where the
//! wanted one is not among them it is allowed for the run, and what was set before comes back at the end.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
const AVAILABLE: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";
/// What a namespace is given.
pub(crate) const SYSCTL: &str = "net.ipv4.tcp_congestion_control";

/// While it lives, namespaces may choose the algorithm. What was set before comes back when this process ends, however it
/// does.
#[derive(Debug)]
pub(crate) struct Allowed {
    restorer: Option<Child>,
}

impl Allowed {
    /// Says so if the machine's setting has to be changed for it.
    pub(crate) fn new(wanted: &str) -> Result<Self> {
        let available = read(AVAILABLE)?;
        ensure!(
            lists(&available, wanted),
            "this kernel has no congestion control {wanted:?}: it has {}: name one of them with --settings",
            available.trim()
        );
        let before = read(ALLOWED)?;
        if lists(&before, wanted) {
            return Ok(Self { restorer: None });
        }
        eprintln!("note: namespaces may not choose {wanted} on this machine: allowed until the end of the run");
        let restorer = Some(restorer(before.trim())?);
        allow(wanted)?;
        Ok(Self { restorer })
    }
}

impl Drop for Allowed {
    fn drop(&mut self) {
        let Some(restorer) = &mut self.restorer else { return };
        drop(restorer.stdin.take());
        match restorer.wait() {
            Ok(status) if status.success() => {}
            failed => eprintln!("cannot restore {ALLOWED}: {failed:?}"),
        }
    }
}

/// Sets `before` once its input ends, which this process holds. In a session of its own: a terminal that ends this process
/// spares it.
fn restorer(before: &str) -> Result<Child> {
    let script = format!(r#"cat && printf %s "$1" > {ALLOWED}"#);
    let mut command = Command::new("setsid");
    command.args(["sh", "-c", &script, "sh", before]).stdin(Stdio::piped()).stdout(Stdio::null());
    command.spawn().context("setsid does not run")
}

/// Right before a namespace is made: somebody else may have set the machine otherwise meanwhile.
pub(crate) fn allow(wanted: &str) -> Result<()> {
    let allowed = read(ALLOWED)?;
    if lists(&allowed, wanted) {
        return Ok(());
    }
    fs::write(ALLOWED, format!("{} {wanted}", allowed.trim())).with_context(|| format!("cannot write {ALLOWED}"))
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
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
