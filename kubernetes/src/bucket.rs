//! `Bucket`: so many at once, and then one more each time. Pure: the clock is an argument.

use std::time::{Duration, Instant};

/// How much is let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// At once.
    pub burst: u32,
    /// The time after which one more is.
    pub every: Duration,
}

/// A token bucket; starts full.
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, tokens: f64::from(rate.burst), at: now }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let any = self.has(now);
        if any {
            self.tokens -= 1.0;
        }
        any
    }

    /// Whether there is one.
    pub fn has(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.tokens >= 1.0
    }

    /// Whether it is as good as new.
    pub fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.tokens >= f64::from(self.rate.burst)
    }

    fn refill(&mut self, now: Instant) {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() / self.rate.every.as_secs_f64();
        self.tokens = (self.tokens + gained).min(f64::from(self.rate.burst));
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_a_burst_through_and_then_one_each_time() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate { burst: 3, every: Duration::from_secs(2) }, start);
        assert!(bucket.is_full(start));
        assert_eq!([(); 5].map(|()| bucket.take(start)), [true, true, true, false, false]);
        assert!(!bucket.has(start + Duration::from_millis(1900)));
        assert!(bucket.take(start + Duration::from_secs(2)) && !bucket.has(start + Duration::from_secs(3)));
        assert!(bucket.is_full(start + Duration::from_secs(60)));
    }
}
