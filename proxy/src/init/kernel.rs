//! What the kernel says of this process and its network namespace: capabilities, addresses, tables.
//!
//! `/proc/thread-self` and not `/proc/net`: the latter shows the namespace of the process's first thread.

use std::{fs, io, net::Ipv6Addr};

use super::{InitError, backend::Family};

const STATUS: &str = "/proc/thread-self/status";
const ADDRESSES: &str = "/proc/thread-self/net/if_inet6";

/// A capability that a backend needs; the number is the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Capability {
    NetAdmin = 12,
    NetRaw = 13,
}

/// Fails with the name of the capability if it is not effective.
pub(super) fn require(capability: Capability) -> Result<(), InitError> {
    let status = fs::read_to_string(STATUS).map_err(|source| InitError::Read { path: STATUS, source })?;
    if effective(&status) >> capability as u32 & 1 == 1 {
        return Ok(());
    }
    Err(InitError::Capability(match capability {
        Capability::NetAdmin => "NET_ADMIN",
        Capability::NetRaw => "NET_RAW",
    }))
}

/// One IPv6 address that others can route to, if there is any.
pub(super) fn routable_ipv6() -> Result<Option<Ipv6Addr>, InitError> {
    Ok(routable(&read(ADDRESSES)?))
}

/// Whether iptables-legacy has a nat table here. Asking iptables-legacy itself would create it.
pub(super) fn has_legacy_nat(family: Family) -> Result<bool, InitError> {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    Ok(read(path)?.lines().any(|line| line == "nat"))
}

/// A kernel without the feature does not have the file: that is the same as an empty one.
fn read(path: &'static str) -> Result<String, InitError> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other.map_err(|source| InitError::Read { path, source }),
    }
}

fn effective(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn routable(if_inet6: &str) -> Option<Ipv6Addr> {
    let addresses = if_inet6.lines().filter_map(|line| u128::from_str_radix(line.get(..32)?, 16).ok());
    addresses.map(Ipv6Addr::from_bits).find(|address| !address.is_loopback() && !address.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_counts_if_others_can_route_to_it() {
        let lo = "00000000000000000000000000000001 01 80 10 80       lo\n";
        let link = "fe80000000000000a8aaaafffeaaaaaa 02 40 20 80     eth0\n";
        let global = "fd770000000000000000000000000002 02 40 00 80     eth0\n";
        for (text, expected) in [
            (String::new(), None),
            (format!("{lo}{link}"), None),
            (format!("{lo}{link}{global}"), Some("fd77::2".parse().expect("an address"))),
            ("zz é\nfe80".to_owned(), None),
        ] {
            assert_eq!(routable(&text), expected, "{text}");
        }
    }

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        let status = "Name:\tx\nCapPrm:\tffff\nCapEff:\t0000000000001000\nCapBnd:\tffff\n";
        assert_eq!(effective(status), 1 << Capability::NetAdmin as u32);
        assert_eq!(effective("Name:\tx\n"), 0);
    }
}
