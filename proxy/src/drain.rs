//! When a proxy that was told to stop accepts no more. Pure: what is open and what time it is, in; yes or not yet, out.

use std::time::{Duration, Instant};

use hauberk_mesh::SidecarKind;

/// A plain sidecar ends once nothing has been open for so long: the application may be between two connections.
pub(crate) const QUIET: Duration = Duration::from_secs(2);

/// The time since SIGTERM, as far as it matters.
#[derive(Debug)]
pub(crate) struct Draining {
    sidecar: SidecarKind,
    quiet_since: Instant,
}

impl Draining {
    /// Begins at `now`.
    pub(crate) fn new(sidecar: SidecarKind, now: Instant) -> Self {
        Self { sidecar, quiet_since: now }
    }

    /// Whether to accept no more from `now` on. A native sidecar's applications have ended: it only finishes. A plain
    /// one's may still open connections: it goes on until there has been none for a while. To be asked often.
    pub(crate) fn is_over(&mut self, busy: bool, now: Instant) -> bool {
        if busy {
            self.quiet_since = now;
        }
        self.sidecar == SidecarKind::Native || now.duration_since(self.quiet_since) >= QUIET
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_plain_sidecar_goes_on_until_it_was_quiet_for_as_long_as_that_and_a_native_one_stops_at_once(
            looks in proptest::collection::vec((0u64..1500, any::<bool>()), 1..60),
        ) {
            let start = Instant::now();
            let mut native = Draining::new(SidecarKind::Native, start);
            let mut plain = Draining::new(SidecarKind::Plain, start);
            let (mut now, mut last_busy) = (start, start);
            for (millis, busy) in looks {
                now += Duration::from_millis(millis);
                if busy {
                    last_busy = now;
                }
                prop_assert!(native.is_over(busy, now));
                prop_assert_eq!(plain.is_over(busy, now), now.duration_since(last_busy) >= QUIET);
            }
        }
    }
}
