//! When to renew, and how long to wait after a failure. Pure.

use std::time::{Duration, SystemTime};

/// When a certificate that was `issued` and ends at `expires` is renewed: at 65 to 75 % of its life, by `jitter` from 0
/// to 1, so that what started together does not renew together.
pub fn renew_at(issued: SystemTime, expires: SystemTime, jitter: f64) -> SystemTime {
    let life = expires.duration_since(issued).unwrap_or_default();
    issued + life.mul_f64(0.65 + 0.1 * jitter.clamp(0.0, 1.0))
}

/// How long to wait after `failures` in a row (from 1 on): doubled each time up to `most`, and of that a half to the
/// whole, by `jitter` from 0 to 1.
pub(crate) fn backoff(failures: u32, first: Duration, most: Duration, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(20);
    let full = first.saturating_mul(1 << doublings).min(most);
    full.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_certificate_is_renewed_at_seventy_percent_of_its_life() {
        for (issued, expires, jitter, renewed) in [
            (1000, 2000, 0.5, 1700),
            (1000, 2000, 0.0, 1650),
            (1000, 2000, 1.0, 1750),
            (0, 86_400, 0.5, 60_480),
            (1000, 2000, 7.0, 1750),
            (1000, 2000, -7.0, 1650),
            (1000, 1000, 0.5, 1000),
            // Ended before it was issued: at once, not in the past of the past.
            (1000, 10, 0.5, 1000),
        ] {
            let found = renew_at(at(issued), at(expires), jitter);
            let off = found.duration_since(at(renewed)).unwrap_or_else(|early| early.duration());
            assert!(off < Duration::from_millis(1), "{issued} {expires} {jitter}: {found:?}");
        }
    }

    #[test]
    fn failures_wait_longer_up_to_a_bound() {
        let (first, most) = (Duration::from_millis(100), Duration::from_secs(10));
        for (failures, jitter, wait) in [
            (1, 1.0, 100),
            (1, 0.0, 50),
            (2, 1.0, 200),
            (7, 1.0, 6400),
            (8, 1.0, 10_000),
            (u32::MAX, 1.0, 10_000),
            (u32::MAX, 0.0, 5000),
        ] {
            assert_eq!(backoff(failures, first, most, jitter), Duration::from_millis(wait), "{failures} {jitter}");
        }
    }
}
