//! Holds what is committed, `results.json` and `README.md`, to the closed list of rows.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::rows::{Group, Metric, Row, rows};

const README: &str = include_str!("../README.md");
const SETTINGS: [(&str, bool); 3] = [("cubic", false), ("cubic-one-core", true), ("bbr", true)];

type Key = (String, String, Option<String>);

fn key(row: &Row, setting: &str) -> Key {
    (setting.to_owned(), row.name.clone(), row.against.map(|peer| peer.name().to_owned()))
}

/// Of the committed results, by setting, row and peer.
fn results() -> BTreeMap<Key, Value> {
    let lines: Vec<Value> = serde_json::from_str(include_str!("../results.json")).expect("JSON");
    let text = |line: &Value, field: &str| line[field].as_str().map(str::to_owned);
    let key = |line: &Value| (text(line, "setting"), text(line, "name"), text(line, "against"));
    let named = lines.into_iter().map(|line| match key(&line) {
        (Some(setting), Some(name), against) => ((setting, name, against), line),
        _ => panic!("a line without a name: {line}"),
    });
    named.collect()
}

#[test]
fn the_committed_results_have_every_row_with_rounds_and_interval_and_no_other() {
    let results = results();
    let wanted: BTreeSet<_> = SETTINGS
        .iter()
        .flat_map(|(name, second)| rows(*second).iter().map(|row| key(row, name)).collect::<Vec<_>>())
        .collect();
    assert_eq!(results.keys().cloned().collect::<BTreeSet<_>>(), wanted);
    for (setting, second) in SETTINGS {
        for row in rows(second) {
            let line = &results[&key(&row, setting)];
            let number = |field: &str| line[field].as_f64();
            let fresh = matches!(row.group, Group::Memory(_) | Group::Discovery(_));
            let least = if fresh { crate::rounds::FRESH_ROUNDS } else { 10 };
            assert!(line["rounds"].as_u64() >= Some(least as u64), "{line}");
            assert!(number("ours").is_some() && line["unit"] == row.unit, "{line}");
            if row.against.is_some() {
                assert!(number("peer").is_some(), "{line}");
            }
            // There is no ratio to a peer that had nothing in some round, as can be with these two alone.
            let may_be_nothing = matches!(row.metric, Metric::Sockets | Metric::IdleCpu) && line["ratio"].is_null();
            if row.against.is_none() || !may_be_nothing {
                let (low, high) = (number("low").expect("a number"), number("high").expect("a number"));
                assert!(low <= high && number("confidence") >= Some(0.95), "{line}");
            }
            assert_eq!(row.target.is_some(), line["met"].is_boolean(), "{line}");
        }
    }
}

#[test]
fn the_memory_of_bare_rustls_stands_beside_ours_and_what_is_left_after_close_beside_idle() {
    let results = results();
    let number = |name: &str, peer: &str, field: &str| {
        let line = &results[&("cubic".to_owned(), name.to_owned(), Some(peer.to_owned()))];
        line[field].as_f64().expect("a number")
    };
    for name in ["memory-1000/anonymous-in", "memory-8000/anonymous-in"] {
        let [ours, floor] = ["ours", "peer"].map(|field| number(name, "rustls", field));
        assert!(ours > 0.0 && ours < floor, "{name}: {ours} and {floor} bytes");
    }
    for name in ["memory-8000/closed-in", "memory-8000/closed-out"] {
        let left = number(name, "haproxy", "ours");
        assert!(left <= 4.0, "{name}: {left} MiB above idle");
    }
}

#[test]
fn the_readme_says_of_every_group_where_its_time_or_memory_goes_and_what_was_asked_of_the_kernel() {
    let (_, read) = README.split_once("\n## Where the time goes\n").expect("a section of that name");
    for row in rows(false) {
        let group = row.group.name();
        assert!(
            read.lines().any(|line| line.starts_with('|') && line.contains(&group)),
            "no line of a table on {group}"
        );
    }
    let results = results();
    for group in ["rtt-1", "rtt-32"] {
        for peer in ["haproxy", "nginx"] {
            let row = ("cubic".to_owned(), format!("{group}/syscalls"), Some(peer.to_owned()));
            let calls = |field: &str| format!("{:.2}", results[&row][field].as_f64().expect("a number"));
            let told = |line: &str| {
                line.starts_with(&format!("| {group} "))
                    && line.contains(&calls("ours"))
                    && line.contains(&calls("peer"))
            };
            assert!(read.lines().any(told), "{row:?}: {} and {}", calls("ours"), calls("peer"));
        }
    }
}
