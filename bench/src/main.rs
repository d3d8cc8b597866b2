//! `hauberk-bench`: what the mesh costs on this machine, beside what people would use otherwise. The arguments, the
//! order of the work, and where results go.

mod app;
mod cgroup;
#[cfg(test)]
mod committed;
mod congestion;
mod contender;
mod discovery;
mod floor;
mod load;
mod machine;
mod memory;
mod perf;
mod process;
mod profile;
mod report;
mod results;
mod rounds;
mod rows;
mod scene;
mod setting;
mod stats;
mod syscalls;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Result, bail, ensure};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{
    results::Line,
    rounds::{Extent, Samples},
    rows::{Group, Row},
    scene::Scene,
    setting::{OneCore, Setting},
};

/// Measures the mesh beside a direct connection, haproxy and nginx. Needs root; makes network namespaces of its own.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// How often each contender is measured.
    #[arg(long)]
    rounds: Option<usize>,
    /// Short: 3 rounds and short windows. For a look, not for a claim.
    #[arg(long)]
    quick: bool,
    /// Only these groups of rows, such as bulk-1,rtt-32. Nothing is written then.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Congestion control in the namespaces; behind it -one-core if everything is to share one. The first is measured
    /// whole, others where they matter.
    #[arg(long, value_delimiter = ',', default_value = "cubic,cubic-one-core,bbr")]
    settings: Vec<Setting>,
    /// Where results.json and results.md go.
    #[arg(long, default_value = "bench")]
    out: PathBuf,
    /// After a group, one more turn of ours with perf watching; its reports go below here, by setting.
    #[arg(long, value_name = "DIR")]
    profile: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Used by the benchmark itself: a bare TLS server, whose memory is what TLS costs at the least.
    #[command(hide = true)]
    Floor(floor::Options),
}

/// Clients and servers of 8,000 connections are in this process, both ends of them in each proxy; and room.
const DESCRIPTORS: u64 = 20_000;

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.command {
        Some(Command::Floor(options)) => raise_descriptor_limit().and_then(|()| floor::run(options)),
        None => run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    raise_descriptor_limit()?;
    let extent =
        if args.quick { Extent::quick(args.rounds.unwrap_or(3)) } else { Extent::full(args.rounds.unwrap_or(10)) };
    let (facts, mut lines) = (machine::facts(), Vec::new());
    for (name, value) in &facts {
        eprintln!("{name}: {value}");
    }
    check_names(&args.only)?;
    for (number, setting) in args.settings.iter().enumerate() {
        let mut rows = rows::rows(number > 0);
        rows.retain(|row| args.only.is_empty() || args.only.contains(&row.group.name()));
        lines.extend(measure(&rows, setting, extent, args.profile.as_deref())?);
    }
    if args.only.is_empty() {
        let note = format!(
            "{} rounds ({} at most where each starts from fresh pods).{}",
            extent.rounds,
            rounds::FRESH_ROUNDS,
            if args.quick {
                " A short run, an eighth of the idle connections: for a look, not for a claim."
            } else {
                ""
            }
        );
        std::fs::write(args.out.join("results.json"), serde_json::to_string_pretty(&lines)? + "\n")?;
        std::fs::write(args.out.join("results.md"), report::markdown(&facts, &note, &lines))?;
    }
    Ok(())
}

/// Whether every name is that of a group.
fn check_names(names: &[String]) -> Result<()> {
    let mut known: Vec<_> = rows::rows(false).iter().map(|row| row.group.name()).collect();
    known.dedup();
    match names.iter().find(|name| !known.contains(name)) {
        Some(name) => bail!("there is no group {name:?}: the groups are {}", known.join(", ")),
        None => Ok(()),
    }
}

/// All groups of `rows`, printed as they come.
fn measure(rows: &[Row], setting: &Setting, extent: Extent, profile: Option<&Path>) -> Result<Vec<Line>> {
    let _allowed = congestion::Allowed::new(&setting.congestion)?;
    let _shared = setting.one_core.then(OneCore::new).transpose()?;
    let mut scene = Scene::new(&setting.congestion)?;
    let mut groups: Vec<Group> = rows.iter().map(|row| row.group).collect();
    groups.dedup();
    let mut measured = BTreeMap::<Group, Samples>::new();
    for group in groups {
        eprintln!("{setting}: {} …", group.name());
        measured.insert(group, rounds::run(&mut scene, group, extent)?);
        if let Some(dir) = profile {
            rounds::profile(&mut scene, group, extent, &dir.join(setting.to_string()))?;
        }
        let of_group: Vec<_> = rows.iter().filter(|row| row.group == group).cloned().collect();
        for line in results::lines(&of_group, &measured, setting)? {
            println!("{}", brief(&line));
        }
    }
    results::lines(rows, &measured, setting)
}

fn brief(line: &Line) -> String {
    let Line { name, unit, against, ours, peer, ratio, low, high, rounds, .. } = line;
    let target = match (&line.target, line.met) {
        (Some(target), Some(true)) => format!("  {target}: met"),
        (Some(target), _) => format!("  {target}: NOT MET"),
        _ => String::new(),
    };
    let number = |value: &Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
    let (peer, ratio, low, high) = (number(peer), number(ratio), number(low), number(high));
    let against = against.unwrap_or("-");
    format!("{name:26} {ours:10.2} {unit:20} {against:12} {peer:>10}  x {ratio} ({low} to {high}, {rounds}){target}")
}

/// For this process and all that it starts.
fn raise_descriptor_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(hard >= DESCRIPTORS, "at most {hard} open files allowed: raise that to {DESCRIPTORS} (ulimit -Hn)");
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}
