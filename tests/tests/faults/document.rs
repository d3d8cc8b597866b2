//! The document and the tests: every row has a test of its name, and every test of a fault has a row.

use std::{collections::BTreeSet, fs, path::Path};

use super::row::Row;

/// Names of the tests in the sources of `dir`.
fn tests_in(dir: &str, skip: &[&str]) -> BTreeSet<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(dir);
    let mut names = BTreeSet::new();
    for file in fs::read_dir(&dir).expect("the sources are there") {
        let path = file.expect("readable").path();
        if skip.iter().any(|name| path.ends_with(name)) {
            continue;
        }
        let source = fs::read_to_string(&path).expect("readable");
        let mut lines = source.lines();
        while lines.by_ref().any(|line| line == "#[test]") {
            let name = lines.next().and_then(|line| line.strip_prefix("fn ")).expect("a function after #[test]");
            names.insert(name.split('(').next().expect("a name").to_owned());
        }
    }
    names
}

#[test]
fn every_row_of_the_document_is_a_test_and_every_test_of_a_fault_is_a_row() {
    let rows: BTreeSet<_> = Row::all().iter().map(Row::test).collect();
    assert!(rows.len() >= 30, "{rows:?}");
    assert_eq!(rows.len(), Row::all().len(), "no fault stands there twice");
    let faults = tests_in("faults", &["document.rs"]);
    let elsewhere = tests_in("mesh", &[]);
    let without_test: Vec<_> = rows.iter().filter(|row| !faults.contains(*row) && !elsewhere.contains(*row)).collect();
    assert!(without_test.is_empty(), "rows without a test: {without_test:#?}");
    let without_row: Vec<_> = faults.difference(&rows).collect();
    assert!(without_row.is_empty(), "tests without a row: {without_row:#?}");
}
