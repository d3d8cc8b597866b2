//! The redirection in real network namespaces, with real connections: what each backend redirects, what it lets pass,
//! that twice is once, that cleanup takes all and only ours, and that what is missing is named.

mod bypassed;
mod failures;
mod netns;
mod redirects;
mod routes;
mod rules;

use std::process::{Command, Output};

use netns::Netns;

const BACKENDS: [&str; 3] = ["nft", "iptables-nft", "iptables-legacy"];

fn init(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hauberk-proxy"));
    command.arg("init").args(args);
    command
}

/// Runs `hauberk-proxy init` in `netns`; it must succeed. What it prints.
fn run(netns: &Netns, args: &[&str]) -> String {
    let output = netns.output(&mut init(args));
    assert!(output.status.success(), "init {args:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).expect("text")
}

/// Runs `command`, which must fail. What it says on stderr.
fn fails(netns: &Netns, command: &mut Command) -> String {
    let output = netns.output(command);
    assert!(!output.status.success(), "it should have failed: {}", String::from_utf8_lossy(&output.stdout));
    stderr(&output)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every rule of `netns`, as the tools of all backends show it, without counters and without the empty chains that
/// iptables makes by being looked at.
fn snapshot(netns: &Netns) -> String {
    netns.sh(r"{ nft list ruleset
        for tool in iptables ip6tables; do
            { $tool-nft-save
            if grep -qs . /proc/thread-self/net/${tool/tables/_tables}_names; then $tool-legacy-save; fi
            } | awk -v tool=$tool '/^\*/ { table = $0; next } !/^COMMIT|^#|^:[A-Z]+ ACCEPT/ { print tool, table, $0 }'
        done; } | sed -E -e '/^#/d' -e 's/\[[0-9]+:[0-9]+\]//' -e 's/packets [0-9]+ bytes [0-9]+//'")
}

/// Whether ip6tables has all that the rules need. Asked without the code under test.
fn ip6tables_works(backend: &str) -> bool {
    let script = format!(
        "printf '*nat\\n-A OUTPUT -p tcp -m owner --uid-owner 1 -j REDIRECT --to-ports 1\\nCOMMIT\\n' |
         ip6tables-{}-restore",
        backend.trim_start_matches("iptables-")
    );
    Netns::new().output(Command::new("bash").args(["-c", &script])).status.success()
}
