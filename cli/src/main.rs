//! `hauberk`: the command that people use. One subcommand is one module; here are only the arguments and the exit code.

mod cluster;
mod coverage;
mod demo;
mod identity;
mod inject;
mod install;
mod interrupt;
mod manifest;
mod output;
mod uninstall;
mod version;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Automatic mutual TLS between pods.
#[derive(Debug, Parser)]
#[command(name = "hauberk", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Install(Box<install::Options>),
    Uninstall(uninstall::Options),
    Inject(inject::InjectOptions),
    Uninject(inject::UninjectOptions),
    Identity(identity::Options),
    Coverage(coverage::Options),
    /// Runs a small mesh with real applications on this machine, captures its packets, and shows what was private.
    Demo(demo::Options),
    Version(version::Options),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Install(options) => install::run(&options),
        Command::Uninstall(options) => uninstall::run(&options),
        Command::Inject(options) => inject::inject(&options),
        Command::Uninject(options) => inject::uninject(&options),
        Command::Identity(options) => identity::run(&options),
        Command::Coverage(options) => coverage::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Version(options) => version::run(&options),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
