//! Which pods exist. A token is not enough: whoever may create tokens could have one for a pod that is gone, or that
//! never was in the mesh.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use hauberk_mesh::{InvalidMesh, MeshFile};
use tracing::{info, warn};

use super::Metrics;
use crate::fs;

/// 100,000 pods have some 20 MB.
const LARGEST_MESH: u64 = 64 << 20;

/// What must be known of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// Its UID.
    pub uid: String,
    /// The account that it runs as.
    pub service_account: String,
    /// Where it runs, if that is known.
    pub node: Option<String>,
    /// Whether it has our proxy.
    pub meshed: bool,
    /// Whether it has ended.
    pub ended: bool,
}

/// Nobody can say which pods exist.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct PodsUnavailable(pub String);

/// Looks pods up.
pub trait Pods: fmt::Debug + Send + Sync + 'static {
    /// The pod of that name, if there is one.
    fn find(
        &self,
        namespace: &str,
        name: &str,
    ) -> impl Future<Output = Result<Option<PodFacts>, PodsUnavailable>> + Send;
}

/// Why the file of pods cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PodsFault {
    /// The file.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What stands in it.
    #[error("{path}: {source}")]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What is wrong, and in which line.
        source: InvalidMesh,
    },
}

/// The pods of `mesh.yaml`, as it changes.
#[derive(Debug)]
pub struct MeshPods {
    path: PathBuf,
    seen: Mutex<Vec<u8>>,
    mesh: RwLock<Arc<MeshFile>>,
    metrics: Metrics,
}

impl MeshPods {
    /// Reads the file; it has to be good at start.
    pub fn open(path: &Path, metrics: Metrics) -> Result<Self, PodsFault> {
        let bytes =
            fs::read_up_to(path, LARGEST_MESH).map_err(|source| PodsFault::Io { path: path.to_owned(), source })?;
        let mesh = RwLock::new(Arc::new(parse(path, &bytes)?));
        Ok(Self { path: path.to_owned(), seen: Mutex::new(bytes), mesh, metrics })
    }

    /// Reads the file again if its bytes are others. A bad edit is reported once, and the last good state stays.
    pub fn reload(&self) {
        let read = fs::read_up_to(&self.path, LARGEST_MESH);
        // A file that is gone is an edit too.
        let bytes = read.as_ref().map_or_else(|error| error.to_string().into_bytes(), Clone::clone);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == bytes {
            return;
        }
        let read = read.map_err(|source| PodsFault::Io { path: self.path.clone(), source });
        let parsed = read.and_then(|bytes| parse(&self.path, &bytes));
        *seen = bytes;
        self.metrics.reloaded("mesh", parsed.is_ok());
        match parsed {
            Ok(mesh) => {
                info!(pods = mesh.pods.len(), file = %self.path.display(), "the pods changed");
                *self.mesh.write().unwrap_or_else(PoisonError::into_inner) = mesh.into();
            }
            Err(fault) => warn!(%fault, "the pods stay as they were"),
        }
    }

    fn look(&self, namespace: &str, name: &str) -> Option<PodFacts> {
        let mesh = self.mesh.read().unwrap_or_else(PoisonError::into_inner).clone();
        mesh.pod(namespace, name).map(|pod| PodFacts {
            uid: pod.uid.clone(),
            service_account: pod.service_account.clone(),
            node: None,
            meshed: pod.proxy.is_some(),
            ended: pod.ended,
        })
    }
}

impl Pods for MeshPods {
    async fn find(&self, namespace: &str, name: &str) -> Result<Option<PodFacts>, PodsUnavailable> {
        // The edit that a pod comes with, or goes with, may be younger than the last look at the file.
        self.reload();
        Ok(self.look(namespace, name))
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<MeshFile, PodsFault> {
    let invalid = |source| PodsFault::Invalid { path: path.to_owned(), source };
    let text = str::from_utf8(bytes)
        .map_err(|_| invalid(InvalidMesh { line: 0, column: 0, what: "the file is not UTF-8".to_owned() }))?;
    MeshFile::parse(text).map_err(invalid)
}
