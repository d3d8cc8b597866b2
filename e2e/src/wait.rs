//! Waiting for what gives no sign: a server that begins to answer, what a controller makes of something else.

use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::time::{Instant, sleep, timeout_at};

/// How often is asked.
const INTERVAL: Duration = Duration::from_millis(25);

/// Asks until there is an answer, at most `limit`. An outer error of `ask` ends it at once; the last inner one, a "not
/// yet", is part of the error when the time is over.
pub async fn until<T>(what: &str, limit: Duration, mut ask: impl AsyncFnMut() -> Result<Result<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut pending = anyhow!("no answer");
    while let Ok(asked) = timeout_at(deadline, ask()).await {
        match asked? {
            Ok(answer) => return Ok(answer),
            Err(not_yet) => pending = not_yet,
        }
        sleep(INTERVAL).await;
    }
    Err(anyhow!("{what}: not within {limit:?}: {pending:#}"))
}
