//! Medians and their intervals. Pure.

/// The middle of `values`, of two middles the mean. Panics without values: who has none has not measured.
pub(crate) fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// The value that a share of all values (0 to 1) does not exceed: the nearest rank. Sorts `values`.
pub(crate) fn percentile(values: &mut [u32], share: f64) -> u32 {
    values.sort_unstable();
    let rank = (share * values.len() as f64).ceil() as usize;
    values[rank.clamp(1, values.len()) - 1]
}

/// Where a median lies, and how sure that is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Interval {
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// The chance that the interval holds the true median: at least 0.95 from 6 values on.
    pub(crate) confidence: f64,
}

/// The interval of the sign test: two of the values themselves, by rank, as narrow as 95 % allows. It assumes nothing of
/// the distribution but that rounds are independent. Fewer than 6 values give their range, and its lower confidence.
pub(crate) fn interval(values: &[f64]) -> Interval {
    let sorted = sorted(values);
    let n = sorted.len();
    let mut cut = 0;
    while 2 * (cut + 1) < n && confidence(n, cut + 1) >= 0.95 {
        cut += 1;
    }
    Interval { low: sorted[cut], high: sorted[n - 1 - cut], confidence: confidence(n, cut) }
}

/// The chance that the median lies between the values of rank `cut` from below and from above (0: the outermost).
fn confidence(n: usize, cut: usize) -> f64 {
    let (mut term, mut tail) = (0.5f64.powi(n as i32), 0.0);
    for k in 0..=cut {
        tail += term;
        term *= (n - k) as f64 / (k + 1) as f64;
    }
    (1.0 - 2.0 * tail).max(0.0)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
    }

    #[test]
    fn a_percentile_is_a_value_that_was_seen() {
        let mut values: Vec<u32> = (1..=100).rev().collect();
        assert_eq!(percentile(&mut values, 0.5), 50);
        assert_eq!(percentile(&mut values, 0.99), 99);
        assert_eq!(percentile(&mut values, 1.0), 100);
        assert_eq!(percentile(&mut [9], 0.99), 9);
    }

    #[test]
    fn the_interval_is_that_of_the_tables_of_the_sign_test() {
        for (n, cut, confidence) in [(5, 0, 0.9375), (6, 0, 0.96875), (10, 1, 0.978_515_625), (20, 5, 0.958_610_534)] {
            let values: Vec<f64> = (0..n).rev().map(f64::from).collect();
            let interval = interval(&values);
            assert_eq!((interval.low, interval.high), (f64::from(cut), f64::from(n - 1 - cut)), "{n}");
            assert!((interval.confidence - confidence).abs() < 1e-9, "{n}: {interval:?}");
        }
    }

    #[test]
    fn few_values_give_their_range_and_say_so() {
        assert_eq!(interval(&[2.0, 1.0, 3.0]), Interval { low: 1.0, high: 3.0, confidence: 0.75 });
        assert_eq!(interval(&[2.0]), Interval { low: 2.0, high: 2.0, confidence: 0.0 });
    }
}
