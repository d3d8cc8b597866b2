//! `hauberk demo`: real applications through a real mesh on this machine, every packet between the pods captured, and
//! what was private shown in a table. Nothing of the data path is made for it: the binaries and the redirection are the
//! ones that run in Kubernetes.

mod applications;
mod check;
mod requirements;
mod scene;
mod table;

use std::io::IsTerminal;

use anyhow::Result;
use hauberk_mesh::PortSet;

use crate::interrupt::Interrupt;
use check::check;
use scene::Scene;
use table::Style;

/// What a demo can be told.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Stay up after the table, with commands to try, until Ctrl-C.
    #[arg(long)]
    stay: bool,
    /// Ports of others that every pod's rules let pass, as the annotation of that name sets them: 8081,9000-9010. What
    /// passes is in plaintext, and the demo says so and fails.
    #[arg(long, value_name = "PORTS", default_value = "", hide_default_value = true)]
    skip_outbound_ports: PortSet,
}

/// Runs the demo; whether everything was as it must be.
pub(crate) fn run(options: &Options) -> Result<bool> {
    requirements::check()?;
    let interrupt = Interrupt::new()?;
    let mut scene = Scene::set(&options.skip_outbound_ports)?;
    // Programs of ours may have heard Ctrl-C too: then their failure is not what to tell.
    let evidence = scene.play(&interrupt).or_else(|error| interrupt.check().and(Err(error)))?;
    let report = check(&evidence);
    let style = Style { color: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() };
    print!("\n{}", table::render(&report, style));
    if options.stay {
        scene.stay(&interrupt)?;
    }
    Ok(report.passed())
}
