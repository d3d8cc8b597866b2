//! The applications of the demo: nginx, Redis and sshd as Debian packages them, as an ordinary user, with all their
//! files in the pod's directory; and the clients that talk to them.

use std::{fs, net::IpAddr, os::unix::fs::chown, path::PathBuf};

use anyhow::{Context, Result, ensure};
use hauberk_lab::{Pod, Process};

/// Debian's `nobody`: applications need no rights.
const USER: u32 = 65534;
/// Seconds that a client may take.
const PATIENCE: &str = "10";

/// nginx, answering on each port with the text beside it.
pub(crate) fn nginx(pod: &Pod, answers: &[(u16, &str)]) -> Result<Process> {
    let dir = directory(pod)?;
    let server = |(port, text): &(u16, &str)| {
        format!("  server {{ listen {port}; default_type text/plain; return 200 \"{text}\\n\"; }}\n")
    };
    let temporary = |kind: &str| format!("  {kind}_temp_path tmp-{kind};\n");
    let config = format!(
        "daemon off;\nworker_processes 1;\npid nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n  access_log off;\n{}{}}}\n",
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(temporary).concat(),
        answers.iter().map(server).collect::<String>(),
    );
    fs::write(dir.join("nginx.conf"), config)?;
    let mut command = pod.command_as(USER, "nginx");
    command.arg("-p").arg(&dir).args(["-e", "stderr", "-c"]).arg(dir.join("nginx.conf"));
    let process = pod.spawn("nginx", &mut command)?;
    for (port, _) in answers {
        pod.wait_listening(*port, &process)?;
    }
    Ok(process)
}

/// Redis, without persistence.
pub(crate) fn redis(pod: &Pod, port: u16) -> Result<Process> {
    let mut command = pod.command_as(USER, "redis-server");
    command.args(["--port", &port.to_string(), "--bind", "*", "--protected-mode", "no", "--save", "", "--dir"]);
    let process = pod.spawn("redis", command.arg(directory(pod)?))?;
    pod.wait_listening(port, &process)?;
    Ok(process)
}

/// sshd, which greets with `text` before the client has said anything.
pub(crate) fn sshd(pod: &Pod, port: u16, text: &str) -> Result<Process> {
    let dir = directory(pod)?;
    let key = dir.join("host_key");
    let args = ["-q", "-t", "ed25519", "-N", "", "-f"].map(PathBuf::from);
    pod.run("ssh-keygen", args.iter().chain([&key]))?;
    chown(&key, Some(USER), Some(USER))?;
    let config = format!("Port {port}\nHostKey {}\nPidFile none\nUsePAM no\nVersionAddendum {text}\n", key.display());
    fs::write(dir.join("sshd_config"), config)?;
    // It starts itself again for each connection, so it wants its whole path.
    let mut command = pod.command_as(USER, "/usr/sbin/sshd");
    let process = pod.spawn("sshd", command.args(["-D", "-e", "-f"]).arg(dir.join("sshd_config")))?;
    pod.wait_listening(port, &process)?;
    Ok(process)
}

/// GETs `url` with curl; the answer.
pub(crate) fn curl(pod: &Pod, url: &str) -> Result<String> {
    pod.run("curl", ["--silent", "--show-error", "--fail", "--max-time", PATIENCE, url])
}

/// Sets a key of Redis to `value` and reads it back.
pub(crate) fn set_and_get(pod: &Pod, ip: IpAddr, port: u16, value: &str) -> Result<()> {
    let (ip, port) = (ip.to_string(), port.to_string());
    let redis =
        |words: &[&str]| pod.run("timeout", [&[PATIENCE, "redis-cli", "-h", &ip, "-p", &port][..], words].concat());
    redis(&["SET", "demo", value])?;
    let answer = redis(&["GET", "demo"])?;
    ensure!(answer.trim() == value, "redis answered {answer:?}");
    Ok(())
}

/// Asks an SSH server for its host key; fails unless it greets with `text`.
pub(crate) fn scan_ssh(pod: &Pod, ip: IpAddr, port: u16, text: &str) -> Result<()> {
    let mut command = pod.command("ssh-keyscan");
    let output =
        command.args(["-t", "ed25519", "-T", PATIENCE, "-p", &port.to_string()]).arg(ip.to_string()).output()?;
    let greeting = String::from_utf8_lossy(&output.stderr);
    let key = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && key.contains("ssh-ed25519"), "ssh-keyscan got no key: {greeting}");
    ensure!(greeting.contains(text), "another greeting than {text:?}: {greeting}");
    Ok(())
}

/// A directory in the pod's that the applications may write to.
fn directory(pod: &Pod) -> Result<PathBuf> {
    let dir = pod.dir().join("app");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    chown(&dir, Some(USER), Some(USER))?;
    Ok(dir)
}
