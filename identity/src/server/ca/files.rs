//! The CA's directory: `root.pem`, `root.key`, `issuer.pem` (with what cross-signs, if any), `issuer.key`, `bundle.pem`
//! (the trusted roots) and `generation` (of the bundle). Written by us and by people.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustls::pki_types::CertificateDer;
use tracing::info;
use zeroize::Zeroizing;

use super::{
    Lifetimes, SignFault,
    templates::{self, CaCertificate},
};
use crate::{InvalidBundle, InvalidCredentials, InvalidKey, SecretKey, TrustBundle, fs, trust, volume::hex};

pub(super) const ROOT: &str = "root.pem";
pub(super) const ROOT_KEY: &str = "root.key";
pub(super) const ISSUER: &str = "issuer.pem";
pub(super) const ISSUER_KEY: &str = "issuer.key";
pub(super) const BUNDLE: &str = "bundle.pem";
const GENERATION: &str = "generation";
const ALL: [&str; 6] = [ROOT, ROOT_KEY, ISSUER, ISSUER_KEY, BUNDLE, GENERATION];
const LOCK: &str = ".lock";

/// Why the CA cannot work, or a change to it is not taken over.
#[derive(Debug, thiserror::Error)]
pub enum CaFault {
    /// A file or the directory.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Some files are there and some are not.
    #[error(
        "{dir} has {present} but not {missing}: restore what is missing; only if this CA never signed anything, empty the directory for a new one"
    )]
    HalfMissing {
        /// The directory.
        dir: PathBuf,
        /// What is there.
        present: String,
        /// What is not.
        missing: String,
    },
    /// A file holds something else.
    #[error("{file}: {source}")]
    Certificates {
        /// Which.
        file: &'static str,
        /// What is wrong.
        source: InvalidBundle,
    },
    /// A key.
    #[error("{file}: {source}")]
    Key {
        /// Which.
        file: &'static str,
        /// What is wrong.
        source: InvalidKey,
    },
    /// The bundle's generation.
    #[error("generation: {0:?} is not what was written there: restore the file")]
    Generation(String),
    /// No certificate where one belongs.
    #[error("issuer.pem holds no certificate")]
    NoIssuer,
    /// Damaged.
    #[error("a CA certificate cannot be read: {0}")]
    Unreadable(String),
    /// A leaf, or something without the extension.
    #[error("a certificate that should sign others is not a CA's")]
    NotCa,
    /// Certificate and key are of different pairs.
    #[error("the key of the {0} is not that of its certificate: put back the pair that belongs together")]
    OtherKey(&'static str),
    /// What it signs would not be believed.
    #[error("what the issuer signs would not be believed: {0}")]
    Unbelievable(#[from] InvalidCredentials),
    /// Signing failed.
    #[error(transparent)]
    Sign(#[from] SignFault),
    /// A rotation step at the wrong time.
    #[error("{0}")]
    Step(&'static str),
}

impl CaFault {
    pub(super) fn bundle(source: InvalidBundle) -> Self {
        Self::Certificates { file: BUNDLE, source }
    }
}

/// What a CA is made of.
pub(super) struct Material {
    pub(super) issuer_key: SecretKey,
    pub(super) issuer_chain: Vec<CertificateDer<'static>>,
    pub(super) roots: Vec<CertificateDer<'static>>,
}

impl Material {
    pub(super) fn create(lifetimes: &Lifetimes, now: SystemTime) -> Result<Self, CaFault> {
        let (_, root, material) = create(lifetimes, now)?;
        debug_assert_eq!(material.roots, [root]);
        Ok(material)
    }
}

fn create(lifetimes: &Lifetimes, now: SystemTime) -> Result<(SecretKey, CertificateDer<'static>, Material), CaFault> {
    let root_key = generate()?;
    let root = templates::root(&root_key, lifetimes, now)?;
    let issuer_key = generate()?;
    let issuer = templates::issuer(&issuer_key, &root, &root_key, lifetimes, now)?;
    let material = Material { issuer_key, issuer_chain: vec![issuer], roots: vec![root.clone()] };
    Ok((root_key, root, material))
}

pub(super) fn generate() -> Result<SecretKey, CaFault> {
    SecretKey::generate().map_err(|error| CaFault::Sign(error.into()))
}

/// Makes a CA in a directory that has none, and never over one.
pub(super) fn create_if_empty(dir: &Path, lifetimes: &Lifetimes, now: SystemTime) -> Result<(), CaFault> {
    fs::make_dir(dir).map_err(io_at(dir))?;
    let _lock = lock(dir)?;
    let (present, missing): (Vec<_>, Vec<_>) = ALL.into_iter().partition(|name| dir.join(name).exists());
    if missing.is_empty() {
        return Ok(());
    }
    if !present.is_empty() {
        let (present, missing) = (present.join(", "), missing.join(", "));
        return Err(CaFault::HalfMissing { dir: dir.to_owned(), present, missing });
    }
    let (root_key, root, material) = create(lifetimes, now)?;
    let roots = trust::to_pem(&material.roots);
    let create = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        fs::create(&path, bytes).map_err(io_at(&path))
    };
    create(ROOT_KEY, root_key.to_pem().as_bytes())?;
    create(ROOT, trust::to_pem(&[root]).as_bytes())?;
    create(ISSUER_KEY, material.issuer_key.to_pem().as_bytes())?;
    create(ISSUER, trust::to_pem(&material.issuer_chain).as_bytes())?;
    create(BUNDLE, roots.as_bytes())?;
    create(GENERATION, format!("1 {}\n", fingerprint(&material.roots)).as_bytes())?;
    info!(dir = %dir.display(), "a new CA");
    Ok(())
}

/// The files as they are now; nothing is understood yet.
pub(super) struct Found {
    issuer: Vec<u8>,
    issuer_key: Zeroizing<Vec<u8>>,
    bundle: Vec<u8>,
    generation: Vec<u8>,
}

pub(super) fn read(dir: &Path) -> Result<Found, CaFault> {
    let _lock = lock(dir)?;
    Ok(Found {
        issuer: read_file(dir, ISSUER)?,
        issuer_key: Zeroizing::new(read_file(dir, ISSUER_KEY)?),
        bundle: read_file(dir, BUNDLE)?,
        generation: read_file(dir, GENERATION)?,
    })
}

impl Found {
    /// Of what people and rotation change; the generation follows from it.
    pub(super) fn digest(&self) -> String {
        let parts = [&self.issuer, &*self.issuer_key, &self.bundle].map(|part| hex(part));
        parts.concat()
    }

    /// The material, and the bundle's generation: the one that is written down, or the next if the roots are others.
    pub(super) fn parse(self) -> Result<(Material, u64), CaFault> {
        let roots = trust::certificates(&self.bundle).map_err(CaFault::bundle)?;
        let issuer_chain =
            trust::certificates(&self.issuer).map_err(|source| CaFault::Certificates { file: ISSUER, source })?;
        let issuer_key =
            SecretKey::from_pem(&self.issuer_key).map_err(|source| CaFault::Key { file: ISSUER_KEY, source })?;
        let written = String::from_utf8_lossy(&self.generation);
        let parsed =
            written.trim_end().split_once(' ').and_then(|(number, of)| Some((number.parse::<u64>().ok()?, of)));
        let (number, of) = parsed.ok_or_else(|| CaFault::Generation(written.chars().take(100).collect()))?;
        let generation = if of == fingerprint(&roots) { number } else { number.saturating_add(1) };
        Ok((Material { issuer_key, issuer_chain, roots }, generation))
    }
}

/// Writes down which roots are which generation. Before anybody is told, so that it never falls back.
pub(super) fn save_generation(dir: &Path, bundle: &TrustBundle) -> Result<(), CaFault> {
    replace(dir, GENERATION, format!("{} {}\n", bundle.generation(), fingerprint(bundle.roots())).as_bytes())
}

pub(super) fn issuer_validity(dir: &Path) -> Result<(SystemTime, SystemTime), CaFault> {
    let chain = certificates(dir, ISSUER)?;
    let issuer = CaCertificate::read(chain.first().ok_or(CaFault::NoIssuer)?)?;
    Ok((issuer.not_before, issuer.not_after))
}

/// Whoever writes or reads several files together holds this.
pub(super) fn lock(dir: &Path) -> Result<File, CaFault> {
    let path = dir.join(LOCK);
    let open = || {
        let file = File::options().create(true).truncate(false).write(true).open(&path)?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(io_at(&path))
}

pub(super) fn certificates(dir: &Path, file: &'static str) -> Result<Vec<CertificateDer<'static>>, CaFault> {
    trust::certificates(&read_file(dir, file)?).map_err(|source| CaFault::Certificates { file, source })
}

pub(super) fn key(dir: &Path, file: &'static str) -> Result<SecretKey, CaFault> {
    let text = Zeroizing::new(read_file(dir, file)?);
    SecretKey::from_pem(&text).map_err(|source| CaFault::Key { file, source })
}

pub(super) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), CaFault> {
    let path = dir.join(name);
    fs::replace(&path, bytes).map_err(io_at(&path))
}

fn read_file(dir: &Path, name: &str) -> Result<Vec<u8>, CaFault> {
    let path = dir.join(name);
    fs::read(&path).map_err(io_at(&path))
}

pub(super) fn io_at(path: &Path) -> impl Fn(io::Error) -> CaFault {
    move |source| CaFault::Io { path: path.to_owned(), source }
}

fn fingerprint(roots: &[CertificateDer<'_>]) -> String {
    hex(&roots.iter().flat_map(|root| root.iter().copied()).collect::<Vec<u8>>())
}
