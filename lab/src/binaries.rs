//! Where the binaries under test are.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// Overrides where binaries are looked for.
const BIN_DIR: &str = "HAUBERK_BIN_DIR";

/// The binary under test of that name: beside the running program, or above it if that is a test's.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = directory()?.join(name);
    if !path.is_file() {
        bail!("there is no {}: run `make build`, or name the directory of the binaries in {BIN_DIR}", path.display());
    }
    Ok(path)
}

fn directory() -> Result<PathBuf> {
    if let Some(dir) = env::var_os(BIN_DIR) {
        return Ok(dir.into());
    }
    let program = env::current_exe().context("the running program has no path")?;
    let dir = program.parent().unwrap_or(Path::new("/"));
    Ok(if dir.ends_with("deps") || dir.ends_with("examples") { dir.join("..") } else { dir.to_owned() })
}

/// Gives `binary` a second name at `to`, where every user may run it: the build's directory may be root's alone.
pub(crate) fn publish(binary: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        return Ok(());
    }
    // Another thread's lab is another directory, but one lab's pods may start together: the rename is atomic.
    let own = to.with_extension(format!("{:?}", std::thread::current().id()));
    if fs::hard_link(binary, &own).is_err() {
        fs::copy(binary, &own).with_context(|| format!("cannot copy {}", binary.display()))?;
    }
    Ok(fs::rename(&own, to)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_binary_is_named_with_the_remedy() {
        let error = find("nonesuch").expect_err("there is none").to_string();
        assert!(error.contains("/nonesuch: run `make build`"), "{error}");
    }
}
