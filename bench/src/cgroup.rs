//! A control group for each proxy: the kernel's own sum of all memory that it has for its processes, theirs and the
//! kernel's for them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// A group with processes in it. Dropped, they go back to the parent and the group is removed.
#[derive(Debug)]
pub(crate) struct Cgroup {
    dir: PathBuf,
    usage: &'static str,
}

impl Cgroup {
    /// A group of that name (unique in this process) for `pids`. What they hold already is not counted in it.
    pub(crate) fn new(name: &str, pids: &[u32]) -> Result<Self> {
        let (root, usage) = hierarchy()?;
        let dir = root.join(format!("hauberk-bench-{}-{name}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("cannot make the control group {}", dir.display()))?;
        let group = Self { dir, usage };
        enter(&group.dir, pids)?;
        Ok(group)
    }

    /// Bytes.
    pub(crate) fn usage(&self) -> Result<u64> {
        let path = self.dir.join(self.usage);
        let text = fs::read_to_string(&path)?;
        text.trim().parse().with_context(|| format!("{}: {text:?}", path.display()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let pids = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        let pids: Vec<u32> = pids.lines().filter_map(|pid| pid.parse().ok()).collect();
        if let Some(parent) = self.dir.parent() {
            // Some may have ended meanwhile; then they are not in the way.
            let _ = enter(parent, &pids);
        }
        if let Err(error) = fs::remove_dir(&self.dir) {
            eprintln!("cannot remove {}: {error}", self.dir.display());
        }
    }
}

fn enter(dir: &Path, pids: &[u32]) -> Result<()> {
    let procs = dir.join("cgroup.procs");
    pids.iter().try_for_each(|pid| fs::write(&procs, pid.to_string())).with_context(|| procs.display().to_string())
}

/// Where the memory controller is, of version 2 or 1, and its file of bytes used.
fn hierarchy() -> Result<(&'static Path, &'static str)> {
    let (unified, own) = (Path::new("/sys/fs/cgroup"), Path::new("/sys/fs/cgroup/memory"));
    if own.join("memory.usage_in_bytes").is_file() {
        return Ok((own, "memory.usage_in_bytes"));
    }
    let controllers = fs::read_to_string(unified.join("cgroup.subtree_control")).unwrap_or_default();
    if controllers.split_whitespace().any(|controller| controller == "memory") {
        return Ok((unified, "memory.current"));
    }
    bail!("no control groups with the memory controller at {}", unified.display())
}
