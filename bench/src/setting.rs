//! What a pass measures under: the pods' congestion control, and whether everything shares one core.

use std::{convert::Infallible, fmt, str::FromStr};

use anyhow::{Context, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// Behind the name of a congestion control.
const ONE_CORE: &str = "-one-core";

/// Written `cubic`, or `cubic-one-core`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) congestion: String,
    pub(crate) one_core: bool,
}

impl FromStr for Setting {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let (congestion, one_core) = text.strip_suffix(ONE_CORE).map_or((text, false), |name| (name, true));
        Ok(Self { congestion: congestion.to_owned(), one_core })
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.congestion)?;
        f.write_str(if self.one_core { ONE_CORE } else { "" })
    }
}

/// While it lives, this thread, and every thread and process that it starts, shares one core.
#[derive(Debug)]
pub(crate) struct OneCore {
    before: CpuSet,
}

impl OneCore {
    /// The first of the cores that this thread may use.
    pub(crate) fn new() -> Result<Self> {
        let before = cores()?;
        let first = (0..CpuSet::count()).find(|core| before.is_set(*core) == Ok(true)).context("no core")?;
        let mut one = CpuSet::new();
        one.set(first)?;
        sched_setaffinity(Pid::from_raw(0), &one).context("cannot stay on one core")?;
        Ok(Self { before })
    }
}

impl Drop for OneCore {
    fn drop(&mut self) {
        if let Err(error) = sched_setaffinity(Pid::from_raw(0), &self.before) {
            eprintln!("cannot use all cores again: {error}");
        }
    }
}

fn cores() -> Result<CpuSet> {
    sched_getaffinity(Pid::from_raw(0)).context("cannot tell which cores there are")
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread};

    use super::*;

    #[test]
    fn a_setting_is_read_as_it_is_written() {
        for (text, congestion, one_core) in [("cubic", "cubic", false), ("bbr-one-core", "bbr", true)] {
            let setting: Setting = text.parse().expect("any text is one");
            assert_eq!(
                (setting.congestion.as_str(), setting.one_core, setting.to_string().as_str()),
                (congestion, one_core, text)
            );
        }
    }

    #[test]
    fn what_is_started_meanwhile_shares_the_core_and_later_all_are_there_again() {
        let count = || {
            let nproc = Command::new("nproc").env_remove("OMP_NUM_THREADS").output().expect("it runs");
            String::from_utf8(nproc.stdout).expect("a number").trim().to_owned()
        };
        let before = cores().expect("some");
        let held = OneCore::new().expect("one of them");
        assert_eq!(count(), "1");
        assert_eq!(thread::spawn(|| thread::available_parallelism().expect("known").get()).join().expect("it ends"), 1);
        drop(held);
        assert_eq!(cores().expect("some"), before);
    }
}
