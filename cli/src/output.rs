//! What commands print: tables for people, JSON and YAML for programs. Pure.

use clap::ValueEnum;
use serde_json::Value;

/// How to print, as kubectl's `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns.
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

impl Format {
    /// The value in this format; `table` is what people see.
    pub(crate) fn render(self, value: &Value, table: impl FnOnce() -> String) -> String {
        match self {
            Self::Table => table(),
            Self::Json => format!("{value:#}\n"),
            Self::Yaml => hauberk_deploy::document(value),
        }
    }
}

/// Columns as kubectl's: three spaces apart, no spaces at the end of a line.
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = headings.map(|heading| heading.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("   ").trim_end().to_owned() + "\n"
    };
    let mut text = line(headings);
    for row in rows {
        text += &line(std::array::from_fn(|i| row[i].as_str()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["web-0".to_owned(), "x".to_owned()], ["b".to_owned(), String::new()]];
        assert_eq!(table(["POD", "ID"], &rows), "POD     ID\nweb-0   x\nb\n");
    }
}
