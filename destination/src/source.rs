//! `MeshSource`: the one writer of the hub in standalone mode. Reads `mesh.yaml` again and again, compares bytes (a
//! rename, a swapped symlink and an edit in place look alike), and keeps the last good state over a bad edit.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hauberk_mesh::{InvalidMesh, MeshFile, TrustDomain};
use tokio::{io::AsyncReadExt, time};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{Index, hub::Hub, metrics::Metrics};

/// How soon an edit is seen.
const POLL: Duration = Duration::from_millis(200);
/// 16 MiB: some 50,000 pods.
const MAX_BYTES: u64 = 16 << 20;

/// Why a file gives no state.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSource {
    /// It cannot be read.
    #[error("{path}: {error}: --services names a mesh.yaml that this process may read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is too large.
    #[error("{0}: larger than {MAX_BYTES} bytes: describe the mesh in a smaller file")]
    TooLarge(PathBuf),
    /// Its content is at fault.
    #[error("{path}: {error}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        error: InvalidMesh,
    },
}

/// A `mesh.yaml` and what it said when it was last read.
pub struct MeshSource {
    path: PathBuf,
    domain: TrustDomain,
    metrics: Metrics,
    /// The bytes, or why there are none: what stays as it was is neither parsed nor reported again.
    seen: Result<Vec<u8>, String>,
}

impl MeshSource {
    /// Reads the file for the first time: here a fault is fatal, as there is no last good state.
    pub async fn open(path: &Path, domain: TrustDomain, metrics: Metrics) -> Result<(Self, Arc<Hub>), InvalidSource> {
        let bytes = read(path).await?;
        let source = Self { path: path.to_owned(), domain, metrics, seen: Ok(bytes) };
        let index = source.parse(source.seen.as_deref().expect("just read"))?;
        source.note(&index);
        Ok((source, Hub::new(index)))
    }

    /// Follows the file until `stop`.
    pub async fn follow(mut self, hub: Arc<Hub>, stop: CancellationToken) {
        let mut poll = time::interval(POLL);
        poll.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(poll.tick()).await.is_some() {
            if let Some(index) = self.reread().await {
                hub.publish(index);
            }
        }
    }

    /// The new state, if the file changed and is valid.
    async fn reread(&mut self) -> Option<Index> {
        let read = read(&self.path).await;
        let seen = read.as_ref().map(Vec::clone).map_err(ToString::to_string);
        if seen == self.seen {
            return None;
        }
        self.seen = seen;
        match read.and_then(|bytes| self.parse(&bytes)) {
            Ok(index) => {
                info!(file = %self.path.display(), "the mesh changed");
                self.note(&index);
                Some(index)
            }
            Err(fault) => {
                error!("{fault}; the last good state stays in force");
                self.metrics.mesh_file(false);
                None
            }
        }
    }

    fn parse(&self, bytes: &[u8]) -> Result<Index, InvalidSource> {
        let invalid = |error| InvalidSource::Invalid { path: self.path.clone(), error };
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() as u64;
            invalid(InvalidMesh { line, column: 0, what: "not UTF-8: save the file as UTF-8".to_owned() })
        })?;
        MeshFile::parse(text).map(|file| Index::from_mesh(&file, &self.domain)).map_err(invalid)
    }

    fn note(&self, index: &Index) {
        let nameless = index.nameless();
        for (pod, why) in &nameless {
            warn!("pod {}/{} is left out where it is meshed: {why}", pod.namespace, pod.name);
        }
        self.metrics.mesh_file(true);
        self.metrics.nameless(nameless.len());
    }
}

impl fmt::Debug for MeshSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshSource").field("path", &self.path).finish_non_exhaustive()
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, InvalidSource> {
    let unreadable = |error| InvalidSource::Unreadable { path: path.to_owned(), error };
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).await.map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES { Err(InvalidSource::TooLarge(path.to_owned())) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::{
        subject::{Subject, Topic},
        testing::MESH,
    };

    struct File {
        dir: tempfile::TempDir,
        source: MeshSource,
        metrics: Metrics,
    }

    async fn open(yaml: impl AsRef<[u8]>) -> Result<File, InvalidSource> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("mesh.yaml");
        fs::write(&path, yaml).expect("written");
        let metrics = Metrics::default();
        let (source, _) = MeshSource::open(&path, TrustDomain::default(), metrics.clone()).await?;
        Ok(File { dir, source, metrics })
    }

    fn account(index: Option<Index>) -> Option<String> {
        let topic = Topic::Addr("10.1.0.3:80".parse().expect("an address"));
        match index?.subject(&topic) {
            Some(Subject::Pod(pod, _)) => Some(pod.service_account.clone()),
            _ => None,
        }
    }

    fn mesh(account: &str) -> String {
        MESH.replace("serviceAccount: old", &format!("serviceAccount: {account}"))
    }

    #[tokio::test]
    async fn edits_renames_and_swapped_links_are_seen_and_silence_is_not() {
        let mut file = open(MESH).await.expect("valid");
        let path = file.source.path.clone();
        let other = |name: &str| file.dir.path().join(name);
        assert_eq!(account(file.source.reread().await), None, "nothing changed");
        fs::write(&path, mesh("aaa")).expect("written");
        assert_eq!(account(file.source.reread().await), Some("aaa".to_owned()), "in place, at the same length");
        fs::write(other("new"), mesh("bbb")).expect("written");
        fs::rename(other("new"), &path).expect("renamed");
        assert_eq!(account(file.source.reread().await), Some("bbb".to_owned()));
        fs::write(other("linked"), mesh("ccc")).expect("written");
        symlink(other("linked"), other("link")).expect("linked");
        fs::rename(other("link"), &path).expect("renamed");
        assert_eq!(account(file.source.reread().await), Some("ccc".to_owned()));
        assert_eq!(account(file.source.reread().await), None);
    }

    #[tokio::test]
    async fn a_bad_edit_gives_no_new_state_and_is_counted_once() {
        let mut file = open(MESH).await.expect("valid");
        let path = file.source.path.clone();
        for bad in [MESH.replace("uid: u1", "uid: u0").as_bytes(), b"", b"\xff"] {
            fs::write(&path, bad).expect("written");
            assert_eq!(file.source.reread().await, None);
            assert_eq!(file.source.reread().await, None, "reported once");
        }
        fs::remove_file(&path).expect("removed");
        assert_eq!(file.source.reread().await, None);
        let text = file.metrics.text();
        assert!(text.contains("hauberk_destination_mesh_file_valid 0"), "{text}");
        assert!(text.contains("hauberk_destination_mesh_file_loads_total{result=\"invalid\"} 4"), "{text}");
        fs::write(&path, mesh("new")).expect("written");
        assert_eq!(account(file.source.reread().await), Some("new".to_owned()));
        assert!(file.metrics.text().contains("hauberk_destination_mesh_file_valid 1"));
    }

    #[tokio::test]
    async fn a_bad_file_at_the_start_is_refused_with_its_line() {
        for (yaml, message) in [
            (MESH.replace("uid: u1", "uid: u0").into_bytes(), "mesh.yaml: line 11, column 5: pod shop/web-1: uid"),
            (b"networks: ''\n\xff".to_vec(), "mesh.yaml: line 2, column 0: not UTF-8"),
        ] {
            let error = open(yaml).await.err().expect("refused").to_string();
            assert!(error.contains(message), "{error}");
        }
        let missing = MeshSource::open(Path::new("/nowhere/mesh.yaml"), TrustDomain::default(), Metrics::default());
        let error = missing.await.expect_err("refused").to_string();
        assert!(error.contains("/nowhere/mesh.yaml") && error.contains("--services"), "{error}");
    }

    #[tokio::test]
    async fn a_pod_that_can_have_no_identity_is_counted() {
        let file = open(MESH.replace("serviceAccount: web", "serviceAccount: Web")).await.expect("valid");
        let text = file.metrics.text();
        assert!(text.contains("hauberk_destination_nameless_pods 1"), "{text}");
    }
}
