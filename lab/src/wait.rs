//! Waiting for what a process does not announce: readiness of servers, listening ports.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

/// How often a condition is looked at that nobody announces.
const INTERVAL: Duration = Duration::from_millis(10);

/// Looks until `look` says yes, at most `limit`. `Err` from `look` ends it at once; the text of the last "not yet" is
/// part of the error when the time is over.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Result<T, String>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look()? {
            Ok(value) => return Ok(value),
            Err(pending) if Instant::now() >= deadline => {
                return Err(anyhow!("{what}: not within {limit:?}: {pending}"));
            }
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}
