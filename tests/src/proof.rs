//! Holds `docs/proof.toml` to what it claims: every line that must be shown is there, and the tests that it names exist
//! and ran. Pure: texts in, faults out.

use std::collections::BTreeSet;

use serde::Deserialize;

/// The sections, in order: letter, number of lines, the issues that they belong to.
const SECTIONS: [(char, usize, &str); 7] = [
    ('D', 21, "traffic"),
    ('I', 5, "traffic"),
    ('F', 12, "faults"),
    ('P', 4, "bench"),
    ('K', 17, "kubernetes"),
    ('O', 12, "operations"),
    ('E', 1, "e2e"),
];

/// One thing wrong with the document, or with what it names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Fault {
    /// Not the format.
    #[error("docs/proof.toml: {0}")]
    Format(String),
    /// A line is absent, out of place, twice there, or unheard of.
    #[error("docs/proof.toml: line {at} is {found}, {expected} expected: all IDs, each once, in order")]
    Order {
        /// Counted from 1.
        at: usize,
        /// What stands there.
        found: String,
        /// What should.
        expected: String,
    },
    /// It belongs to another issue.
    #[error("{id}: issue is {found:?}, {expected:?} expected")]
    Issue {
        /// The line.
        id: String,
        /// What it says.
        found: String,
        /// What it should say.
        expected: &'static str,
    },
    /// It does not say what must be shown.
    #[error("{0}: says nothing: copy the sentence that must be shown")]
    Silent(String),
    /// Neither shown nor excused.
    #[error("{0}: has neither tests nor a reason in not-done: name the tests that show it")]
    Neither(String),
    /// Shown and excused.
    #[error("{0}: has tests, and a reason in not-done: keep one")]
    Both(String),
    /// No name of a test.
    #[error(
        "{id}: {name:?} is not the name of a test: write the crate or binary, a space, and the path that cargo prints"
    )]
    Name {
        /// The line.
        id: String,
        /// What stands there.
        name: String,
    },
    /// The same name twice under one line.
    #[error("{id}: names {name:?} twice")]
    Twice {
        /// The line.
        id: String,
        /// The name.
        name: String,
    },
    /// No source has it.
    #[error("{id}: no source has the test {name:?}")]
    Unknown {
        /// The line.
        id: String,
        /// The name.
        name: String,
    },
    /// It is not among what passed.
    #[error("{id}: the test {name:?} did not run and pass")]
    NotRun {
        /// The line.
        id: String,
        /// The name.
        name: String,
    },
}

/// `docs/proof.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    #[serde(rename = "line")]
    lines: Vec<Line>,
}

/// Who runs a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// `make test`.
    Test,
    /// `make e2e`.
    E2e,
}

/// One thing that must be shown.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Line {
    id: String,
    issue: String,
    says: String,
    /// Of `make test`.
    #[serde(default)]
    tests: Vec<String>,
    /// Of `make e2e`.
    #[serde(default)]
    e2e: Vec<String>,
    not_done: Option<String>,
}

impl Proof {
    /// Reads the document.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        toml::from_str(text).map_err(|error| Fault::Format(error.to_string()))
    }

    /// What is wrong with the document, given the names of the test functions of all sources.
    pub fn lint(&self, functions: &BTreeSet<String>) -> Vec<Fault> {
        let mut faults = Vec::from_iter(self.order());
        for line in &self.lines {
            faults.extend(line.lint());
            let unknown = line.all().filter(|name| !functions.contains(function(name)));
            faults.extend(unknown.map(|name| Fault::Unknown { id: line.id.clone(), name: name.clone() }));
        }
        faults
    }

    /// The named tests of `run` that are not in `passed`.
    pub fn not_run(&self, run: Run, passed: &BTreeSet<String>) -> Vec<Fault> {
        let named = self.lines.iter().flat_map(|line| line.of(run).iter().map(|name| (line.id.clone(), name.clone())));
        named.filter(|(_, name)| !passed.contains(name)).map(|(id, name)| Fault::NotRun { id, name }).collect()
    }

    /// How many lines have tests, and how many there are.
    pub fn shown(&self) -> (usize, usize) {
        (self.lines.iter().filter(|line| line.all().next().is_some()).count(), self.lines.len())
    }

    /// The first place where the IDs are not as they must be; what follows it would only repeat it.
    fn order(&self) -> Option<Fault> {
        let expected: Vec<_> = SECTIONS
            .iter()
            .flat_map(|(letter, count, issue)| (1..=*count).map(move |number| (format!("{letter}{number:02}"), *issue)))
            .collect();
        let absent = || "nothing".to_owned();
        for at in 0..expected.len().max(self.lines.len()) {
            let (found, wanted) = (self.lines.get(at), expected.get(at));
            let found_id = found.map_or_else(absent, |line| line.id.clone());
            let expected_id = wanted.map_or_else(absent, |(id, _)| id.clone());
            if found_id != expected_id {
                return Some(Fault::Order { at: at + 1, found: found_id, expected: expected_id });
            }
            if let (Some(line), Some((_, issue))) = (found, wanted)
                && line.issue != *issue
            {
                return Some(Fault::Issue { id: found_id, found: line.issue.clone(), expected: issue });
            }
        }
        None
    }
}

impl Line {
    fn of(&self, run: Run) -> &[String] {
        match run {
            Run::Test => &self.tests,
            Run::E2e => &self.e2e,
        }
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        self.tests.iter().chain(&self.e2e)
    }

    fn lint(&self) -> Vec<Fault> {
        let id = || self.id.clone();
        let mut faults = Vec::new();
        if self.says.trim().is_empty() {
            faults.push(Fault::Silent(id()));
        }
        match (self.all().next().is_none(), self.not_done.as_deref().map(str::trim)) {
            (true, None | Some("")) => faults.push(Fault::Neither(id())),
            (false, Some(_)) => faults.push(Fault::Both(id())),
            _ => {}
        }
        let mut seen = BTreeSet::new();
        for name in self.all() {
            if !is_name(name) {
                faults.push(Fault::Name { id: id(), name: name.clone() });
            }
            if !seen.insert(name) {
                faults.push(Fault::Twice { id: id(), name: name.clone() });
            }
        }
        faults
    }
}

/// A crate or binary, one space, the path of a test.
fn is_name(name: &str) -> bool {
    let is_path = |text: &str| !text.is_empty() && !text.contains(char::is_whitespace);
    name.split_once(' ').is_some_and(|(binary, path)| is_path(binary) && is_path(path))
}

/// The function of a test's name.
fn function(name: &str) -> &str {
    name.rsplit([' ', ':']).next().unwrap_or(name)
}

/// The names of the test functions in a source: those below an attribute `#[test]`, `#[tokio::test(…)]` or the like.
pub fn test_functions(source: &str) -> BTreeSet<String> {
    let mut functions = BTreeSet::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        if let Some(attribute) = line.strip_prefix("#[") {
            let path = attribute.split(['(', ']']).next().unwrap_or_default().trim();
            is_test |= path.rsplit("::").next() == Some("test");
        } else if let Some(name) = function_name(line) {
            if is_test {
                functions.insert(name.to_owned());
            }
            is_test = false;
        } else if line.ends_with(['{', '}', ';']) {
            is_test = false;
        }
    }
    functions
}

fn function_name(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub ").unwrap_or(line);
    let rest = rest.strip_prefix("async ").unwrap_or(rest).strip_prefix("fn ")?;
    rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().filter(|name| !name.is_empty())
}

/// The tests that passed, from what `cargo test` printed: each as the crate or binary that it is in, a space, its path.
pub fn passed(log: &str) -> BTreeSet<String> {
    let mut binary = None;
    let mut passed = BTreeSet::new();
    for line in log.lines() {
        let words = line.trim_start();
        if words.starts_with("Running ") {
            binary = running(words);
        } else if words.starts_with("Doc-tests ") {
            binary = None;
        } else if let (Some(binary), Some(test)) = (binary, line.strip_prefix("test ")) {
            let test = test.strip_suffix(" ... ok").map(|test| test.strip_suffix(" - should panic").unwrap_or(test));
            passed.extend(test.map(|test| format!("{binary} {test}")));
        }
    }
    passed
}

/// `Running tests/demo.rs (/path/deps/demo-0123456789abcdef)` is `demo`.
fn running(line: &str) -> Option<&str> {
    let (_, path) = line.strip_suffix(')')?.rsplit_once('(')?;
    let (name, _hash) = path.rsplit(['/', '\\']).next()?.rsplit_once('-')?;
    Some(name)
}

#[cfg(test)]
mod tests;
