//! Samples become results: a line for each row of the closed list, complete or an error.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde::Serialize;

use crate::{
    contender::Contender,
    rounds::Samples,
    rows::{Group, Row, Target},
    setting::Setting,
    stats::{Interval, interval, median},
};

/// A line of `results.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Line {
    /// Of the row.
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    /// Which peer `peer` is of; absent where there is nothing to compare with.
    pub(crate) against: Option<&'static str>,
    /// Median over the rounds, ours.
    pub(crate) ours: f64,
    /// Median over the rounds, the peer's.
    pub(crate) peer: Option<f64>,
    /// Median of the rounds' ratios, ours over the peer's; absent where the peer's was not above 0.
    pub(crate) ratio: Option<f64>,
    /// Ends of the interval of the median ratio; without a peer, of the median of ours.
    pub(crate) low: Option<f64>,
    pub(crate) high: Option<f64>,
    /// The chance that the interval holds it: at least 0.95 from 6 rounds on.
    pub(crate) confidence: Option<f64>,
    pub(crate) rounds: usize,
    /// What it was measured under, as in `--settings`.
    pub(crate) setting: String,
    /// What the issue asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<String>,
    /// Whether it is so, by the end of the interval that is worse for us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) met: Option<bool>,
}

/// A line for each of `rows`; an error that names all that is missing.
pub(crate) fn lines(rows: &[Row], measured: &BTreeMap<Group, Samples>, setting: &Setting) -> Result<Vec<Line>> {
    let lines: Vec<_> = rows.iter().map(|row| line(row, measured, setting).ok_or(row)).collect();
    let missing: Vec<_> = lines.iter().filter_map(|line| line.as_ref().err()).map(|row| full_name(row)).collect();
    if !missing.is_empty() {
        bail!("not measured under {setting}: {}", missing.join(", "));
    }
    Ok(lines.into_iter().flatten().collect())
}

fn full_name(row: &Row) -> String {
    row.against.map_or(row.name.clone(), |peer| format!("{} against {}", row.name, peer.name()))
}

/// `None` without a number for every round of both.
fn line(row: &Row, measured: &BTreeMap<Group, Samples>, setting: &Setting) -> Option<Line> {
    let samples = measured.get(&row.group)?;
    let values = |contender| {
        let values = samples.get(&(contender, row.metric)).map(Vec::as_slice)?;
        (!values.is_empty() && values.iter().all(|value| value.is_finite())).then_some(values)
    };
    let ours = values(row.ours)?;
    let peer = match row.against {
        Some(peer) => Some(values(peer).filter(|peer| peer.len() == ours.len())?),
        None => None,
    };
    let ratios = peer.and_then(|peer| ratios(ours, peer));
    let spread = if peer.is_some() { ratios.as_deref() } else { Some(ours) }.map(interval);
    Some(Line {
        name: row.name.clone(),
        unit: row.unit,
        against: row.against.map(Contender::name),
        ours: median(ours),
        peer: peer.map(median),
        ratio: ratios.as_deref().map(median),
        low: spread.map(|spread| spread.low),
        high: spread.map(|spread| spread.high),
        confidence: spread.map(|spread| spread.confidence),
        rounds: ours.len(),
        setting: setting.to_string(),
        target: row.target.map(text),
        met: row.target.map(|target| is_met(target, ours, peer, spread)),
    })
}

/// Round by round; `None` if the peer's is not above 0 in all.
fn ratios(ours: &[f64], peer: &[f64]) -> Option<Vec<f64>> {
    ours.iter().zip(peer).map(|(ours, peer)| (*peer > 0.0).then(|| ours / peer)).collect()
}

fn is_met(target: Target, ours: &[f64], peer: Option<&[f64]>, ratio: Option<Interval>) -> bool {
    let worst = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::MIN, f64::max);
    match target {
        Target::RatioAtLeast(least) => ratio.is_some_and(|ratio| ratio.low >= least),
        Target::RatioAtMost(most) => ratio.is_some_and(|ratio| ratio.high <= most),
        Target::AtMost(most) => worst(&mut ours.iter().copied()) <= most,
        Target::MoreAtMost(most) => {
            peer.is_some_and(|peer| worst(&mut ours.iter().zip(peer).map(|(ours, peer)| ours - peer)) <= most)
        }
    }
}

fn text(target: Target) -> String {
    match target {
        Target::RatioAtLeast(least) => format!("at least {least} x"),
        Target::RatioAtMost(most) => format!("at most {most} x"),
        Target::AtMost(most) => format!("at most {most}"),
        Target::MoreAtMost(most) => format!("at most {most} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        contender::Contender::{Haproxy, Hauberk},
        rows::{Metric, rows},
    };

    fn setting(name: &str) -> Setting {
        name.parse().expect("any text is one")
    }

    fn whole(rows: &[Row]) -> BTreeMap<Group, Samples> {
        let mut measured = BTreeMap::<Group, Samples>::new();
        for row in rows {
            let samples = measured.entry(row.group).or_default();
            samples.insert((row.ours, row.metric), vec![2.0, 3.0, 4.0]);
            if let Some(peer) = row.against {
                samples.insert((peer, row.metric), vec![1.0, 1.0, 1.0]);
            }
        }
        measured
    }

    fn samples(measured: &mut BTreeMap<Group, Samples>, group: Group) -> &mut Samples {
        measured.get_mut(&group).expect("whole")
    }

    #[test]
    fn a_row_that_was_not_measured_fails_the_run_by_name() {
        let all = rows(false);
        assert_eq!(lines(&all, &whole(&all), &setting("cubic")).expect("complete").len(), all.len());
        for row in &all {
            let mut measured = whole(&all);
            samples(&mut measured, row.group).remove(&(row.against.unwrap_or(row.ours), row.metric));
            let error = lines(&all, &measured, &setting("cubic")).expect_err(&row.name).to_string();
            assert!(error.contains(&full_name(row)), "{error}");
        }
    }

    #[test]
    fn a_round_that_is_missing_or_no_number_is_not_measured() {
        let all = rows(true);
        for values in [vec![1.0, 1.0], vec![], vec![1.0, f64::INFINITY, 1.0], vec![1.0, f64::NAN, 1.0]] {
            let mut measured = whole(&all);
            samples(&mut measured, Group::Bulk(1)).insert((Haproxy, Metric::Rate), values);
            assert!(lines(&all, &measured, &setting("bbr")).is_err());
        }
    }

    #[test]
    fn there_is_no_ratio_to_nothing_and_no_target_of_it_is_met() {
        let row = rows(true).into_iter().find(|row| row.against == Some(Haproxy)).expect("a row");
        let mut measured = whole(std::slice::from_ref(&row));
        samples(&mut measured, row.group).insert((Haproxy, row.metric), vec![1.0, 0.0, 1.0]);
        let row = Row { target: Some(Target::RatioAtMost(9.0)), ..row };
        let lines = lines(&[row], &measured, &setting("bbr")).expect("complete");
        assert_eq!((lines[0].ratio, lines[0].low, lines[0].peer, lines[0].met), (None, None, Some(1.0), Some(false)));
    }

    #[test]
    fn a_target_is_met_only_by_the_worse_end() {
        let wanted = |row: &Row| row.ours == Hauberk && row.against == Some(Haproxy);
        let row = rows(false).into_iter().find(wanted).expect("a row");
        let measured = whole(std::slice::from_ref(&row));
        for (target, met) in [
            (Target::RatioAtLeast(2.0), true),
            (Target::RatioAtLeast(2.1), false),
            (Target::RatioAtMost(4.0), true),
            (Target::RatioAtMost(3.9), false),
            (Target::AtMost(4.0), true),
            (Target::AtMost(3.9), false),
            (Target::MoreAtMost(3.0), true),
            (Target::MoreAtMost(2.9), false),
        ] {
            let row = Row { target: Some(target), ..row.clone() };
            let lines = lines(&[row], &measured, &setting("cubic")).expect("complete");
            assert_eq!(lines[0].met, Some(met), "{target:?}");
            let Line { ours, ratio, low, high, .. } = &lines[0];
            assert_eq!((*ours, *ratio, *low, *high), (3.0, Some(3.0), Some(2.0), Some(4.0)));
        }
    }
}
