//! Where the binaries of Kubernetes are, which `e2e/kind/build.sh` builds.

use std::{env, path::PathBuf};

use anyhow::{Context, Result, bail};

/// The version of Kubernetes that is built and tested against; `e2e/kind/env.sh` says the same.
pub const KUBERNETES: &str = "v1.34.4";

/// The binary of that name: `kube-apiserver`, `etcd`, `kubectl`, `helm`, ….
pub fn find(name: &str) -> Result<PathBuf> {
    let bin = cache()?.join(format!("kubernetes-{KUBERNETES}/bin"));
    let path = bin.join(name);
    // Written last: without it, a build was broken off.
    if !bin.join(".done").is_file() || !path.is_file() {
        bail!("there is no {}: run `make kubernetes`, which builds it (minutes, once)", path.display());
    }
    Ok(path)
}

/// What is built once and kept.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(cache) = env::var_os("HAUBERK_CACHE") {
        return Ok(cache.into());
    }
    let home = env::var_os("HOME").context("neither HAUBERK_CACHE nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache/hauberk"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_build_the_version_that_is_looked_for() {
        let said = format!("V=${{V:-{KUBERNETES}}}");
        assert!(include_str!("../kind/env.sh").contains(&said), "env.sh does not say {said}");
    }

    #[test]
    fn a_missing_binary_is_named_with_the_remedy() {
        let error = find("nonesuch").expect_err("there is none").to_string();
        assert!(error.contains("/nonesuch: run `make kubernetes`"), "{error}");
    }
}
