//! MariaDB, Debian's: a real server that speaks first.

use std::{fs, os::unix::fs::chown};

use anyhow::{Result, ensure};
use hauberk_lab::{Pod, Process};

/// Where it listens.
pub(super) const PORT: u16 = 3306;
/// Debian's `nobody`.
const USER: u32 = 65534;

/// Starts it in `pod`, with an empty database.
pub(super) fn start(pod: &Pod) -> Result<Process> {
    let dir = pod.dir().join("mariadb");
    fs::create_dir_all(&dir)?;
    chown(&dir, Some(USER), Some(USER))?;
    let dir = dir.display();
    let data = format!("--datadir={dir}/data");
    let mut install = pod.command_as(USER, "mariadb-install-db");
    let made = install.args(["--no-defaults", &data, "--skip-test-db"]).output()?;
    ensure!(made.status.success(), "mariadb-install-db: {}", String::from_utf8_lossy(&made.stderr));
    let mut server = pod.command_as(USER, "mariadbd");
    // Clients here leave without a word, which it counts as errors of theirs.
    server.args(["--no-defaults", "--bind-address=*", "--skip-name-resolve", "--max-connect-errors=4294967295", &data]);
    server.args([format!("--port={PORT}"), format!("--socket={dir}/socket"), format!("--pid-file={dir}/pid")]);
    let process = pod.spawn("mariadb", &mut server)?;
    pod.wait_listening(PORT, &process)?;
    Ok(process)
}
