//! How many threads a proxy gets: one, which is enough for a sidecar and needs no locks between connections; more only where
//! the container's CPU limit allows more than one whole core. Without a limit the cores are the application's.

use std::{fs, num::NonZero, thread::available_parallelism};

/// As the container sees its own control group, in the second and in the first version.
const LIMIT: &str = "/sys/fs/cgroup/cpu.max";
const OLD_QUOTA: &str = "/sys/fs/cgroup/cpu/cpu.cfs_quota_us";
const OLD_PERIOD: &str = "/sys/fs/cgroup/cpu/cpu.cfs_period_us";

/// How many threads this process should have.
pub fn threads() -> usize {
    let cores = available_parallelism().map_or(1, NonZero::get);
    decide(|path| fs::read_to_string(path).ok(), cores)
}

/// The whole cores of the limit, at least one and at most those that there are.
fn decide(read: impl Fn(&str) -> Option<String>, cores: usize) -> usize {
    let current = read(LIMIT).and_then(|limit| {
        let (quota, period) = limit.trim().split_once(' ')?;
        whole_cores(quota, period)
    });
    let old = || whole_cores(&read(OLD_QUOTA)?, &read(OLD_PERIOD)?);
    current.or_else(old).unwrap_or(1).clamp(1, cores.max(1))
}

/// No limit is `max` in the second version and `-1` in the first: no number of either.
fn whole_cores(quota: &str, period: &str) -> Option<usize> {
    let (quota, period): (u64, u64) = (quota.trim().parse().ok()?, period.trim().parse().ok()?);
    usize::try_from(quota.checked_div(period)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn threads_with(files: &[(&str, &str)], cores: usize) -> usize {
        decide(|path| files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned()), cores)
    }

    #[test]
    fn more_than_one_thread_only_from_a_limit_above_one_core() {
        for (limit, cores, threads) in [
            ("max 100000\n", 8, 1),
            ("50000 100000\n", 8, 1),
            ("100000 100000\n", 8, 1),
            ("199000 100000\n", 8, 1),
            ("200000 100000\n", 8, 2),
            ("250000 100000\n", 8, 2),
            ("1600000 100000\n", 8, 8),
            ("200000 0\n", 8, 1),
            ("", 8, 1),
            ("200000 100000\n", 1, 1),
            ("200000 100000\n", 0, 1),
        ] {
            assert_eq!(threads_with(&[(LIMIT, limit)], cores), threads, "{limit:?} on {cores} cores");
        }
        for (quota, threads) in [("-1\n", 1), ("150000\n", 1), ("300000\n", 3)] {
            let files = [(OLD_QUOTA, quota), (OLD_PERIOD, "100000\n")];
            assert_eq!(threads_with(&files, 8), threads, "{quota:?}");
        }
        assert_eq!(threads_with(&[(OLD_QUOTA, "300000")], 8), 1, "half of it");
        assert_eq!(threads_with(&[], 8), 1, "no control group");
    }

    proptest! {
        #[test]
        fn no_text_makes_none_or_too_many(text in ".{0,40}", quota: u64, period: u64, cores in 0usize..64) {
            for text in [text, format!("{quota} {period}")] {
                prop_assert!((1..=cores.max(1)).contains(&threads_with(&[(LIMIT, &text)], cores)));
            }
        }
    }
}
