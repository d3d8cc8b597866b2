//! `hauberk-proxy`: `run` is the sidecar, `init` sets the redirection and exits.

use std::{io::IsTerminal, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use hauberk_mesh::ProxySpec;
use hauberk_proxy::{
    RecordLayer,
    init::{self, InitArgs},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// glibc's keeps nearly all of what many connections held when they have closed.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Hauberk's sidecar.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// What to log, such as info or hauberk_proxy=debug.
    #[arg(long, env = "RUST_LOG", default_value = "info", global = true)]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Proxy the pod's connections. All settings come from the environment, as the webhook writes them.
    Run {
        /// What carries the data of mesh connections after the handshake: own, or rustls as the reference.
        #[arg(long, default_value = "own")]
        record_layer: RecordLayer,
        /// How many threads; unless given, one, or the whole cores of the container's CPU limit.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
        threads: Option<u16>,
    },
    /// Redirect the pod's connections to the proxy.
    Init(InitArgs),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(&args.log).with_ansi(colours).with_writer(std::io::stderr).init();
    let done = match &args.command {
        Command::Run { record_layer, threads } => {
            run(*record_layer, threads.map_or_else(hauberk_proxy::threads, usize::from))
        }
        Command::Init(args) => init::run(args, &mut std::io::stdout()).map_err(anyhow::Error::from),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hauberk-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(layer: RecordLayer, threads: usize) -> Result<()> {
    let spec = ProxySpec::from_env(std::env::vars()).context("the proxy's environment")?;
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.worker_threads(threads).enable_all().build().context("starting")?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("handling SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("handling SIGINT")?;
        let mut running = std::pin::pin!(hauberk_proxy::run(spec, layer, stop.clone()));
        loop {
            tokio::select! {
                ended = &mut running => return Ok(ended?),
                _ = terminate.recv() => stop.cancel(),
                _ = interrupt.recv() => stop.cancel(),
            }
        }
    })
}
