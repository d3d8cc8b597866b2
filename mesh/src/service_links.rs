//! The variables by which kubelet tells every container of the Services in its namespace. A Service whose name starts with
//! `hauberk` would else look like a setting of ours. Pure.

/// Whether `name` is such a variable: `<NAME>_SERVICE_HOST`, `<NAME>_SERVICE_PORT`, `<NAME>_SERVICE_PORT_<PORT>`,
/// `<NAME>_PORT`, `<NAME>_PORT_<NUMBER>_TCP`, and the last with `_PROTO`, `_PORT` or `_ADDR`.
pub(crate) fn is_service_link(name: &str) -> bool {
    let numbered = |(_, rest): (&str, &str)| {
        let mut parts = rest.split('_');
        let number = parts.next().is_some_and(|number| number.parse::<u16>().is_ok());
        number && parts.next().is_some_and(|protocol| ["TCP", "UDP", "SCTP"].contains(&protocol))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.rsplit_once("_PORT_").is_some_and(numbered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubelet_makes_of_a_service_is_told_from_the_rest() {
        for link in [
            "HAUBERK_SERVICE_HOST",
            "HAUBERK_SERVICE_PORT",
            "HAUBERK_DEMO_SERVICE_PORT_HTTP",
            "HAUBERK_DEMO_PORT",
            "HAUBERK_DEMO_PORT_8080_TCP",
            "HAUBERK_DEMO_PORT_8080_TCP_PROTO",
            "HAUBERK_DEMO_PORT_8080_TCP_PORT",
            "HAUBERK_DEMO_PORT_53_UDP_ADDR",
        ] {
            assert!(is_service_link(link), "{link}");
        }
        for other in ["HAUBERK_PORT_RANGE", "HAUBERK_SERVICE_HOSTS", "HAUBERK_PORT_X_TCP", "HAUBERK_PORTS"] {
            assert!(!is_service_link(other), "{other}");
        }
    }
}
