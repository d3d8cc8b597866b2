//! The rules as an nft script: one table of the family `inet`, replaced in one transaction. Pure.

use std::fmt::Write;

use hauberk_mesh::{INBOUND_PORT, OUTBOUND_PORT, PROXY_PORTS, PortSet, Redirection};
use ipnet::IpNet;

use super::backend::Family;

/// Our table, as `nft list tables` prints it.
pub(super) const TABLE: &str = "table inet hauberk";

/// Removes the table, and does not mind if there is none.
pub(super) const REMOVE: &str = "add table inet hauberk\ndelete table inet hauberk\n";

/// Something of the kernel that the rules need: what it is, the module that brings it, the least script that uses it.
pub(super) const PIECES: [(&str, &str, &str); 4] = [
    ("nf_tables with the family inet", "nf_tables", "add table inet hauberk_probe\n"),
    (
        "NAT chains of the family inet",
        "nft_chain_nat",
        "table inet hauberk_probe {\n\tchain c {\n\t\ttype nat hook output priority -101\n\t}\n}\n",
    ),
    (
        "the redirect statement",
        "nft_redir",
        "table inet hauberk_probe {\n\tchain c {\n\t\ttype nat hook output priority -101\n\t\tmeta l4proto tcp redirect to :4140\n\t}\n}\n",
    ),
    (
        "the fib expression",
        "nft_fib_inet",
        "table inet hauberk_probe {\n\tchain c {\n\t\ttype nat hook prerouting priority -101\n\t\tfib daddr type local return\n\t}\n}\n",
    ),
];

/// The whole script. Priority -101 is one before the place of iptables' nat table: rules of others that rewrite
/// destinations must not lead connections past the proxy (they apply to what the proxy sends).
pub(super) fn script(redirection: &Redirection) -> String {
    let mut text = format!("{REMOVE}{TABLE} {{\n");
    chain(&mut text, "inbound", "prerouting", &inbound(redirection));
    chain(&mut text, "outbound", "output", &outbound(redirection));
    text + "}\n"
}

fn inbound(redirection: &Redirection) -> Vec<String> {
    let proxy_ports = PROXY_PORTS.into_iter().map(|port| (port, port)).collect();
    let mut rules = vec!["iifname \"lo\" return".to_owned()];
    rules.extend(ports(&proxy_ports));
    rules.extend(ports(&redirection.skip_inbound_ports));
    rules.extend(subnets(redirection, "saddr"));
    rules.push(format!("fib daddr type local meta l4proto tcp redirect to :{INBOUND_PORT}"));
    rules
}

fn outbound(redirection: &Redirection) -> Vec<String> {
    let mut rules = vec![
        format!("meta skuid {} return", redirection.proxy_uid),
        "ip daddr 127.0.0.0/8 return".to_owned(),
        // Redirected link-local connections hang: the answer finds no way from ::1 to an address with a scope.
        "ip6 daddr { ::1, fe80::/10 } return".to_owned(),
    ];
    rules.extend(ports(&redirection.skip_outbound_ports));
    rules.extend(subnets(redirection, "daddr"));
    rules.push(format!("meta l4proto tcp redirect to :{OUTBOUND_PORT}"));
    rules
}

fn ports(ports: &PortSet) -> Option<String> {
    (!ports.is_empty()).then(|| format!("tcp dport {{ {} }} return", ports.to_string().replace(',', ", ")))
}

fn subnets(redirection: &Redirection, side: &str) -> Vec<String> {
    let rule = |family: Family| {
        let nets = family.subnets(redirection);
        let listed = nets.iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ");
        let protocol = if family == Family::V4 { "ip" } else { "ip6" };
        (!nets.is_empty()).then(|| format!("{protocol} {side} {{ {listed} }} return"))
    };
    [Family::V4, Family::V6].into_iter().filter_map(rule).collect()
}

fn chain(text: &mut String, name: &str, hook: &str, rules: &[String]) {
    let _ = write!(text, "\tchain {name} {{\n\t\ttype nat hook {hook} priority -101; policy accept;\n");
    for rule in rules {
        let _ = writeln!(text, "\t\t{rule}");
    }
    text.push_str("\t}\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_without_skips() {
        let expected = r#"add table inet hauberk
delete table inet hauberk
table inet hauberk {
	chain inbound {
		type nat hook prerouting priority -101; policy accept;
		iifname "lo" return
		tcp dport { 4140-4141, 4143, 4190-4192 } return
		fib daddr type local meta l4proto tcp redirect to :4141
	}
	chain outbound {
		type nat hook output priority -101; policy accept;
		meta skuid 2102 return
		ip daddr 127.0.0.0/8 return
		ip6 daddr { ::1, fe80::/10 } return
		meta l4proto tcp redirect to :4140
	}
}
"#;
        assert_eq!(script(&Redirection::default()), expected);
    }

    #[test]
    fn skips_come_before_the_redirect_each_on_its_side() {
        let redirection = Redirection {
            proxy_uid: 7,
            skip_inbound_ports: "22,4000-4010".parse().expect("valid"),
            skip_outbound_ports: "25".parse().expect("valid"),
            skip_subnets: "10.9.0.0/16,fd09::/64,10.0.0.0/8".parse().expect("valid"),
        };
        let expected_inbound = [
            "iifname \"lo\" return",
            "tcp dport { 4140-4141, 4143, 4190-4192 } return",
            "tcp dport { 22, 4000-4010 } return",
            "ip saddr { 10.0.0.0/8 } return",
            "ip6 saddr { fd09::/64 } return",
            "fib daddr type local meta l4proto tcp redirect to :4141",
        ];
        let expected_outbound = [
            "meta skuid 7 return",
            "ip daddr 127.0.0.0/8 return",
            "ip6 daddr { ::1, fe80::/10 } return",
            "tcp dport { 25 } return",
            "ip daddr { 10.0.0.0/8 } return",
            "ip6 daddr { fd09::/64 } return",
            "meta l4proto tcp redirect to :4140",
        ];
        assert_eq!(inbound(&redirection), expected_inbound);
        assert_eq!(outbound(&redirection), expected_outbound);
    }
}
