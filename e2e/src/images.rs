//! The images, made without a registry from what `cargo build` made.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::kind::{limited, run, script};

/// It takes seconds.
const BUILD_LIMIT: Duration = Duration::from_secs(180);
/// What is in the two images.
const BINARIES: [&str; 4] = ["hauberk-proxy", "hauberk-identity", "hauberk-destination", "hauberk-webhook"];
/// The archives, as `e2e/kind/images.sh` calls them.
const ARCHIVES: [&str; 3] = ["proxy", "controller", "apps"];

/// Archives of the images: `docker load` and `kind load image-archive` take them. Gone with this handle.
#[derive(Debug)]
pub struct Images {
    dir: TempDir,
}

impl Images {
    /// Name and tag of the one that test applications are made of: curl, nginx, redis, etcd, busybox.
    pub const APPS: &str = "hauberk.test/apps:1";

    /// Makes them of the binaries under test.
    pub fn build() -> Result<Self> {
        let found = BINARIES.iter().map(|name| hauberk_lab::find_binary(name)).collect::<Result<Vec<_>>>()?;
        let binaries = found[0].parent().context("a binary is in a directory")?;
        let dir = tempfile::Builder::new().prefix("hauberk-images-").tempdir()?;
        let mut build = script("images.sh");
        build.arg(binaries).arg(dir.path());
        run(limited(build, BUILD_LIMIT)).context("cannot make the images")?;
        Ok(Self { dir })
    }

    /// The archive `proxy`, `controller` or `apps`.
    pub fn archive(&self, image: &str) -> PathBuf {
        self.dir.path().join(format!("{image}.tar"))
    }

    pub(crate) fn archives(&self) -> impl Iterator<Item = PathBuf> {
        let dir: &Path = self.dir.path();
        ARCHIVES.iter().map(move |image| dir.join(format!("{image}.tar")))
    }
}
