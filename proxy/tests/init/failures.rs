//! What is missing is named, with the remedy, and nothing is left half done.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use crate::{
    BACKENDS, fails, init, ip6tables_works,
    netns::{Netns, Pair},
    run, snapshot, stderr,
};

/// A directory for PATH in which the tools of this machine can be replaced or left out.
struct Tools(tempfile::TempDir);

impl Tools {
    /// Those whose name starts with one of `prefixes`.
    fn only(prefixes: &[&str]) -> Self {
        let tools = Self(tempfile::tempdir().expect("a directory"));
        for entry in fs::read_dir("/usr/sbin").expect("/usr/sbin").flatten() {
            let name = entry.file_name().into_string().expect("a name");
            if prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                std::os::unix::fs::symlink(entry.path(), tools.path().join(name)).expect("a link");
            }
        }
        tools
    }

    /// Makes `tool` fail with `message` whenever its input contains `word`.
    fn refusing(self, tool: &str, word: &str, message: &str) -> Self {
        let path = self.path().join(tool);
        let _ = fs::remove_file(&path);
        let script = format!(
            "#!/bin/bash\nPATH=/usr/sbin:/usr/bin\ninput=$(cat)\n\
             if [[ $input == *'{word}'* ]]; then echo '{message}' >&2; exit 2; fi\n\
             exec {tool} \"$@\" <<<\"$input\"\n"
        );
        fs::write(&path, script).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a script");
        self
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn init(&self, args: &[&str]) -> Command {
        let mut command = init(args);
        command.env("PATH", self.path());
        command
    }
}

const ALL_TOOLS: [&str; 3] = ["nft", "iptables", "ip6tables"];

fn without_capability(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args([format!("--bounding-set=-{name}"), format!("--inh-caps=-{name}")]);
    command.arg(env!("CARGO_BIN_EXE_hauberk-proxy")).arg("init").args(args);
    command
}

#[test]
fn a_missing_capability_is_named_and_nothing_changes() {
    let netns = Netns::new();
    let before = snapshot(&netns);
    for backend in BACKENDS.into_iter().chain(["auto"]) {
        let error = fails(&netns, &mut without_capability("net_admin", &["--backend", backend]));
        assert!(error.contains("the capability NET_ADMIN is missing: add it to the init container"), "{error}");
    }
    let error = fails(&netns, &mut without_capability("net_admin", &["--cleanup"]));
    assert!(error.contains("NET_ADMIN"), "{error}");
    let error = fails(&netns, &mut without_capability("net_raw", &["--backend", "iptables-legacy"]));
    assert!(error.contains("the capability NET_RAW is missing"), "{error}");
    assert_eq!(snapshot(&netns), before);
}

#[test]
fn nft_needs_no_other_capability() {
    let pair = Pair::dual_stack();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all,+net_admin", "--inh-caps=-all", "--no-new-privs"]);
    command.arg(env!("CARGO_BIN_EXE_hauberk-proxy")).arg("init");
    let output = pair.pod.output(&mut command);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn a_missing_piece_of_the_kernel_is_named_with_its_module() {
    let no_file = "Error: Could not process rule: No such file or directory";
    let no_module = "Extension owner revision 0 not supported, missing kernel module?";
    for (backend, tool, word, message, expected) in [
        (
            "nft",
            "nft",
            "redirect",
            no_file,
            "IPv4 and IPv6: the kernel refuses the redirect statement: load its module nft_redir",
        ),
        (
            "nft",
            "nft",
            "type nat",
            no_file,
            "the kernel refuses NAT chains of the family inet: load its module nft_chain_nat",
        ),
        (
            "iptables-nft",
            "iptables-nft-restore",
            "owner",
            no_module,
            "IPv4: the kernel refuses the owner match: load its module xt_owner",
        ),
        (
            "iptables-legacy",
            "iptables-legacy-restore",
            "REDIRECT",
            no_module,
            "IPv4: the kernel refuses the REDIRECT target: load its module xt_REDIRECT",
        ),
    ] {
        let netns = Netns::new();
        let before = snapshot(&netns);
        let tools = Tools::only(&ALL_TOOLS).refusing(tool, word, message);
        let error = fails(&netns, &mut tools.init(&["--backend", backend]));
        assert!(error.contains(expected) && error.contains(message), "{error}");
        assert_eq!(snapshot(&netns), before);
    }
}

#[test]
fn an_ipv6_address_without_rules_fails_naming_ipv6_and_loads_nothing() {
    for (backend, tool) in [("iptables-nft", "ip6tables-nft-restore"), ("iptables-legacy", "ip6tables-legacy-restore")]
    {
        let pair = Pair::dual_stack();
        let tools = Tools::only(&ALL_TOOLS).refusing(tool, "REDIRECT", "missing kernel module?");
        let error = fails(&pair.pod, &mut tools.init(&["--backend", backend]));
        assert!(
            error.contains(&format!("the pod has the IPv6 address fd77::2, and {backend} cannot redirect IPv6")),
            "{error}"
        );
        assert!(error.contains("use --backend nft"), "{error}");
        assert!(!snapshot(&pair.pod).contains("HAUBERK"), "{backend}");
    }
}

#[test]
fn without_an_ipv6_address_that_is_no_reason_to_fail_and_it_is_said() {
    for (backend, tool) in [("iptables-nft", "ip6tables-nft-restore"), ("iptables-legacy", "ip6tables-legacy-restore")]
    {
        let pair = Pair::ipv4_only();
        let tools = Tools::only(&ALL_TOOLS).refusing(tool, "REDIRECT", "missing kernel module?");
        let output = pair.pod.output(&mut tools.init(&["--backend", backend]));
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(
            said.contains("# IPv6 is left out: the pod has no IPv6 address that others can route to, and"),
            "{said}"
        );
        assert!(
            said.contains("missing kernel module?") && said.contains(&format!("is set by {backend} for IPv4:")),
            "{said}"
        );
        assert!(snapshot(&pair.pod).contains("HAUBERK_OUTPUT"), "{backend}");
    }
}

/// Whatever this kernel can do: no backend succeeds and leaves IPv6 open.
#[test]
fn a_pod_with_an_ipv6_address_is_redirected_in_both_families_or_not_at_all() {
    for backend in BACKENDS {
        let pair = Pair::dual_stack();
        if backend == "nft" || ip6tables_works(backend) {
            let said = run(&pair.pod, &["--backend", backend]);
            assert!(said.contains("for IPv4 and IPv6"), "{said}");
        } else {
            let error = fails(&pair.pod, &mut init(&["--backend", backend]));
            assert!(error.contains("the pod has the IPv6 address fd77::2"), "{error}");
        }
    }
}

#[test]
fn auto_goes_on_to_the_next_backend_and_says_why() {
    for (prefixes, taken, reasons) in [
        (
            &["iptables", "ip6tables"][..],
            "iptables-nft",
            &["# not nft: nft is not installed: add the Debian package nftables"][..],
        ),
        (
            &["iptables-legacy", "ip6tables-legacy"],
            "iptables-legacy",
            &["# not nft: nft is not installed", "# not iptables-nft: iptables-nft-save is not installed"],
        ),
    ] {
        let pair = Pair::ipv4_only();
        let output = pair.pod.output(&mut Tools::only(prefixes).init(&[]));
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(said.contains(&format!("# backend: {taken}\n")), "{said}");
        for reason in reasons {
            assert!(said.contains(reason), "{said}");
        }
    }
    let error = fails(&Netns::new(), &mut Tools::only(&[]).init(&[]));
    assert!(error.contains("no backend works; nft: nft is not installed"), "{error}");
}

#[test]
fn a_lock_that_another_holds_is_waited_for_a_while_and_named() {
    let netns = Netns::new();
    let lock = fs::File::create(netns.lock_file()).expect("a file");
    lock.lock().expect("the lock");
    let error = fails(&netns, &mut init(&["--backend", "iptables-legacy"]));
    assert!(error.contains("did not get its lock") && error.contains("set XTABLES_LOCKFILE"), "{error}");
    let mut elsewhere = Command::new("env");
    elsewhere.args(["XTABLES_LOCKFILE=/proc/none", env!("CARGO_BIN_EXE_hauberk-proxy"), "init"]);
    let error = fails(&netns, elsewhere.args(["--backend", "iptables-legacy"]));
    assert!(error.contains("did not get its lock") && error.contains("/proc/none"), "{error}");
    drop(lock);
    run(&netns, &["--backend", "iptables-legacy"]);
}

#[test]
fn cleanup_that_cannot_look_everywhere_removes_the_rest_and_fails() {
    let netns = Netns::new();
    run(&netns, &["--backend", "iptables-nft"]);
    let tools = Tools::only(&ALL_TOOLS).refusing("nft", "", "Error: no.");
    let error = fails(&netns, &mut tools.init(&["--cleanup"]));
    assert!(error.contains("rules of ours may be left where they could not be looked for; nft: "), "{error}");
    assert!(!snapshot(&netns).contains("HAUBERK"));
}
