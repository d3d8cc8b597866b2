//! The CA's directory: `root.pem`, `root.key`, `issuer.pem` (with what cross-signs, if any), `issuer.key`, `bundle.pem`
//! (the trusted roots) and `generation` (of the bundle). Written by us and by people.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use tracing::info;
use zeroize::Zeroizing;

use super::{
    Lifetimes, SignFault,
    material::{
        self, BUNDLE, GENERATION, ISSUER, ISSUER_KEY, Material, NEXT_ROOT, NEXT_ROOT_KEY, Parts, ROOT, ROOT_KEY, Roots,
    },
};
use crate::{InvalidBundle, InvalidCredentials, InvalidKey, fs, volume::hex};

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
    /// A part is not there.
    #[error("{0} is missing: restore it; a new one would lock everybody out")]
    Absent(&'static str),
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
    /// The step of a rotation.
    #[error("rotation: {0:?} is not what was written there: restore it")]
    Rotation(String),
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
    let roots = Roots::create(lifetimes, now)?;
    let material = Material::create(&roots.root, lifetimes, now)?;
    for (name, bytes) in roots.parts().into_iter().chain(material.parts()) {
        let path = dir.join(name);
        fs::create(&path, &bytes).map_err(io_at(&path))?;
    }
    info!(dir = %dir.display(), "a new CA");
    Ok(())
}

/// What signs leafs and is trusted, as it is now; not understood yet.
pub(super) fn read(dir: &Path) -> Result<Parts, CaFault> {
    let _lock = lock(dir)?;
    read_all(dir, &[ISSUER, ISSUER_KEY, BUNDLE, GENERATION])
}

/// Of what people and rotation change; the generation follows from it.
pub(super) fn digest(parts: &Parts) -> String {
    [ISSUER, ISSUER_KEY, BUNDLE].map(|name| parts.get(name).map_or_else(String::new, |part| hex(part))).concat()
}

/// Under the lock.
pub(super) fn read_material(dir: &Path) -> Result<Material, CaFault> {
    Material::read(&read_all(dir, &[ISSUER, ISSUER_KEY, BUNDLE, GENERATION])?)
}

/// Under the lock.
pub(super) fn read_roots(dir: &Path) -> Result<Roots, CaFault> {
    let next: &[_] = if dir.join(NEXT_ROOT).exists() { &[NEXT_ROOT, NEXT_ROOT_KEY] } else { &[] };
    Roots::read(&read_all(dir, &[&[ROOT, ROOT_KEY], next].concat())?)
}

/// One after the other, each at once, and only what is different; under the lock.
pub(super) fn write(dir: &Path, parts: Vec<(&'static str, Zeroizing<Vec<u8>>)>) -> Result<(), CaFault> {
    for (name, bytes) in parts {
        let path = dir.join(name);
        let held = fs::read_if_there(&path).map_err(io_at(&path))?.map(Zeroizing::new);
        if held.is_none_or(|held| held != bytes) {
            fs::replace(&path, &bytes).map_err(io_at(&path))?;
        }
    }
    Ok(())
}

/// Under the lock.
pub(super) fn remove(dir: &Path, names: &[&str]) -> Result<(), CaFault> {
    for name in names {
        let path = dir.join(name);
        std::fs::remove_file(&path).map_err(io_at(&path))?;
    }
    Ok(())
}

/// Writes down which roots are which generation. Before anybody is told, so that it never falls back.
pub(super) fn save_generation(dir: &Path, text: &[u8]) -> Result<(), CaFault> {
    let path = dir.join(GENERATION);
    fs::replace(&path, text).map_err(io_at(&path))
}

/// Whether the issuer is at 70 % of its life.
pub(super) fn issuer_is_due(dir: &Path, now: SystemTime) -> Result<bool, CaFault> {
    material::issuer_is_due(&read_all(dir, &[ISSUER])?, now)
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

fn read_all(dir: &Path, names: &[&'static str]) -> Result<Parts, CaFault> {
    let read = |name: &&'static str| {
        let path = dir.join(name);
        Ok((*name, Zeroizing::new(fs::read(&path).map_err(io_at(&path))?)))
    };
    names.iter().map(read).collect()
}

fn io_at(path: &Path) -> impl Fn(io::Error) -> CaFault {
    move |source| CaFault::Io { path: path.to_owned(), source }
}
