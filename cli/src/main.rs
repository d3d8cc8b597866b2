//! `hauberk`: the command that people use. One subcommand is one module; here are only the arguments and the exit code.

mod demo;
mod interrupt;

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
    /// Runs a small mesh with real applications on this machine, captures its packets, and shows what was private.
    Demo(demo::Options),
    /// Prints the version.
    Version,
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Demo(options) => demo::run(&options),
        Command::Version => {
            println!("hauberk {}", env!("CARGO_PKG_VERSION"));
            Ok(true)
        }
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
