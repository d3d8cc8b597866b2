//! What a candidate for a Lease does next. Pure: the clock is handed in, and it is our own. Times that others wrote are
//! compared with each other only, never with ours.

use std::time::Duration;

use k8s_openapi::{api::coordination::v1::LeaseSpec, apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use tokio::time::Instant;

use super::LeaseTimes;

/// Nobody's hold lasts longer than this after its last sign of life, whatever stands in the Lease.
const LONGEST: Duration = Duration::from_secs(60);

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Turn {
    /// It is ours, or free: write this.
    Write(LeaseSpec),
    /// Another holds it, for so long if it shows no sign of life.
    Wait(Duration),
}

/// The Lease as it was last seen, and since when it has not changed.
#[derive(Debug, Default)]
pub(super) struct Seen(Option<(LeaseSpec, Instant)>);

impl Seen {
    /// Takes note of what was `found` at `now`, and decides for the candidate `me`.
    pub(super) fn turn(
        &mut self,
        found: LeaseSpec,
        me: &str,
        times: &LeaseTimes,
        now: Instant,
        date: Timestamp,
    ) -> Turn {
        let since = match &self.0 {
            Some((last, since)) if *last == found => *since,
            _ => now,
        };
        let holder = found.holder_identity.as_deref().unwrap_or_default();
        let free = holder.is_empty() || holder == me || now >= since + hold(&found, times);
        let turn = if free {
            Turn::Write(claim(&found, me, times, date))
        } else {
            Turn::Wait(since + hold(&found, times) - now)
        };
        self.0 = Some((found, since));
        turn
    }
}

/// As its holder wrote it, who may be of another version than we are.
fn hold(found: &LeaseSpec, times: &LeaseTimes) -> Duration {
    let written = found.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    written.map_or(times.lease, Duration::from_secs).max(times.lease).min(LONGEST)
}

fn claim(found: &LeaseSpec, me: &str, times: &LeaseTimes, date: Timestamp) -> LeaseSpec {
    let ours = found.holder_identity.as_deref() == Some(me);
    let transitions = found.lease_transitions.unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: Some(i32::try_from(times.lease.as_secs()).unwrap_or(i32::MAX).max(1)),
        acquire_time: if ours { found.acquire_time.clone() } else { Some(MicroTime(date)) },
        renew_time: Some(MicroTime(date)),
        lease_transitions: Some(if ours { transitions } else { transitions.saturating_add(1) }),
        ..found.clone()
    }
}

/// What a leader writes that leaves; none if the Lease is not its own.
pub(super) fn released(found: LeaseSpec, me: &str) -> Option<LeaseSpec> {
    let ours = found.holder_identity.as_deref() == Some(me);
    ours.then_some(LeaseSpec { holder_identity: None, ..found })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: LeaseTimes =
        LeaseTimes { lease: Duration::from_secs(10), renew: Duration::from_secs(7), retry: Duration::from_secs(2) };

    fn date(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn held(by: &str, renewed: i64) -> LeaseSpec {
        claim(&LeaseSpec::default(), by, &TIMES, date(renewed))
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_free_or_ours_is_written_and_transitions_count_the_holders() {
        let now = Instant::now();
        let mut seen = Seen::default();
        let Turn::Write(first) = seen.turn(LeaseSpec::default(), "a", &TIMES, now, date(5)) else { panic!("free") };
        assert_eq!((first.holder_identity.as_deref(), first.lease_transitions), (Some("a"), Some(1)));
        let Turn::Write(renewed) = seen.turn(first.clone(), "a", &TIMES, now, date(6)) else { panic!("ours") };
        assert_eq!((&renewed.acquire_time, renewed.lease_transitions), (&first.acquire_time, Some(1)));
        assert_ne!(renewed.renew_time, first.renew_time);
        let free = released(renewed.clone(), "a").expect("ours");
        assert_eq!(released(renewed, "b"), None);
        let Turn::Write(second) = seen.turn(free, "b", &TIMES, now, date(7)) else { panic!("released") };
        assert_eq!((second.holder_identity.as_deref(), second.lease_transitions), (Some("b"), Some(2)));
    }

    #[test]
    fn another_holds_it_until_nothing_was_seen_of_it_for_its_whole_duration() {
        let start = Instant::now();
        let mut seen = Seen::default();
        // However old or new the dates are that the holder wrote: its clock is not ours.
        for (after, renewed, left) in [(0, 1, 10), (4, 1, 6), (9, 1, 1), (9, 2_000_000_000, 10), (18, 2_000_000_000, 1)]
        {
            let turn = seen.turn(held("a", renewed), "b", &TIMES, start + seconds(after), date(50));
            assert_eq!(turn, Turn::Wait(seconds(left)), "after {after} s");
        }
        let turn = seen.turn(held("a", 2_000_000_000), "b", &TIMES, start + seconds(19), date(50));
        assert!(matches!(turn, Turn::Write(_)), "{turn:?}");
    }

    #[test]
    fn the_longer_duration_counts_within_a_bound() {
        for (written, left) in [(Some(1), 10), (Some(30), 30), (Some(3600), 60), (Some(-5), 10), (None, 10)] {
            let found = LeaseSpec { lease_duration_seconds: written, ..held("a", 1) };
            let turn = Seen::default().turn(found, "b", &TIMES, Instant::now(), date(1));
            assert_eq!(turn, Turn::Wait(seconds(left)), "{written:?}");
        }
    }
}
