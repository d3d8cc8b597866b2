//! `Query`: what a caller may ask about, parsed from the text that it sends. Callers are not trusted. Pure.

use std::net::{IpAddr, SocketAddr};

use hauberk_mesh::TrustDomain;

use crate::subject::{ServiceName, Topic};

/// A DNS name of 253, a colon and a port.
const MAX_LENGTH: usize = 253 + 6;

/// A text that asks about nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidQuery {
    /// Longer than any valid one.
    #[error("the destination has {0} bytes: at most {MAX_LENGTH} are valid")]
    TooLong(usize),
    /// No address and no name.
    #[error(
        "{text:?} is not a destination: ask for ip:port, [ipv6]:port, <service>.<namespace>.svc.{domain}, \
         <service>.<namespace>, one with <instance>. before it, or such a name with :port; a port is 1 to 65535"
    )]
    Form {
        /// What was asked.
        text: String,
        /// The domain of valid names.
        domain: String,
    },
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// Whoever is at this address, IPv4 in its own form.
    Addr(SocketAddr),
    /// A service, or one of its instances; without a port: its only one, or 80.
    Name {
        /// The service.
        service: ServiceName,
        /// The instance, such as `web-0`.
        instance: Option<String>,
        /// The service's port.
        port: Option<u16>,
    },
}

impl Query {
    /// Parses what a caller sent as the path of its request.
    pub fn parse(text: &str, domain: &TrustDomain) -> Result<Self, InvalidQuery> {
        if text.len() > MAX_LENGTH {
            return Err(InvalidQuery::TooLong(text.len()));
        }
        let parsed = match text.parse::<SocketAddr>() {
            Ok(addr) => (addr.port() != 0).then(|| Self::Addr(canonical(addr))),
            Err(_) => parse_name(text, domain.domain()),
        };
        parsed.ok_or_else(|| InvalidQuery::Form { text: text.to_owned(), domain: domain.domain().to_owned() })
    }

    /// Whose changes change the answer.
    pub fn topic(&self) -> Topic {
        match self {
            Self::Addr(addr) => Topic::Addr(*addr),
            Self::Name { service, instance, port } => {
                Topic::Name { service: service.clone(), instance: instance.clone(), port: *port }
            }
        }
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn parse_name(text: &str, domain: &str) -> Option<Query> {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok().filter(|port| *port != 0)?)),
        None => (text, None),
    };
    // An address without a port would read as a name of digits.
    if host.parse::<IpAddr>().is_ok() {
        return None;
    }
    let suffix = host.strip_suffix(domain).and_then(|rest| rest.strip_suffix(".svc."));
    let (name, namespace) = suffix.unwrap_or(host).rsplit_once('.')?;
    // The name of a service has no dot.
    let (instance, name) = match name.split_once('.') {
        Some((instance, name)) => (Some(instance), name),
        None => (None, name),
    };
    let valid = instance.into_iter().chain([name, namespace]).all(is_label);
    let service = ServiceName { namespace: namespace.to_owned(), name: name.to_owned() };
    valid.then(|| Query::Name { service, instance: instance.map(str::to_owned), port })
}

fn is_label(text: &str) -> bool {
    let inner = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    inner && (1..=63).contains(&text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Query, InvalidQuery> {
        Query::parse(text, &TrustDomain::default())
    }

    #[test]
    fn addresses_and_names_are_told_apart() {
        let addr = |text: &str| Query::Addr(text.parse().expect("an address"));
        let service = || ServiceName { namespace: "shop".to_owned(), name: "web".to_owned() };
        let web = |port| Query::Name { service: service(), instance: None, port };
        let web_0 = |port| Query::Name { service: service(), instance: Some("web-0".to_owned()), port };
        for (text, query) in [
            ("10.2.0.1:80", addr("10.2.0.1:80")),
            ("[fd00::1]:80", addr("[fd00::1]:80")),
            ("[::ffff:10.2.0.1]:80", addr("10.2.0.1:80")),
            ("web.shop", web(None)),
            ("web.shop:80", web(Some(80))),
            ("web.shop.svc.cluster.local", web(None)),
            ("web.shop.svc.cluster.local:65535", web(Some(65535))),
            ("web-0.web.shop.svc.cluster.local", web_0(None)),
            ("web-0.web.shop:80", web_0(Some(80))),
        ] {
            assert_eq!(parse(text), Ok(query), "{text}");
        }
    }

    #[test]
    fn refuses_with_the_input_and_the_valid_forms() {
        for text in [
            "",
            ":",
            ":80",
            "web",
            "web:80",
            "10.2.0.1",
            "10.2.0.1:0",
            "10.2.0.1:65536",
            "10.2.0.1:x",
            "fd00::1",
            "web.shop:0",
            "web.shop:",
            "web.shop:80:80",
            "web..shop",
            "x.web-0.web.shop",
            ".shop",
            "WEB.shop",
            "web.shop/x",
            "wéb.shop",
            "web.shop ",
            "a\nb.c",
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("ask for ip:port"), "{error}");
        }
        let long = format!("{}.shop", "a".repeat(300));
        assert_eq!(parse(&long), Err(InvalidQuery::TooLong(305)));
    }

    proptest! {
        #[test]
        fn no_text_panics_the_parser(text in ".{0,280}") {
            let _ = parse(&text);
        }

        #[test]
        fn every_address_is_read_back(ip: IpAddr, port in 1u16..) {
            let addr = SocketAddr::new(ip, port);
            prop_assert_eq!(parse(&addr.to_string()), Ok(Query::Addr(canonical(addr))));
        }
    }
}
