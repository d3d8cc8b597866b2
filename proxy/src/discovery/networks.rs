//! `ClusterNetworks`: what lies inside the cluster, as `Networks.Watch` tells it. Pure.

use std::{collections::BTreeSet, net::IpAddr};

use hauberk_api::networks;
use hauberk_mesh::{InvalidNet, Networks};

/// What lies inside the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ClusterNetworks {
    /// Pod, Service and node networks.
    pub networks: Networks,
    /// Addresses outside of them that discovery knows.
    pub outside: BTreeSet<IpAddr>,
}

impl ClusterNetworks {
    /// Whether discovery is to be asked about `ip`.
    pub fn is_inside(&self, ip: IpAddr) -> bool {
        self.networks.contains(ip) || self.outside.contains(&ip.to_canonical())
    }

    /// Reads a message, whole or not at all: with one network less, peers inside would pass for outside.
    pub(super) fn read(message: &networks::ClusterNetworks) -> Result<Self, InvalidNet> {
        let address = |text: &String| text.parse().map_err(|_| InvalidNet::Network(text.clone()));
        let outside = message.outside.iter().map(|text| address(text).map(|ip: IpAddr| ip.to_canonical()));
        Ok(Self { networks: message.networks.join(",").parse()?, outside: outside.collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(networks: &[&str], outside: &[&str]) -> Result<ClusterNetworks, InvalidNet> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        ClusterNetworks::read(&networks::ClusterNetworks { networks: owned(networks), outside: owned(outside) })
    }

    #[test]
    fn inside_is_what_a_network_covers_or_discovery_knows() {
        let read = read(&["10.1.0.0/16", "fd00::/64"], &["192.0.2.7"]).expect("valid");
        for (ip, inside) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("fd00::1", true),
            ("192.0.2.7", true),
            ("::ffff:192.0.2.7", true),
            ("192.0.2.8", false),
            ("fd01::1", false),
        ] {
            assert_eq!(read.is_inside(ip.parse().expect("an address")), inside, "{ip}");
        }
    }

    #[test]
    fn a_message_with_one_fault_is_not_taken_in_part() {
        assert!(read(&["10.1.0.0/16", "10.2.0.0/33"], &[]).is_err());
        assert!(read(&["10.1.0.0/16"], &["192.0.2"]).is_err());
    }
}
