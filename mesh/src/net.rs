//! Sets of ports and networks, as annotations and flags write them.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A text that is no port set, network or exception.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum InvalidNet {
    /// Not a port or range.
    #[error("{0:?} is not a port or a range of ports: write 1 to 65535, or two such with '-' between, the lower first")]
    Ports(String),
    /// Not a network.
    #[error("{0:?} is not a network: write an address, or an address and a prefix length such as 10.1.0.0/16")]
    Network(String),
    /// Not a network with ports.
    #[error(
        "{0:?} is not an exception: write a network, or a network and ports such as 10.1.0.0/16@5432,6379 or fd00::/8@443"
    )]
    Exception(String),
}

/// Ports and ranges, merged and in order: `22,4000-4010`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortSet(Vec<(u16, u16)>);

impl PortSet {
    /// Whether `port` is in the set.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|&(low, high)| (low..=high).contains(&port))
    }

    /// Whether every port of `other` is in the set.
    pub fn includes(&self, other: &Self) -> bool {
        // Neighbouring ranges are merged, so a range lies in one of ours or not at all.
        other.0.iter().all(|&(low, high)| self.0.iter().any(|&(least, most)| least <= low && high <= most))
    }

    /// No port at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges, both ends included, in order, none touching another.
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.0
    }
}

impl FromIterator<(u16, u16)> for PortSet {
    fn from_iter<I: IntoIterator<Item = (u16, u16)>>(ranges: I) -> Self {
        let mut sorted: Vec<_> = ranges.into_iter().collect();
        sorted.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::new();
        for (low, high) in sorted {
            match merged.last_mut() {
                Some(last) if u32::from(low) <= u32::from(last.1) + 1 => last.1 = last.1.max(high),
                _ => merged.push((low, high)),
            }
        }
        Self(merged)
    }
}

impl FromStr for PortSet {
    type Err = InvalidNet;
    fn from_str(text: &str) -> Result<Self, InvalidNet> {
        let port = |item: &str, text: &str| match text.trim().parse::<u16>() {
            Ok(0) | Err(_) => Err(InvalidNet::Ports(item.to_owned())),
            Ok(port) => Ok(port),
        };
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let ranges = items.map(|item| {
            let (low, high) = item.split_once('-').unwrap_or((item, item));
            let (low, high) = (port(item, low)?, port(item, high)?);
            if low <= high { Ok((low, high)) } else { Err(InvalidNet::Ports(item.to_owned())) }
        });
        ranges.collect()
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (low, high)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if low == high { write!(f, "{comma}{low}")? } else { write!(f, "{comma}{low}-{high}")? }
        }
        Ok(())
    }
}

/// Networks of either family: `10.1.0.0/16,fd00::/64`. A bare address is a network of one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Whether one of the networks holds `ip`. IPv4-mapped IPv6 addresses count as IPv4.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.iter().any(|net| net.contains(&ip))
    }

    /// Whether each network of `other` lies in one of these.
    pub fn includes(&self, other: &Self) -> bool {
        other.0.iter().all(|inner| self.0.iter().any(|outer| outer.contains(inner)))
    }

    /// No network at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The networks, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = &IpNet> {
        self.0.iter()
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        Self(nets.into_iter().collect())
    }
}

impl FromStr for Networks {
    type Err = InvalidNet;
    fn from_str(text: &str) -> Result<Self, InvalidNet> {
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(parse_net).collect()
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, net) in self.0.iter().enumerate() {
            write!(f, "{}{net}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// Peers that a `required` pod may talk to without mTLS: a network, and ports (none: all). `10.1.0.0/16@5432,6379`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exception {
    network: IpNet,
    ports: PortSet,
}

impl Exception {
    /// Whether the exception covers `addr`: the peer's address, with the port of the accepting side.
    pub fn covers(&self, addr: SocketAddr) -> bool {
        self.network.contains(&addr.ip().to_canonical()) && (self.ports.is_empty() || self.ports.contains(addr.port()))
    }

    /// Whether all that `other` covers is covered.
    pub fn includes(&self, other: &Self) -> bool {
        let ports = self.ports.is_empty() || (!other.ports.is_empty() && self.ports.includes(&other.ports));
        self.network.contains(&other.network) && ports
    }
}

impl FromStr for Exception {
    type Err = InvalidNet;
    fn from_str(text: &str) -> Result<Self, InvalidNet> {
        let invalid = |_| InvalidNet::Exception(text.to_owned());
        let (network, ports) = text.trim().split_once('@').unwrap_or((text.trim(), ""));
        let ports: PortSet = ports.parse().map_err(invalid)?;
        if ports.is_empty() && text.contains('@') {
            return Err(InvalidNet::Exception(text.to_owned()));
        }
        Ok(Self { network: parse_net(network).map_err(invalid)?, ports })
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.network)?;
        if self.ports.is_empty() { Ok(()) } else { write!(f, "@{}", self.ports) }
    }
}

fn parse_net(text: &str) -> Result<IpNet, InvalidNet> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.map(|net| net.trunc()).map_err(|_| InvalidNet::Network(text.to_owned()))
}

macro_rules! serde_as_text {
    ($($name:ident),+) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )+};
}
serde_as_text!(PortSet, Networks, Exception);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ports_are_merged_and_in_order() {
        let set: PortSet = "4005-4010, 22,4000-4006,23,65535".parse().expect("valid");
        assert_eq!(set.to_string(), "22-23,4000-4010,65535");
        assert!(set.contains(4010) && set.contains(65535) && !set.contains(4011) && !set.contains(21));
    }

    #[test]
    fn a_set_includes_what_is_no_wider() {
        let ports = |text: &str| text.parse::<PortSet>().expect("valid");
        assert!(ports("20-30,40").includes(&ports("22-25,40")) && ports("1").includes(&PortSet::default()));
        assert!(!ports("20-30,40").includes(&ports("30-40")) && !PortSet::default().includes(&ports("1")));
        let nets = |text: &str| text.parse::<Networks>().expect("valid");
        assert!(nets("10.0.0.0/8,fd00::/8").includes(&nets("10.9.0.0/16,fd09::1")));
        assert!(!nets("10.9.0.0/16").includes(&nets("10.0.0.0/8")) && !nets("10.0.0.0/8").includes(&nets("::/0")));
        let exception = |text: &str| text.parse::<Exception>().expect("valid");
        assert!(exception("10.0.0.0/8").includes(&exception("10.1.0.0/16@22")));
        assert!(exception("10.0.0.0/8@20-25").includes(&exception("10.1.0.0/16@22")));
        assert!(!exception("10.0.0.0/8@22").includes(&exception("10.1.0.0/16")));
        assert!(!exception("10.1.0.0/16").includes(&exception("10.0.0.0/8@22")));
    }

    #[test]
    fn refuses_what_is_no_port() {
        for text in ["0", "65536", "-1", "5-", "9-3", "http", "1-2-3"] {
            assert_eq!(text.parse::<PortSet>(), Err(InvalidNet::Ports(text.to_owned())));
        }
    }

    #[test]
    fn an_exception_covers_its_network_and_ports() {
        let exception: Exception = "10.1.0.0/16@5432,6379".parse().expect("valid");
        let addr = |text: &str| text.parse::<SocketAddr>().expect("an address");
        assert!(exception.covers(addr("10.1.9.9:6379")) && exception.covers(addr("[::ffff:10.1.2.3]:5432")));
        assert!(!exception.covers(addr("10.1.9.9:80")) && !exception.covers(addr("10.2.0.1:5432")));
        assert!("fd00::1".parse::<Exception>().expect("valid").covers(addr("[fd00::1]:1")));
        assert!("10.1.0.0/16@".parse::<Exception>().is_err());
    }

    proptest! {
        #[test]
        fn a_port_set_survives_being_written(ranges in proptest::collection::vec((1u16.., 0u16..200), 0..20)) {
            let set: PortSet = ranges.iter().map(|&(low, more)| (low, low.saturating_add(more))).collect();
            prop_assert_eq!(set.to_string().parse::<PortSet>(), Ok(set));
        }

        #[test]
        fn no_text_panics_the_parsers(text in ".{0,60}") {
            let _ = (text.parse::<PortSet>(), text.parse::<Networks>(), text.parse::<Exception>());
        }
    }
}
