//! The rules themselves: twice is once, one backend at a time, cleanup takes all and only ours, a dry run changes
//! nothing and shows all.

use crate::{
    BACKENDS,
    netns::{Netns, Pair},
    run, snapshot,
};

const SKIPS: [&str; 3] =
    ["--skip-inbound-ports=22,4000-4010", "--skip-outbound-ports=25", "--skip-subnets=10.0.0.0/8,10.9.0.0/16,fd00::/8"];

fn with(backend: &str, more: &[&'static str]) -> Vec<String> {
    ["--backend", backend].iter().chain(more).map(|arg| (*arg).to_owned()).collect()
}

fn set(netns: &Netns, backend: &str, more: &[&'static str]) -> String {
    run(netns, &with(backend, more).iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn twice_is_once() {
    for backend in BACKENDS.into_iter().chain(["auto"]) {
        let netns = Netns::new();
        set(&netns, backend, &SKIPS);
        let once = snapshot(&netns);
        set(&netns, backend, &SKIPS);
        assert_eq!(snapshot(&netns), once, "{backend}");
        assert!(once.contains("4140"), "{backend}: {once}");
    }
}

#[test]
fn other_settings_replace_those_before() {
    for backend in BACKENDS {
        let (fresh, netns) = (Netns::new(), Netns::new());
        set(&fresh, backend, &SKIPS);
        set(&netns, backend, &["--proxy-uid=7", "--skip-inbound-ports=1-60000", "--skip-subnets=0.0.0.0/0,::/0"]);
        assert_ne!(snapshot(&netns), snapshot(&fresh), "{backend}");
        set(&netns, backend, &SKIPS);
        assert_eq!(snapshot(&netns), snapshot(&fresh), "{backend}");
    }
}

#[test]
fn another_backend_takes_the_place_of_the_one_before() {
    for before in BACKENDS {
        for after in BACKENDS.into_iter().chain(["auto"]) {
            let netns = Netns::new();
            set(&netns, before, &SKIPS);
            set(&netns, after, &SKIPS);
            let holders: Vec<_> = BACKENDS.into_iter().filter(|backend| holds_ours(&netns, backend)).collect();
            assert_eq!(holders, [if after == "auto" { "nft" } else { after }], "{before}, then {after}");
        }
    }
}

/// Asked without the code under test.
fn holds_ours(netns: &Netns, backend: &str) -> bool {
    let listing = match backend {
        "nft" => "nft list tables",
        "iptables-nft" => "iptables-nft-save -t nat; ip6tables-nft-save -t nat",
        _ => "iptables-legacy-save -t nat; ip6tables-legacy-save -t nat",
    };
    netns.sh(listing).to_lowercase().contains("hauberk")
}

/// Rules of somebody else, in every place where ours go.
const FOREIGN: &str = r#"
    nft -f - <<'END'
table inet filter_of_others {
    chain in { type filter hook input priority 0; policy accept; tcp dport 1 counter drop; }
    chain nat { type nat hook output priority -100; policy accept; tcp dport 2 redirect to :3; }
}
END
    for tool in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do
        $tool -t nat -N HAUBERK_OF_OTHERS
        $tool -t nat -A HAUBERK_OF_OTHERS -p tcp --dport 7 -m comment --comment 'not -j HAUBERK_INBOUND' -j RETURN
        for chain in PREROUTING OUTPUT; do
            $tool -t nat -A $chain -p tcp --dport 7 -j HAUBERK_OF_OTHERS
            $tool -t nat -A $chain -p tcp --dport 8 -j ACCEPT
        done
        $tool -A INPUT -p tcp --dport 9 -j DROP
    done"#;

#[test]
fn cleanup_removes_all_and_only_ours() {
    let netns = Netns::new();
    netns.sh(FOREIGN);
    let before = snapshot(&netns);
    for backend in BACKENDS {
        set(&netns, backend, &SKIPS);
        assert_ne!(snapshot(&netns), before, "{backend}");
        let said = run(&netns, &["--cleanup"]);
        assert!(said.contains(&format!("# {backend}: rules of an earlier run removed")), "{said}");
        assert_eq!(snapshot(&netns), before, "{backend}");
        run(&netns, &["--cleanup"]);
        assert_eq!(snapshot(&netns), before, "{backend}, the second time");
    }
}

#[test]
fn cleanup_removes_what_every_backend_holds_and_jumps_that_were_doubled() {
    let netns = Netns::new();
    let texts = BACKENDS.map(|backend| set(&netns, backend, &["--dry-run"]));
    netns.sh(FOREIGN);
    let before = snapshot(&netns);
    for (backend, text) in BACKENDS.into_iter().zip(&texts) {
        load(&netns, text);
        if backend != "nft" {
            load(&netns, text);
        }
        assert!(holds_ours(&netns, backend));
    }
    run(&netns, &["--cleanup"]);
    assert_eq!(snapshot(&netns), before);
}

/// Does what the output of a dry run says: a line `# tool arguments`, then what the tool reads.
fn load(netns: &Netns, dry_run: &str) {
    let mut script = String::new();
    for part in format!("\n{dry_run}").split("\n# ") {
        let (command, input) = part.split_once('\n').unwrap_or((part, ""));
        if !input.is_empty() {
            script.push_str(&format!("{command} <<'END'\n{input}\nEND\n"));
        }
    }
    assert!(!script.is_empty(), "the dry run showed no rules:\n{dry_run}");
    netns.sh(&script);
}

#[test]
fn a_dry_run_changes_nothing_and_shows_exactly_what_would_be_loaded() {
    for backend in BACKENDS {
        let (real, dry) = (Netns::new(), Netns::new());
        set(&real, backend, &SKIPS);
        let before = snapshot(&dry);
        let text = set(&dry, backend, &[&["--dry-run"], SKIPS.as_slice()].concat());
        assert_eq!(snapshot(&dry), before, "{backend}");
        load(&dry, &text);
        assert_eq!(snapshot(&dry), snapshot(&real), "{backend}");
    }
}

#[test]
fn a_dry_run_of_cleanup_changes_nothing() {
    for backend in BACKENDS {
        let netns = Netns::new();
        set(&netns, backend, &SKIPS);
        let before = snapshot(&netns);
        let text = run(&netns, &["--cleanup", "--dry-run"]);
        assert_eq!(snapshot(&netns), before, "{backend}");
        load(&netns, &text);
        assert!(!holds_ours(&netns, backend), "{backend}");
    }
}

#[test]
fn auto_takes_nft_and_says_why_not_the_others() {
    let said = run(&Pair::dual_stack().pod, &[]);
    let expected = "# backend: nft\n\
                    # not iptables-nft: nft comes first, and works\n\
                    # not iptables-legacy: nft comes first, and works\n\
                    # the redirection of TCP is set by nft for IPv4 and IPv6: inbound to 4141, outbound to 4140 but \
                    for uid 2102\n";
    assert_eq!(said, expected);
}
