//! What can go wrong in `hauberk-proxy init`. Every message names what is missing and what to do.

use std::{io, net::Ipv6Addr};

use super::backend::{Backend, Family};

/// Why the redirection could not be set, shown or removed.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The proxy must have a uid of its own.
    #[error(
        "--proxy-uid 0 is refused: packets of the proxy's uid pass, so every container that runs as root would bypass \
         the mesh; give the proxy a uid that no application has"
    )]
    RootUid,
    /// The process lacks a capability.
    #[error(
        "the capability {0} is missing: add it to the init container (securityContext.capabilities.add); note that Pod \
         Security `baseline` and `restricted` forbid it"
    )]
    Capability(&'static str),
    /// A program is not installed.
    #[error("{tool} is not installed: add the Debian package {package} to the image, or choose another --backend")]
    ToolMissing {
        /// The program.
        tool: &'static str,
        /// What has it.
        package: &'static str,
    },
    /// A program did not end in time and was killed.
    #[error("{tool} did not end within {seconds} s and was killed: see what else changes rules on this host")]
    ToolTimeout {
        /// The program.
        tool: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// A program could not be run at all.
    #[error("{tool} could not be run: {source}")]
    ToolBroken {
        /// The program.
        tool: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A program failed.
    #[error("`{command}` failed ({status}): {stderr}")]
    ToolFailed {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// The lock that iptables-legacy shares with others.
    #[error(
        "{tool} did not get its lock ({stderr}): another program changes rules, or the lock's file cannot be written; \
         mount a writable /run or set XTABLES_LOCKFILE to a file that can be written"
    )]
    Lock {
        /// The program.
        tool: &'static str,
        /// What it said.
        stderr: String,
    },
    /// The kernel lacks something that the rules need.
    #[error(
        "{family}: the kernel refuses {piece}: load its module {module} on the node, or choose another --backend \
         ({source})"
    )]
    Kernel {
        /// Whose rules.
        family: &'static str,
        /// What is missing.
        piece: &'static str,
        /// What brings it.
        module: &'static str,
        /// What the tool said.
        source: Box<InitError>,
    },
    /// The pod has an IPv6 address, and IPv6 cannot be redirected.
    #[error(
        "the pod has the IPv6 address {address}, and {backend} cannot redirect IPv6: its traffic would bypass the mesh; \
         use --backend nft, or give the pod no IPv6 address ({source})"
    )]
    Ipv6 {
        /// One of the pod's addresses.
        address: Ipv6Addr,
        /// What was tried.
        backend: Backend,
        /// Why it failed.
        source: Box<InitError>,
    },
    /// `auto` found nothing that works.
    #[error("no backend works; {}", listed(.0))]
    NoBackend(Vec<(Backend, InitError)>),
    /// Cleanup could not look everywhere.
    #[error("rules of ours may be left where they could not be looked for; {}", listed(.0))]
    Unseen(Vec<(Backend, InitError)>),
    /// A file of the kernel could not be read.
    #[error("{path} could not be read ({source}): run as uid 0 of the pod, with /proc mounted")]
    Read {
        /// The file.
        path: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The report could not be written.
    #[error("standard output: {0}")]
    Print(#[from] io::Error),
}

impl InitError {
    /// Whether the tool or the kernel cannot do what was asked, now or later.
    pub(super) fn is_lack_of_support(&self) -> bool {
        matches!(self, Self::Kernel { .. } | Self::ToolFailed { .. } | Self::ToolMissing { .. })
    }

    pub(super) fn at(self, family: Option<Family>, piece: &'static str, module: &'static str) -> Self {
        let family = family.map_or("IPv4 and IPv6", Family::as_str);
        Self::Kernel { family, piece, module, source: Box::new(self) }
    }
}

fn listed(errors: &[(Backend, InitError)]) -> String {
    errors.iter().map(|(backend, error)| format!("{backend}: {error}")).collect::<Vec<_>>().join("; ")
}
