//! The rules as text for `iptables-restore --noflush`, one for each family, for both kinds of iptables. Pure.
//!
//! Ours are two chains of the nat table and one jump to each. What `iptables-save` prints says which jumps are there.

use std::fmt::Write;

use hauberk_mesh::{INBOUND_PORT, OUTBOUND_PORT, PROXY_PORTS, PortSet, Redirection};

use super::backend::Family;

/// Our chains, each with the chain of the kernel that jumps to it.
const CHAINS: [(&str, &str); 2] = [("HAUBERK_INBOUND", "PREROUTING"), ("HAUBERK_OUTPUT", "OUTPUT")];

/// Ports that one rule of `multiport` takes; a range takes two.
const MULTIPORT_SLOTS: usize = 15;

/// Something of the kernel that the rules need: what it is, the module that brings it, the least text that uses it.
pub(super) const PIECES: [(&str, &str, &str); 4] = [
    ("the REDIRECT target", "xt_REDIRECT", "*nat\n-A OUTPUT -p tcp -j REDIRECT --to-ports 4140\nCOMMIT\n"),
    ("the owner match", "xt_owner", "*nat\n-A OUTPUT -m owner --uid-owner 2102 -j RETURN\nCOMMIT\n"),
    ("the multiport match", "xt_multiport", "*nat\n-A PREROUTING -p tcp -m multiport --dports 1,2 -j RETURN\nCOMMIT\n"),
    ("the addrtype match", "xt_addrtype", "*nat\n-A PREROUTING -m addrtype --dst-type LOCAL -j RETURN\nCOMMIT\n"),
];

/// Sets our chains to what `redirection` says, whatever they were, and makes sure of exactly one jump to each. `saved`
/// is what `iptables-save -t nat` prints now.
pub(super) fn setup(redirection: &Redirection, family: Family, saved: &str) -> String {
    let mut text = "*nat\n".to_owned();
    for (chain, _) in CHAINS {
        // With --noflush, a chain that is declared is emptied if it is there.
        let _ = writeln!(text, ":{chain} - [0:0]");
    }
    for rule in inbound(redirection, family) {
        let _ = writeln!(text, "-A HAUBERK_INBOUND {rule}");
    }
    for rule in outbound(redirection, family) {
        let _ = writeln!(text, "-A HAUBERK_OUTPUT {rule}");
    }
    for (chain, hook) in CHAINS {
        text.push_str(&one_jump(chain, hook, saved));
    }
    text + "COMMIT\n"
}

/// Removes our chains and every jump to them; nothing if there is none.
pub(super) fn cleanup(saved: &str) -> Option<String> {
    let is_there = |chain: &str| saved.lines().any(|line| line.starts_with(&format!(":{chain} ")));
    let ours: Vec<_> = CHAINS.into_iter().map(|(chain, _)| chain).filter(|chain| is_there(chain)).collect();
    let mut text = String::new();
    for chain in &ours {
        jumps(chain, saved).for_each(|jump| text.push_str(&deletion(jump)));
    }
    for command in ["-F", "-X"] {
        for chain in &ours {
            let _ = writeln!(text, "{command} {chain}");
        }
    }
    (!ours.is_empty()).then(|| format!("*nat\n{text}COMMIT\n"))
}

/// First in its hook: rules of others that rewrite destinations must not lead connections past the proxy.
fn one_jump(chain: &str, hook: &str, saved: &str) -> String {
    let wanted = format!("-A {hook} -p tcp -j {chain}");
    let found: Vec<_> = jumps(chain, saved).collect();
    if found == [wanted.as_str()] {
        return String::new();
    }
    let removed: String = found.into_iter().map(deletion).collect();
    format!("{removed}-I {hook} 1 -p tcp -j {chain}\n")
}

/// The rules that end in a jump to `chain`. A comment that says so does not count: it would end in a quote.
fn jumps<'a>(chain: &str, saved: &'a str) -> impl Iterator<Item = &'a str> {
    let ends = [format!(" -j {chain}"), format!(" -g {chain}")];
    let is_jump = move |line: &&str| line.starts_with("-A ") && ends.iter().any(|end| line.ends_with(end.as_str()));
    saved.lines().map(str::trim_end).filter(is_jump)
}

fn deletion(rule: &str) -> String {
    format!("-D{}\n", rule.strip_prefix("-A").unwrap_or(rule))
}

fn inbound(redirection: &Redirection, family: Family) -> Vec<String> {
    let proxy_ports = PROXY_PORTS.into_iter().map(|port| (port, port)).collect();
    let mut rules = vec!["-i lo -j RETURN".to_owned()];
    rules.extend(ports(&proxy_ports));
    rules.extend(ports(&redirection.skip_inbound_ports));
    rules.extend(family.subnets(redirection).iter().map(|net| format!("-s {net} -j RETURN")));
    rules.push(format!("-p tcp -m addrtype --dst-type LOCAL -j REDIRECT --to-ports {INBOUND_PORT}"));
    rules
}

fn outbound(redirection: &Redirection, family: Family) -> Vec<String> {
    // Redirected link-local connections hang: the answer finds no way from ::1 to an address with a scope.
    let passing: &[_] = if family == Family::V4 { &["127.0.0.0/8"] } else { &["::1/128", "fe80::/10"] };
    let mut rules = vec![format!("-m owner --uid-owner {} -j RETURN", redirection.proxy_uid)];
    rules.extend(passing.iter().map(|net| format!("-d {net} -j RETURN")));
    rules.extend(ports(&redirection.skip_outbound_ports));
    rules.extend(family.subnets(redirection).iter().map(|net| format!("-d {net} -j RETURN")));
    rules.push(format!("-p tcp -j REDIRECT --to-ports {OUTBOUND_PORT}"));
    rules
}

fn ports(ports: &PortSet) -> Vec<String> {
    let mut groups: Vec<(usize, Vec<String>)> = Vec::new();
    for &(low, high) in ports.ranges() {
        let (slots, item) = if low == high { (1, low.to_string()) } else { (2, format!("{low}:{high}")) };
        match groups.last_mut() {
            Some((used, items)) if *used + slots <= MULTIPORT_SLOTS => {
                *used += slots;
                items.push(item);
            }
            _ => groups.push((slots, vec![item])),
        }
    }
    groups.into_iter().map(|(_, items)| format!("-p tcp -m multiport --dports {} -j RETURN", items.join(","))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FOREIGN: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:MINE - [0:0]\n\
        -A PREROUTING -j MINE\n-A MINE -p tcp -m comment --comment \"not -j HAUBERK_INBOUND\"\n";

    #[test]
    fn the_text_without_skips() {
        let expected = "*nat\n\
            :HAUBERK_INBOUND - [0:0]\n\
            :HAUBERK_OUTPUT - [0:0]\n\
            -A HAUBERK_INBOUND -i lo -j RETURN\n\
            -A HAUBERK_INBOUND -p tcp -m multiport --dports 4140:4141,4143,4190:4192 -j RETURN\n\
            -A HAUBERK_INBOUND -p tcp -m addrtype --dst-type LOCAL -j REDIRECT --to-ports 4141\n\
            -A HAUBERK_OUTPUT -m owner --uid-owner 2102 -j RETURN\n\
            -A HAUBERK_OUTPUT -d 127.0.0.0/8 -j RETURN\n\
            -A HAUBERK_OUTPUT -p tcp -j REDIRECT --to-ports 4140\n\
            -I PREROUTING 1 -p tcp -j HAUBERK_INBOUND\n\
            -I OUTPUT 1 -p tcp -j HAUBERK_OUTPUT\n\
            COMMIT\n";
        assert_eq!(setup(&Redirection::default(), Family::V4, FOREIGN), expected);
        assert_eq!(
            setup(&Redirection::default(), Family::V6, FOREIGN),
            expected.replace("-d 127.0.0.0/8", "-d ::1/128 -j RETURN\n-A HAUBERK_OUTPUT -d fe80::/10"),
            "the families differ in what never leaves the link"
        );
    }

    #[test]
    fn each_family_gets_its_own_subnets() {
        let redirection =
            Redirection { skip_subnets: "10.9.0.0/16,fd09::/64".parse().expect("valid"), ..Redirection::default() };
        for (family, own, other) in [(Family::V4, "10.9.0.0/16", "fd09"), (Family::V6, "fd09::/64", "10.9")] {
            let text = setup(&redirection, family, "");
            assert!(text.contains(&format!("-A HAUBERK_INBOUND -s {own} -j RETURN\n")), "{text}");
            assert!(text.contains(&format!("-A HAUBERK_OUTPUT -d {own} -j RETURN\n")), "{text}");
            assert!(!text.contains(other), "{text}");
        }
    }

    #[test]
    fn there_is_one_jump_however_many_there_were() {
        let jump = "-A OUTPUT -p tcp -j HAUBERK_OUTPUT\n";
        let narrow = "-A OUTPUT -d 10.0.0.0/8 -p tcp -j HAUBERK_OUTPUT\n";
        for (saved, expected) in [
            (String::new(), "-I OUTPUT 1 -p tcp -j HAUBERK_OUTPUT\n".to_owned()),
            (jump.to_owned(), String::new()),
            (
                format!("{jump}{jump}"),
                "-D OUTPUT -p tcp -j HAUBERK_OUTPUT\n-D OUTPUT -p tcp -j HAUBERK_OUTPUT\n\
                 -I OUTPUT 1 -p tcp -j HAUBERK_OUTPUT\n"
                    .to_owned(),
            ),
            (
                narrow.to_owned(),
                "-D OUTPUT -d 10.0.0.0/8 -p tcp -j HAUBERK_OUTPUT\n-I OUTPUT 1 -p tcp -j HAUBERK_OUTPUT\n".to_owned(),
            ),
        ] {
            assert_eq!(one_jump("HAUBERK_OUTPUT", "OUTPUT", &saved), expected, "{saved}");
        }
    }

    #[test]
    fn cleanup_names_only_ours() {
        assert_eq!(cleanup(FOREIGN), None);
        let saved = format!(
            "{FOREIGN}:HAUBERK_INBOUND - [0:0]\n:HAUBERK_OUTPUT - [0:0]\n-A PREROUTING -p tcp -j HAUBERK_INBOUND\n\
             -A HAUBERK_INBOUND -i lo -j RETURN\nCOMMIT\n"
        );
        let expected = "*nat\n-D PREROUTING -p tcp -j HAUBERK_INBOUND\n-F HAUBERK_INBOUND\n-F HAUBERK_OUTPUT\n\
                        -X HAUBERK_INBOUND\n-X HAUBERK_OUTPUT\nCOMMIT\n";
        assert_eq!(cleanup(&saved).as_deref(), Some(expected));
    }

    proptest! {
        #[test]
        fn no_rule_takes_more_than_15_slots_and_no_port_is_lost(
            ranges in proptest::collection::vec((1u16.., 0u16..50), 0..80)
        ) {
            let set: PortSet = ranges.iter().map(|&(low, more)| (low, low.saturating_add(more))).collect();
            let mut back = Vec::new();
            for rule in ports(&set) {
                let list = rule.strip_prefix("-p tcp -m multiport --dports ").and_then(|r| r.strip_suffix(" -j RETURN"));
                let items: Vec<_> = list.expect("one list").split(',').collect();
                let slots: usize = items.iter().map(|item| item.split(':').count()).sum();
                prop_assert!(slots <= 15, "{}", rule);
                back.extend(items.into_iter().map(|item| item.replace(':', "-")));
            }
            prop_assert_eq!(back.join(","), set.to_string());
        }

        #[test]
        fn no_saved_text_panics(saved in "(-A|:|HAUBERK_OUTPUT|-j| |\n|.){0,40}") {
            let _ = (cleanup(&saved), setup(&Redirection::default(), Family::V4, &saved));
        }
    }
}
