//! How long and how much: short in `make test`, in full in `make soak`; the same code. And what a full run reports.

use std::{env, fs, path::Path, time::Duration};

/// Names the directory for the report of a full run; `make soak` sets it.
const SOAK: &str = "HAUBERK_SOAK";

/// Times and numbers of what takes long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    /// The control plane is away for so long.
    pub(crate) away: Duration,
    /// A client says nothing for so long.
    pub(crate) silence: Duration,
    /// A half-closed connection is silent for so long.
    pub(crate) half_closed: Duration,
    /// Connections that echo twice, and the time between.
    pub(crate) connections: usize,
    pub(crate) between: Duration,
    /// New connections a second, and for how long.
    pub(crate) rate: usize,
    pub(crate) rate_for: Duration,
    /// The load under rotation, and for how long.
    pub(crate) servers: usize,
    pub(crate) streams: usize,
    pub(crate) new_a_second: usize,
    pub(crate) rotation: Duration,
}

impl Form {
    /// The one that is asked for.
    pub(crate) fn now() -> Self {
        if env::var_os(SOAK).is_some() { Self::full() } else { Self::short() }
    }

    fn full() -> Self {
        Self {
            away: Duration::from_secs(600),
            silence: Duration::from_secs(60),
            half_closed: Duration::from_secs(180),
            connections: 5000,
            between: Duration::from_secs(60),
            rate: 2000,
            rate_for: Duration::from_secs(120),
            servers: 6,
            streams: 100,
            new_a_second: 200,
            rotation: Duration::from_secs(60),
        }
    }

    fn short() -> Self {
        Self {
            away: Duration::from_secs(3),
            silence: Duration::from_secs(4),
            half_closed: Duration::from_secs(4),
            connections: 300,
            between: Duration::from_secs(1),
            rate: 100,
            rate_for: Duration::from_secs(3),
            servers: 2,
            streams: 20,
            new_a_second: 20,
            rotation: Duration::from_secs(9),
        }
    }
}

/// Writes a line of the report, in a full run.
pub(crate) fn report(line: &str, numbers: &str) {
    eprintln!("{line}: {numbers}");
    if let Some(dir) = env::var_os(SOAK) {
        fs::write(Path::new(&dir).join(line), format!("{numbers}\n")).expect("the report's directory is writable");
    }
}
