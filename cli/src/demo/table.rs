//! The report as people read it: one line for each exchange, failures in red, a last line with the verdict.

use super::check::{Report, Row};

const HEADINGS: [&str; 8] =
    ["FROM", "TO", "PROTOCOL", "SECURED", "IDENTITIES", "BYTES", "PLAINTEXT SEEN ON THE WIRE", "WHY"];
const RED: &str = "31";
const GREEN: &str = "32";

/// How to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    /// With colours: for terminals.
    pub(crate) color: bool,
}

/// The whole report, with a line break at the end.
pub(crate) fn render(report: &Report, style: Style) -> String {
    let cells: Vec<_> = report.rows.iter().map(cells).collect();
    let mut widths = HEADINGS.map(|heading| heading.chars().count());
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = line(&HEADINGS.map(str::to_owned), &widths) + "\n";
    for (row, cells) in report.rows.iter().zip(&cells) {
        let line = line(cells, &widths);
        text += &if row.failures.is_empty() { line } else { style.paint(RED, &line) };
        text += "\n";
    }
    text += "\n";
    for failure in failures(report) {
        text += &(style.paint(RED, &format!("FAILED  {failure}")) + "\n");
    }
    text + &verdict(report, style)
}

impl Style {
    fn paint(self, color: &str, text: &str) -> String {
        if self.color { format!("\x1b[{color}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn cells(row: &Row) -> [String; 8] {
    let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    [
        row.from.to_owned(),
        row.to.to_owned(),
        row.protocol.to_owned(),
        or_none(&row.secured),
        or_none(&row.identities),
        row.bytes.to_string(),
        row.plaintext.clone(),
        row.why.clone(),
    ]
}

fn line(cells: &[String; 8], widths: &[usize; 8]) -> String {
    let padded: Vec<_> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
    padded.join("  ").trim_end().to_owned()
}

fn failures(report: &Report) -> impl Iterator<Item = String> {
    let rows = report.rows.iter().flat_map(|row| {
        row.failures.iter().map(move |failure| format!("{} to {}, {}: {failure}", row.from, row.to, row.protocol))
    });
    rows.chain(report.failures.iter().cloned())
}

fn verdict(report: &Report, style: Style) -> String {
    if !report.passed() {
        let count = failures(report).count();
        return style.paint(RED, &format!("Checks that failed: {count}. This is not what Hauberk promises.")) + "\n";
    }
    let said = format!(
        "All as it must be. {} TCP connections were captured on the bridge, no packet was missed, and what is mTLS above \
         showed nothing on the wire but TLS 1.3.",
        report.flows
    );
    style.paint(GREEN, &said) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(plaintext: &str, failures: &[&str]) -> Row {
        Row {
            from: "shopper",
            to: "web-0",
            protocol: "HTTP",
            secured: "mtls".to_owned(),
            identities: "frontend.shop → web.shop".to_owned(),
            bytes: 1234,
            plaintext: plaintext.to_owned(),
            why: "both have a proxy".to_owned(),
            failures: failures.iter().map(|&failure| failure.to_owned()).collect(),
        }
    }

    #[test]
    fn all_is_well() {
        let other = Row { secured: String::new(), identities: String::new(), to: "old-server", ..row("none", &[]) };
        let report = Report { rows: vec![row("none", &[]), other], failures: vec![], flows: 12 };
        insta::assert_snapshot!(render(&report, Style { color: false }));
    }

    #[test]
    fn a_failed_check_is_a_red_line() {
        let rows = vec![row("none", &[]), row("YES: marker", &["in the clear on the wire: marker", "other"])];
        let report = Report { rows, failures: vec!["the capture missed 3 packets".to_owned()], flows: 12 };
        insta::assert_snapshot!(render(&report, Style { color: true }).replace('\x1b', "ESC"));
    }
}
