//! `results.md`: the lines as tables that a person reads. Pure.

use std::fmt::Write;

use crate::{contender::Contender, results::Line};

const PEERS: [Contender; 3] = [Contender::Haproxy, Contender::Nginx, Contender::Direct];

/// The whole document.
pub(crate) fn markdown(facts: &[(&str, String)], note: &str, lines: &[Line]) -> String {
    let mut text = "# Results\n\nWritten by `make bench`; how it is measured, and what to make of it, is in README.md. \
                    Each number is the median over the rounds. Beside a peer's: ours over the peer's, round by round, its median \
                    and in brackets the interval that holds it with 95 % confidence (with fewer than 6 rounds: their range). \
                    A target is met if the worse end of the interval meets it.\n\n"
        .to_owned();
    for (name, value) in facts {
        push(&mut text, format_args!("- {name}: {value}"));
    }
    push(&mut text, format_args!("\n{note}"));
    let mut settings: Vec<_> = lines.iter().map(|line| line.setting.as_str()).collect();
    settings.dedup();
    for setting in settings {
        push(&mut text, format_args!("\n## With {setting}\n"));
        push(&mut text, format_args!("| row | unit | ours | haproxy | nginx | direct | others | asked | met |"));
        push(&mut text, format_args!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |"));
        let under: Vec<_> = lines.iter().filter(|line| line.setting == setting).collect();
        for (first, line) in under.iter().enumerate() {
            let row: Vec<_> = under.iter().copied().filter(|other| other.name == line.name).collect();
            if under.iter().position(|other| other.name == line.name) == Some(first) {
                push(&mut text, format_args!("| {} |", cells(&row).join(" | ")));
            }
        }
    }
    text
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a String cannot fail");
}

/// The row of a table: all lines of one name.
fn cells(row: &[&Line]) -> Vec<String> {
    let of = |peer: Contender| row.iter().find(|line| line.against == Some(peer.name()));
    let mut cells = vec![row[0].name.clone(), row[0].unit.to_owned(), ours(row)];
    cells.extend(PEERS.map(|peer| of(peer).map_or(String::new(), |line| beside(line))));
    let known = PEERS.map(|peer| Some(peer.name()));
    let others = row.iter().filter(|line| line.against.is_some() && !known.contains(&line.against));
    let others: Vec<_> = others.map(|line| format!("{} {}", line.against.unwrap_or_default(), beside(line))).collect();
    cells.push(others.join(", "));
    let asked = row.iter().find(|line| line.target.is_some());
    cells.push(asked.and_then(|line| line.target.clone()).unwrap_or_default());
    cells.push(match asked.and_then(|line| line.met) {
        Some(true) => "met".to_owned(),
        Some(false) => "**not met**".to_owned(),
        None => String::new(),
    });
    cells
}

/// Ours; with its interval where there is no peer to give one.
fn ours(row: &[&Line]) -> String {
    let line = row[0];
    match (line.against, line.low, line.high) {
        (None, Some(low), Some(high)) => format!("{} [{} to {}]", number(line.ours), number(low), number(high)),
        _ => number(line.ours),
    }
}

/// A peer's number and ours over it.
fn beside(line: &Line) -> String {
    let peer = line.peer.map_or("-".to_owned(), number);
    match (line.ratio, line.low, line.high) {
        (Some(ratio), Some(low), Some(high)) => {
            format!("{peer}: {} x [{} to {}]", number(ratio), number(low), number(high))
        }
        _ => peer,
    }
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, against: Option<&'static str>, target: Option<bool>) -> Line {
        Line {
            name: name.to_owned(),
            unit: "MB/s",
            against,
            ours: 1234.5,
            peer: against.map(|_| 600.0),
            ratio: against.map(|_| 2.057),
            low: Some(1.9),
            high: Some(2.2),
            confidence: Some(0.97),
            rounds: 10,
            setting: "cubic".to_owned(),
            target: target.map(|_| "at least 1.8 x".to_owned()),
            met: target,
        }
    }

    #[test]
    fn a_row_has_all_its_peers_and_its_target() {
        let lines = [
            line("bulk-1/rate", Some("direct"), None),
            line("bulk-1/rate", Some("haproxy"), Some(true)),
            line("full", Some("haproxy-full"), None),
            line("full", Some("haproxy"), Some(false)),
            line("alone", None, None),
        ];
        let text = markdown(&[("Kernel", "6.1".to_owned())], "10 rounds.", &lines);
        for row in [
            "- Kernel: 6.1\n",
            "\n10 rounds.\n\n## With cubic\n",
            "| bulk-1/rate | MB/s | 1234 | 600: 2.06 x [1.90 to 2.20] |  | 600: 2.06 x [1.90 to 2.20] |  | at least 1.8 x | met |\n",
            "| full | MB/s | 1234 | 600: 2.06 x [1.90 to 2.20] |  |  | haproxy-full 600: 2.06 x [1.90 to 2.20] | at least 1.8 x | **not met** |\n",
            "| alone | MB/s | 1234 [1.90 to 2.20] |  |  |  |  |  |  |\n",
        ] {
            assert!(text.contains(row), "{row}\nis not in\n{text}");
        }
    }
}
