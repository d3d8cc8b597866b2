//! The three ways to set rules: which calls set them, check them and take them away again.

use std::{fmt, net::Ipv6Addr};

use clap::ValueEnum;
use hauberk_mesh::Redirection;
use ipnet::IpNet;

use super::{
    InitError, iptables,
    kernel::{self, Capability},
    nft,
    tool::{self, Call},
};

/// What `--backend` may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum BackendChoice {
    /// The first of the others that works.
    #[default]
    Auto,
    /// See [`Backend::Nft`].
    Nft,
    /// See [`Backend::IptablesNft`].
    IptablesNft,
    /// See [`Backend::IptablesLegacy`].
    IptablesLegacy,
}

impl BackendChoice {
    pub(super) fn candidates(self) -> &'static [Backend] {
        match self {
            Self::Auto => &Backend::ALL,
            Self::Nft => &[Backend::Nft],
            Self::IptablesNft => &[Backend::IptablesNft],
            Self::IptablesLegacy => &[Backend::IptablesLegacy],
        }
    }
}

/// What sets the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// nft, one table for both families.
    Nft,
    /// iptables over nf_tables.
    IptablesNft,
    /// iptables over the kernel's own tables.
    IptablesLegacy,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "nft",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        })
    }
}

/// An IP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// The skipped networks of this family, merged: nft refuses sets whose networks overlap.
    pub(super) fn subnets(self, redirection: &Redirection) -> Vec<IpNet> {
        let of_family = |net: &&IpNet| matches!(net, IpNet::V4(_)) == (self == Self::V4);
        IpNet::aggregate(&redirection.skip_subnets.iter().filter(of_family).copied().collect())
    }
}

/// Calls that a backend has checked without carrying them out.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) calls: Vec<Call>,
    /// Why IPv6 is not among them.
    pub(super) without_ipv6: Option<InitError>,
}

impl Backend {
    pub(super) const ALL: [Self; 3] = [Self::Nft, Self::IptablesNft, Self::IptablesLegacy];

    /// The calls that set `redirection`. Each has been checked against the kernel, and the namespace is as it was.
    /// IPv6 may be left out only where the pod has no IPv6 address that others can route to.
    pub(super) fn plan(self, redirection: &Redirection, ipv6: Option<Ipv6Addr>) -> Result<Plan, InitError> {
        if self == Self::Nft {
            let call = checked(None, nft_call(nft::script(redirection)))?;
            return Ok(Plan { calls: vec![call], without_ipv6: None });
        }
        let call = |family| self.iptables_setup(redirection, family);
        match (call(Family::V6), ipv6) {
            (Ok(v6), _) => Ok(Plan { calls: vec![v6, call(Family::V4)?], without_ipv6: None }),
            (Err(why), _) if !why.is_lack_of_support() => Err(why),
            (Err(why), None) => Ok(Plan { calls: vec![call(Family::V4)?], without_ipv6: Some(why) }),
            (Err(why), Some(address)) => Err(InitError::Ipv6 { address, backend: self, source: Box::new(why) }),
        }
    }

    /// The calls that remove what an earlier run set with this backend. None if its tools are not installed.
    pub(super) fn removal(self) -> Result<Vec<Call>, InitError> {
        match self.removal_by_tools() {
            Err(InitError::ToolMissing { .. }) => Ok(Vec::new()),
            other => other,
        }
    }

    fn removal_by_tools(self) -> Result<Vec<Call>, InitError> {
        if self == Self::Nft {
            let tables = tool::run(&Call { tool: "nft", args: vec!["list", "tables"], stdin: String::new() })?;
            let ours = tables.lines().any(|line| line.trim() == nft::TABLE);
            return Ok(ours.then(|| nft_call(nft::REMOVE.to_owned())).into_iter().collect());
        }
        let mut calls = Vec::new();
        for family in [Family::V4, Family::V6] {
            let text = iptables::cleanup(&self.saved(family)?);
            calls.extend(text.map(|text| self.restore(family, text)));
        }
        Ok(calls)
    }

    fn iptables_setup(self, redirection: &Redirection, family: Family) -> Result<Call, InitError> {
        if self == Self::IptablesLegacy {
            kernel::require(Capability::NetRaw)?;
        }
        let saved = self.saved(family)?;
        checked(Some(family), self.restore(family, iptables::setup(redirection, family, &saved)))
    }

    /// What `iptables-save -t nat` prints.
    fn saved(self, family: Family) -> Result<String, InitError> {
        if self == Self::IptablesLegacy && !kernel::has_legacy_nat(family)? {
            return Ok(String::new());
        }
        let tool = match (self, family) {
            (Self::IptablesLegacy, Family::V4) => "iptables-legacy-save",
            (Self::IptablesLegacy, Family::V6) => "ip6tables-legacy-save",
            (_, Family::V4) => "iptables-nft-save",
            (_, Family::V6) => "ip6tables-nft-save",
        };
        tool::run(&Call { tool, args: vec!["-t", "nat"], stdin: String::new() })
    }

    fn restore(self, family: Family, stdin: String) -> Call {
        let tool = match (self, family) {
            (Self::IptablesLegacy, Family::V4) => "iptables-legacy-restore",
            (Self::IptablesLegacy, Family::V6) => "ip6tables-legacy-restore",
            (_, Family::V4) => "iptables-nft-restore",
            (_, Family::V6) => "ip6tables-nft-restore",
        };
        // -w: the seconds to wait for the lock of iptables-legacy.
        Call { tool, args: vec!["--noflush", "-w", "5"], stdin }
    }
}

fn nft_call(stdin: String) -> Call {
    Call { tool: "nft", args: vec!["-f", "-"], stdin }
}

/// Gives `call` back if the tool and the kernel would take it; else says which piece of the kernel is missing.
fn checked(family: Option<Family>, call: Call) -> Result<Call, InitError> {
    let (flag, pieces) = match family {
        None => ("-c", &nft::PIECES),
        Some(_) => ("--test", &iptables::PIECES),
    };
    let check = |stdin: &str| {
        let args = [flag].into_iter().chain(call.args.iter().copied()).collect();
        tool::run(&Call { tool: call.tool, args, stdin: stdin.to_owned() })
    };
    let Err(error) = check(&call.stdin) else { return Ok(call) };
    if !matches!(error, InitError::ToolFailed { .. }) {
        return Err(error);
    }
    for &(piece, module, text) in pieces {
        if let Err(error) = check(text) {
            return Err(error.at(family, piece, module));
        }
    }
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_parted_by_family_and_merged() {
        let skip_subnets = "10.0.0.0/8,10.1.0.0/16,10.1.0.0/16,fd00::1,192.0.2.0/25,192.0.2.128/25".parse();
        let redirection = Redirection { skip_subnets: skip_subnets.expect("valid"), ..Redirection::default() };
        let text = |family: Family| family.subnets(&redirection).iter().map(IpNet::to_string).collect::<Vec<_>>();
        assert_eq!(text(Family::V4), ["10.0.0.0/8", "192.0.2.0/24"]);
        assert_eq!(text(Family::V6), ["fd00::1/128"]);
    }
}
