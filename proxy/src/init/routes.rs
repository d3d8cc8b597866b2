//! Leads the pod's own IPv4 addresses over the loopback device, for connections from the proxy to the application.
//!
//! The kernel uses a local port in TIME_WAIT again at once only for sockets bound to `lo`, and such a socket gets its
//! answers only if the route to the address names `lo`; the kernel's own names the device that has the address. Without
//! these routes everything works, with fewer new connections a second to one port. For IPv6 there is no such way: a
//! second local route never comes before the kernel's.

use std::net::Ipv4Addr;

use serde::Deserialize;

use super::{
    InitError,
    tool::{self, Call},
};

/// Marks our routes (`ip route show proto 214`): only these are removed.
const PROTOCOL: &str = "214";

/// A route of table `local`, as `ip -j` prints it.
#[derive(Debug, Deserialize)]
struct Route {
    dst: String,
    dev: String,
    #[serde(default)]
    protocol: String,
}

/// What adds the routes that are missing, for every address that the pod has now.
pub(super) fn missing() -> Result<Option<Call>, InitError> {
    let routes = present()?;
    let reached = |address: &Ipv4Addr| routes.iter().any(|route| route.dev == "lo" && route.dst == address.to_string());
    let addresses = routes.iter().filter_map(|route| route.dst.parse().ok());
    let mut lacking: Vec<Ipv4Addr> = addresses.filter(|address: &Ipv4Addr| !reached(address)).collect();
    lacking.sort_unstable();
    lacking.dedup();
    Ok(batch(
        lacking.iter().map(|address| {
            format!("route prepend local {address} dev lo table local proto {PROTOCOL} src {address}\n")
        }),
    ))
}

/// What removes ours.
pub(super) fn removal() -> Result<Option<Call>, InitError> {
    let routes = present()?;
    let ours = routes.iter().filter(|route| route.protocol == PROTOCOL);
    Ok(batch(ours.map(|route| format!("route del local {} dev lo table local proto {PROTOCOL}\n", route.dst))))
}

fn present() -> Result<Vec<Route>, InitError> {
    let args = ["-j", "-4", "route", "show", "table", "local", "type", "local"];
    let printed = tool::run(&Call { tool: "ip", args: args.to_vec(), stdin: String::new() })?;
    parse(&printed).map_err(|source| InitError::ToolBroken { tool: "ip", source: source.into() })
}

fn parse(printed: &str) -> serde_json::Result<Vec<Route>> {
    // Where there is no route at all, some versions print nothing.
    if printed.trim().is_empty() { Ok(Vec::new()) } else { serde_json::from_str(printed) }
}

fn batch(lines: impl Iterator<Item = String>) -> Option<Call> {
    let stdin: String = lines.collect();
    (!stdin.is_empty()).then(|| Call { tool: "ip", args: vec!["-4", "-batch", "-"], stdin })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_ip_prints() {
        let printed = r#"[{"type":"local","dst":"10.1.1.2","dev":"lo","protocol":"214","scope":"host","flags":[]},
            {"type":"local","dst":"127.0.0.0/8","dev":"lo","protocol":"kernel","flags":[]}]"#;
        let routes = parse(printed).expect("valid");
        assert_eq!((routes[0].dst.as_str(), routes[0].protocol.as_str()), ("10.1.1.2", PROTOCOL));
        assert!(parse("").expect("no routes").is_empty());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = parse(&text);
        }
    }
}
