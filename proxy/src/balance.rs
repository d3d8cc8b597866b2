//! Which endpoint gets the next connection: the better of two random ones, by open streams over weight. Pure.

use std::time::Duration;

/// What is known of one candidate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Candidate {
    /// Streams open or being opened. Idle pooled connections do not count.
    pub(crate) open: usize,
    /// Share of the connections, at least 1.
    pub(crate) weight: u32,
    /// It failed lately; the others come first.
    pub(crate) cooling: bool,
}

/// The index of the chosen candidate. `random` gives a number below its argument, which is never 0.
pub(crate) fn pick(candidates: &[Candidate], mut random: impl FnMut(usize) -> usize) -> Option<usize> {
    let healthy: Vec<usize> = (0..candidates.len()).filter(|&i| !candidates[i].cooling).collect();
    let among = if healthy.is_empty() { (0..candidates.len()).collect() } else { healthy };
    let first = match among.len() {
        0 => return None,
        1 => return Some(among[0]),
        count => random(count),
    };
    let other = (first + 1 + random(among.len() - 1)) % among.len();
    let (a, b) = (among[first], among[other]);
    Some(if cost(&candidates[b]) < cost(&candidates[a]) { b } else { a })
}

/// Open streams, with the one to come, for each unit of weight.
fn cost(candidate: &Candidate) -> f64 {
    (candidate.open as f64 + 1.0) / f64::from(candidate.weight.max(1))
}

/// How long an endpoint cools after so many failures in a row.
pub(crate) fn cooldown(failures: u32) -> Duration {
    let seconds = 1u64 << failures.saturating_sub(1).min(5);
    Duration::from_secs(seconds.min(30))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(open: usize, weight: u32, cooling: bool) -> Candidate {
        Candidate { open, weight, cooling }
    }

    #[test]
    fn the_better_of_two_wins() {
        for (candidates, chosen) in [
            (vec![candidate(3, 1, false), candidate(2, 1, false)], 1),
            (vec![candidate(3, 2, false), candidate(2, 1, false)], 0),
            (vec![candidate(9, 1, false), candidate(0, 1, true)], 0),
            (vec![candidate(9, 1, true), candidate(0, 1, true)], 1),
        ] {
            for first in 0..2 {
                assert_eq!(pick(&candidates, |below| first.min(below - 1)), Some(chosen), "{candidates:?}");
            }
        }
        assert_eq!(pick(&[], |_| 0), None);
    }

    #[test]
    fn cooling_doubles_up_to_30_seconds() {
        let seconds: Vec<u64> = (0..9).map(|failures| cooldown(failures).as_secs()).collect();
        assert_eq!(seconds, [1, 1, 2, 4, 8, 16, 30, 30, 30]);
    }

    proptest! {
        #[test]
        fn the_costlier_of_all_is_chosen_only_among_equals(
            opens in proptest::collection::vec((0usize..50, 1u32..5, any::<bool>()), 1..12),
            seeds in proptest::collection::vec(any::<usize>(), 2),
        ) {
            let candidates: Vec<_> = opens.iter().map(|&(open, weight, cooling)| candidate(open, weight, cooling)).collect();
            let mut seeds = seeds.into_iter();
            let chosen = pick(&candidates, |below| seeds.next().unwrap_or(0) % below).expect("there is one");
            let all_cool = candidates.iter().all(|c| c.cooling);
            prop_assert!(all_cool || !candidates[chosen].cooling);
            let rivals: Vec<_> = candidates.iter().enumerate()
                .filter(|(i, c)| *i != chosen && (all_cool || !c.cooling)).map(|(_, c)| cost(c)).collect();
            prop_assert!(rivals.is_empty() || rivals.iter().any(|&rival| rival >= cost(&candidates[chosen])));
        }
    }
}
