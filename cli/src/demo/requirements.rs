//! What a machine must have for the demo. All that is missing is said at once.

use std::path::Path;

use anyhow::{Result, bail};

/// Programs, and the Debian packages that have them.
const PROGRAMS: [(&str, &str); 12] = [
    ("curl", "curl"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("nginx", "nginx-light"),
    ("nsenter", "util-linux"),
    ("redis-cli", "redis-tools"),
    ("redis-server", "redis-server"),
    ("setpriv", "util-linux"),
    ("ssh-keygen", "openssh-client"),
    ("ssh-keyscan", "openssh-client"),
    ("sshd", "openssh-server"),
    ("tcpdump", "tcpdump"),
];
const DIRECTORIES: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
const BINARIES: [&str; 3] = ["hauberk-identity", "hauberk-destination", "hauberk-proxy"];

/// Fails with everything that is missing, and the remedies.
pub(crate) fn check() -> Result<()> {
    let installed = |program: &str| DIRECTORIES.iter().any(|dir| Path::new(dir).join(program).is_file());
    let root = std::fs::metadata("/proc/self").is_ok_and(|this| std::os::unix::fs::MetadataExt::uid(&this) == 0);
    let wants = missing(root, installed, |binary| hauberk_lab::find_binary(binary).is_ok());
    if !wants.is_empty() {
        bail!("the demo cannot run on this machine:\n{}", wants.join("\n"));
    }
    Ok(())
}

/// One line for each kind of thing that is missing.
fn missing(root: bool, installed: impl Fn(&str) -> bool, built: impl Fn(&str) -> bool) -> Vec<String> {
    let mut lines = Vec::new();
    if !root {
        lines.push("- it makes network namespaces, which needs root: run it with sudo".to_owned());
    }
    let programs: Vec<_> = PROGRAMS.iter().filter(|(program, _)| !installed(program)).collect();
    if !programs.is_empty() {
        let names: Vec<_> =
            programs.iter().map(|(program, package)| format!("{program} (package {package})")).collect();
        lines.push(format!("- missing programs: {}: run `make setup`", names.join(", ")));
    }
    let binaries: Vec<_> = BINARIES.into_iter().filter(|binary| !built(binary)).collect();
    if !binaries.is_empty() {
        lines.push(format!("- missing binaries beside this one: {}: run `make build`", binaries.join(", ")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_all_that_is_missing_and_the_remedies() {
        assert_eq!(missing(true, |_| true, |_| true), [""; 0]);
        assert_eq!(
            missing(false, |program| !["nginx", "sshd"].contains(&program), |binary| binary != "hauberk-proxy"),
            [
                "- it makes network namespaces, which needs root: run it with sudo",
                "- missing programs: nginx (package nginx-light), sshd (package openssh-server): run `make setup`",
                "- missing binaries beside this one: hauberk-proxy: run `make build`",
            ]
        );
    }
}
