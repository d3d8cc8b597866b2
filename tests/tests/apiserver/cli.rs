//! `hauberk` and `kubectl` as people run them, one piped into the other.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    thread,
};

use hauberk_e2e::ControlPlane;

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) ok: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// What it printed; it must have gone well.
    pub(crate) fn printed(self) -> String {
        assert!(self.ok, "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    /// What it said; it must have failed, and printed nothing that a pipe could take for manifests.
    pub(crate) fn refused(self) -> String {
        assert!(!self.ok && self.stdout.is_empty(), "{}{}", self.stdout, self.stderr);
        self.stderr
    }
}

/// Networks for clusters that have no nodes to find them by.
pub(crate) const NETWORKS: &str = "--networks=10.244.0.0/16,10.96.0.0/16";

/// `hauberk …` with a kubeconfig.
pub(crate) fn hauberk(plane: &ControlPlane, args: &[&str]) -> Ran {
    hauberk_reads(plane, args, "")
}

/// The same, with standard input.
pub(crate) fn hauberk_reads(plane: &ControlPlane, args: &[&str], input: &str) -> Ran {
    let mut command = Command::new(hauberk_lab::find_binary("hauberk").expect("it is built"));
    command.env_clear().env("KUBECONFIG", plane.kubeconfig()).args(args);
    run(command, input)
}

/// `kubectl …`, with standard input.
pub(crate) fn kubectl(plane: &ControlPlane, args: &[&str], input: &str) -> Ran {
    let mut command = plane.kubectl().expect("it is built");
    command.args(args);
    run(command, input)
}

fn run(mut command: Command, input: &str) -> Ran {
    let streams = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = streams.spawn().expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    thread::scope(|scope| {
        // Whoever does not read to the end closes the pipe.
        scope.spawn(move || drop(stdin.write_all(input.as_bytes())));
        let output = child.wait_with_output().expect("it ends");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Ran { ok: output.status.success(), stdout: text(output.stdout), stderr: text(output.stderr) }
    })
}
