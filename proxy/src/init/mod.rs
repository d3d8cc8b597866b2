//! `hauberk-proxy init`: sets up, shows or removes the redirection of a network namespace, then ends.
//!
//! The rules are texts that pure functions make (`nft.rs`, `iptables.rs`); a thin shell hands them to the tools
//! (`tool.rs`). Every choice that is made is printed with its reason. What the rules promise: `docs/redirection.md`.

mod backend;
mod error;
mod iptables;
mod kernel;
mod nft;
mod routes;
mod tool;

use std::io::Write;

use clap::Args;
use hauberk_mesh::{INBOUND_PORT, Networks, OUTBOUND_PORT, PROXY_UID, PortSet, Redirection};

use backend::Plan;
pub use backend::{Backend, BackendChoice, Family};
pub use error::InitError;
use tool::Call;

/// What `hauberk-proxy init` is told. The variables are those of `ProxySpec`, so that proxy and rules agree.
#[derive(Debug, Clone, Args)]
pub struct InitArgs {
    /// What sets the rules. `auto` takes the first that works, in the order of this list
    #[arg(long, value_enum, default_value_t)]
    pub backend: BackendChoice,
    /// The uid of the proxy: its own packets pass
    #[arg(long, env = "HAUBERK_PROXY_UID", default_value_t = PROXY_UID)]
    pub proxy_uid: u32,
    /// Ports of the pod that clients reach without the proxy, such as 22,4000-4010
    #[arg(long, env = "HAUBERK_SKIP_INBOUND_PORTS", default_value_t, hide_default_value = true)]
    pub skip_inbound_ports: PortSet,
    /// Ports of others that the pod reaches without the proxy
    #[arg(long, env = "HAUBERK_SKIP_OUTBOUND_PORTS", default_value_t, hide_default_value = true)]
    pub skip_outbound_ports: PortSet,
    /// Networks that the pod reaches, and that reach it, without the proxy, such as 10.9.0.0/16,fd09::/64
    #[arg(long, env = "HAUBERK_SKIP_SUBNETS", default_value_t, hide_default_value = true)]
    pub skip_subnets: Networks,
    /// Decide and check everything, print what would be loaded, load nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Remove all rules of ours, whichever backend set them, and no other
    #[arg(long)]
    pub cleanup: bool,
}

impl InitArgs {
    /// The redirection that is asked for. Uid 0 is refused: it is the uid of too many applications.
    pub fn redirection(&self) -> Result<Redirection, InitError> {
        if self.proxy_uid == 0 {
            return Err(InitError::RootUid);
        }
        Ok(Redirection {
            proxy_uid: self.proxy_uid,
            skip_inbound_ports: self.skip_inbound_ports.clone(),
            skip_outbound_ports: self.skip_outbound_ports.clone(),
            skip_subnets: self.skip_subnets.clone(),
        })
    }
}

/// Does what `args` say to the network namespace of the calling thread, and tells `out`. Blocks: every tool that it
/// runs has a time limit.
pub fn run(args: &InitArgs, out: &mut impl Write) -> Result<(), InitError> {
    let redirection = args.redirection()?;
    kernel::require(kernel::Capability::NetAdmin)?;
    if args.cleanup { cleanup(args.dry_run, out) } else { set_up(args, &redirection, out) }
}

/// The new rules come first, then those of an earlier run with another backend go: at no time is there none.
fn set_up(args: &InitArgs, redirection: &Redirection, out: &mut impl Write) -> Result<(), InitError> {
    let (backend, plan) = choose(args.backend, redirection, out)?;
    if let Some(why) = &plan.without_ipv6 {
        writeln!(out, "# IPv6 is left out: the pod has no IPv6 address that others can route to, and {why}")?;
    }
    carry_out(&plan.calls, args.dry_run, out)?;
    for other in Backend::ALL.into_iter().filter(|other| *other != backend) {
        match other.removal() {
            Ok(calls) => remove(other, &calls, args.dry_run, out)?,
            Err(error) => writeln!(out, "# whether {other} still has rules of an earlier run cannot be told: {error}")?,
        }
    }
    // Better with them, right without: what hinders them is told.
    if let Err(error) = routes::missing().and_then(|call| carry_out(call.as_slice(), args.dry_run, out)) {
        writeln!(out, "# the pod's own addresses are not led over lo, so ports are used again later: {error}")?;
    }
    let set = if args.dry_run { "would be set" } else { "is set" };
    let families = if plan.without_ipv6.is_some() { "IPv4" } else { "IPv4 and IPv6" };
    writeln!(
        out,
        "# the redirection of TCP {set} by {backend} for {families}: inbound to {INBOUND_PORT}, outbound to {OUTBOUND_PORT} but for uid {}",
        redirection.proxy_uid
    )?;
    Ok(())
}

fn choose(
    choice: BackendChoice,
    redirection: &Redirection,
    out: &mut impl Write,
) -> Result<(Backend, Plan), InitError> {
    let ipv6 = kernel::routable_ipv6()?;
    let candidates = choice.candidates();
    if let [backend] = candidates {
        return Ok((*backend, backend.plan(redirection, ipv6)?));
    }
    let mut refused = Vec::new();
    for (at, backend) in candidates.iter().copied().enumerate() {
        match backend.plan(redirection, ipv6) {
            Ok(plan) => {
                writeln!(out, "# backend: {backend}")?;
                for later in &candidates[at + 1..] {
                    writeln!(out, "# not {later}: {backend} comes first, and works")?;
                }
                return Ok((backend, plan));
            }
            Err(error) => {
                writeln!(out, "# not {backend}: {error}")?;
                refused.push((backend, error));
            }
        }
    }
    Err(InitError::NoBackend(refused))
}

/// Removes what can be removed, then fails if there was a backend that could not be looked at.
fn cleanup(dry_run: bool, out: &mut impl Write) -> Result<(), InitError> {
    if let Err(error) = routes::removal().and_then(|call| carry_out(call.as_slice(), dry_run, out)) {
        writeln!(out, "# routes that lead the pod's own addresses over lo may be left; they do no harm: {error}")?;
    }
    let mut unseen = Vec::new();
    for backend in Backend::ALL {
        match backend.removal() {
            Ok(calls) if calls.is_empty() => writeln!(out, "# {backend}: nothing of ours")?,
            Ok(calls) => remove(backend, &calls, dry_run, out)?,
            Err(error) => unseen.push((backend, error)),
        }
    }
    if unseen.is_empty() { Ok(()) } else { Err(InitError::Unseen(unseen)) }
}

fn remove(backend: Backend, calls: &[Call], dry_run: bool, out: &mut impl Write) -> Result<(), InitError> {
    if calls.is_empty() {
        return Ok(());
    }
    carry_out(calls, dry_run, out)?;
    let removed = if dry_run { "would be removed" } else { "removed" };
    writeln!(out, "# {backend}: rules of an earlier run {removed}")?;
    Ok(())
}

fn carry_out(calls: &[Call], dry_run: bool, out: &mut impl Write) -> Result<(), InitError> {
    for call in calls {
        if dry_run { write!(out, "{call}")? } else { drop(tool::run(call)?) }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Command, FromArgMatches};
    use hauberk_mesh::{ProxySpec, TrustDomain};

    fn parse(args: &[&str]) -> InitArgs {
        let command = InitArgs::augment_args(Command::new("init").no_binary_name(true));
        InitArgs::from_arg_matches(&command.get_matches_from(args)).expect("valid arguments")
    }

    #[test]
    fn flags_become_the_redirection() {
        let args = parse(&[
            "--proxy-uid=7",
            "--skip-inbound-ports=22,4000-4010",
            "--skip-outbound-ports=25",
            "--skip-subnets=10.9.0.0/16,fd09::/64",
        ]);
        let expected = Redirection {
            proxy_uid: 7,
            skip_inbound_ports: "22,4000-4010".parse().expect("valid"),
            skip_outbound_ports: "25".parse().expect("valid"),
            skip_subnets: "10.9.0.0/16,fd09::/64".parse().expect("valid"),
        };
        assert_eq!(args.redirection().expect("valid"), expected);
        assert_eq!(parse(&[]).redirection().expect("valid"), Redirection::default());
        assert_eq!(parse(&[]).backend, BackendChoice::Auto);
    }

    #[test]
    fn refuses_a_proxy_that_runs_as_root() {
        let error = run(&parse(&["--proxy-uid=0"]), &mut Vec::new()).expect_err("root");
        assert!(error.to_string().contains("every container that runs as root would bypass the mesh"), "{error}");
    }

    #[test]
    fn init_reads_the_variables_that_the_proxy_reads() {
        let identity = TrustDomain::default().identity("web", "shop").expect("valid");
        let addr = "10.0.0.1:1".parse().expect("an address");
        let mut spec = ProxySpec::new(identity, addr, addr, "roots".to_owned());
        spec.redirection = parse(&["--skip-inbound-ports=1", "--skip-outbound-ports=2", "--skip-subnets=10.0.0.0/8"])
            .redirection()
            .expect("valid");
        let written: Vec<_> = spec.to_env().into_iter().map(|(name, _)| name).collect();
        let command = InitArgs::augment_args(Command::new("init"));
        let read: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).collect();
        assert_eq!(read.len(), 4);
        assert!(read.iter().all(|name| written.contains(name)), "{read:?} of {written:?}");
    }
}
