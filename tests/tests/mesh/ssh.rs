//! SSH through the mesh: the server speaks first; a command is run.

use std::{any::Any, fs, net::SocketAddr, path::Path};

use hauberk_lab::Pod;

use crate::applications::{Application, USER, directory, give, listening, run, show_alone};

/// A name that no machine has for a user of its own, locked or without a shell.
const LOGIN: &str = "visitor";
const GREETING: &str = "a-greeting-of-ssh-1b7a";

pub(crate) const SSH: Application =
    Application { name: "ssh", port: 2222, start, talk, connections: 1, markers: &[GREETING] };

#[test]
fn a_command_runs_over_ssh_through_the_mesh() {
    show_alone(&SSH);
}

/// sshd without any rights. In its view of the machine there is one user, who has its uid and a shell, and gets in by
/// the pod's own key.
fn start(pod: &Pod, port: u16) -> Vec<Box<dyn Any>> {
    let dir = directory(pod);
    let [host_key, user_key, passwd, config] = ["host", "user", "passwd", "config"].map(|name| dir.join(name));
    for key in [&host_key, &user_key] {
        run(pod, &["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", text(key)]);
    }
    give(&host_key);
    fs::write(&passwd, format!("{LOGIN}:x:{USER}:{USER}::/:/bin/sh\n")).expect("the pod's directory is writable");
    let settings = format!(
        "Port {port}\nHostKey {}\nAuthorizedKeysFile {}.pub\nPidFile none\nUsePAM no\nStrictModes no\n\
         PasswordAuthentication no\nVersionAddendum {GREETING}\n",
        text(&host_key),
        text(&user_key),
    );
    fs::write(&config, settings).expect("the pod's directory is writable");
    let script = "mount --bind \"$1\" /etc/passwd
        exec setpriv --reuid=$2 --regid=$2 --clear-groups /usr/sbin/sshd -D -e -f \"$3\"";
    let mut command = pod.command("unshare");
    command.args(["--mount", "sh", "-ec", script, "sh", text(&passwd), &USER.to_string(), text(&config)]);
    let sshd = pod.spawn("sshd", &mut command).expect("sshd starts");
    vec![Box::new(listening(pod, port, sshd))]
}

/// What the command says shows that it ran there; the host's key, that it was that host.
fn talk(client: &Pod, server: &Pod, at: SocketAddr) {
    let host_key = fs::read_to_string(directory(server).join("host.pub")).expect("it was made");
    let known = client.dir().join("known_hosts");
    fs::write(&known, format!("[{}]:{} {host_key}", at.ip(), at.port())).expect("the pod's directory is writable");
    let known = format!("UserKnownHostsFile={}", text(&known));
    let user_key = directory(server).join("user");
    let options = ["BatchMode=yes", "StrictHostKeyChecking=yes", &known].map(|option| ["-o", option]).concat();
    let (port, user) = (at.port().to_string(), format!("{LOGIN}@{}", at.ip()));
    let command = "echo $((6 * 7)) $SSH_CONNECTION";
    let to = ["-F", "none", "-i", text(&user_key), "-p", &port, &user, command];
    let said = run(client, &[&["ssh"], &options[..], &to].concat());
    assert!(said.starts_with("42 ") && said.ends_with(&format!(" {} {port}\n", at.ip())), "{said}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the lab's paths are ASCII")
}
