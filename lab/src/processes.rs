//! Processes with a directory for their logs and files, that end together: with their handle, or with the program.

use std::{
    fs::{self, File, Permissions},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Command,
    sync::{Arc, Mutex, MutexGuard},
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{Process, process::Shared, spawner::Spawner};

/// Processes that end with this handle, at the latest with the program, however it ends. Dropped in a panic, it prints
/// what became of each. Needs root.
#[derive(Debug)]
pub struct Processes {
    spawner: Spawner,
    started: Mutex<Vec<Arc<Shared>>>,
    dir: TempDir,
}

impl Processes {
    /// None yet; their directory's name begins with `prefix`.
    pub fn new(prefix: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(prefix).tempdir()?;
        // Some run as users of their own and have their files here.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        Ok(Self { spawner: Spawner::new()?, started: Mutex::default(), dir })
    }

    /// Where their logs are, and whatever else they need. Gone with this handle; everybody may read it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts `command` with its output in `<name>.log`. Takes what is in `command`, which is useless afterwards:
    /// so calls read like those of `Command::spawn`.
    pub fn spawn(&self, name: &str, command: &mut Command) -> Result<Process> {
        let path = self.dir().join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(&path)?;
        // A group of its own: Ctrl-C at a terminal is for the owner, who ends them in order.
        command.stderr(log.try_clone()?).stdout(log).process_group(0);
        let command = std::mem::replace(command, Command::new("false"));
        let child = self.spawner.spawn(command).with_context(|| format!("cannot start {name}"))?;
        let process = Process::watch(name.to_owned(), child, path);
        self.started().push(process.shared().clone());
        Ok(process)
    }

    /// Kills all, and what they started; waits until they are gone. In a panic, first says how each was.
    pub fn end(&self) {
        let started = std::mem::take(&mut *self.started());
        if std::thread::panicking() {
            for process in started {
                eprintln!("{}", process.report());
            }
        }
        self.spawner.end();
    }

    fn started(&self) -> MutexGuard<'_, Vec<Arc<Shared>>> {
        self.started.lock().expect("no one panics with the lock held")
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.end();
    }
}
