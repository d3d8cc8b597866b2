//! Checks `docs/proof.toml`: `proof lint` against the sources, `proof ran LOG` and `proof ran-e2e LOG` against what
//! `cargo test` printed in `make test` and in `make e2e`.
//! To be run at the root of the tree.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use hauberk_tests::proof::{Fault, Proof, Run, passed, test_functions};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("proof: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all is as it should be.
fn run(arguments: &[&str]) -> Result<bool> {
    let proof = Proof::parse(&read(Path::new("docs/proof.toml"))?)?;
    let faults = match arguments {
        ["lint"] => proof.lint(&sources()?),
        ["ran", log] => proof.not_run(Run::Test, &passed(&read(Path::new(log))?)),
        ["ran-e2e", log] => proof.not_run(Run::E2e, &passed(&read(Path::new(log))?)),
        _ => bail!("write `proof lint`, or `proof ran LOG` (or `ran-e2e`) with what `cargo test` printed"),
    };
    report(&proof, &faults);
    Ok(faults.is_empty())
}

fn report(proof: &Proof, faults: &[Fault]) {
    for fault in faults {
        eprintln!("proof: {fault}");
    }
    let (shown, all) = proof.shown();
    eprintln!("proof: {shown} of {all} lines have tests; {} faults", faults.len());
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path)
        .with_context(|| format!("cannot read {} (run this at the root of the tree)", path.display()))
}

/// The names of all test functions of the workspace.
fn sources() -> Result<BTreeSet<String>> {
    let mut functions = BTreeSet::new();
    let mut folders = vec![PathBuf::from(".")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            let path = entry.path();
            let name = entry.file_name();
            let hidden = name == "target" || name.as_encoded_bytes().starts_with(b".");
            if entry.file_type()?.is_dir() && !hidden {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                functions.append(&mut test_functions(&read(&path)?));
            }
        }
    }
    Ok(functions)
}
