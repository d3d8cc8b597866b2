//! How long to wait before asking again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(5);

/// Waits that double with each failure.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// What was asked has been answered: the next failure is a first one.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Counts a failure and waits.
    pub(super) async fn pause(&mut self) {
        let wait = wait(self.failures, rand::random());
        self.failures = self.failures.saturating_add(1);
        tokio::time::sleep(wait).await;
    }
}

/// Half to all of the doubled wait: many proxies, and many addresses of one, do not come back at the same moment.
fn wait(failures: u32, jitter: f64) -> Duration {
    let whole = FIRST.saturating_mul(1 << failures.min(16)).min(MOST);
    whole.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_differ() {
        let millis = |failures, jitter| wait(failures, jitter).as_millis();
        assert_eq!([0, 1, 2].map(|failures| millis(failures, 1.0)), [100, 200, 400]);
        assert_eq!([6, 16, 17, u32::MAX].map(|failures| millis(failures, 1.0)), [5000; 4]);
        assert_eq!((millis(0, 0.0), millis(u32::MAX, 0.0)), (50, 2500));
    }
}
