//! The steps of a root's rotation on a CA's directory: publish, sign, drop. Between two steps one leaf lifetime has to
//! pass; who waits for that is whoever calls. Each step can be done again after a crash.

use std::{path::Path, time::SystemTime};

use rustls::pki_types::CertificateDer;

use super::{
    CaFault, Lifetimes,
    files::{self, BUNDLE, ISSUER, ISSUER_KEY, ROOT, ROOT_KEY},
    templates,
};
use crate::{SecretKey, trust};

const NEXT_ROOT: &str = "next-root.pem";
const NEXT_ROOT_KEY: &str = "next-root.key";

/// First step: makes the next root and adds it to the bundle. Nothing is signed under it yet.
pub fn publish_next_root(dir: &Path, lifetimes: &Lifetimes, now: SystemTime) -> Result<(), CaFault> {
    let _lock = files::lock(dir)?;
    if !dir.join(NEXT_ROOT).exists() {
        let key = files::generate()?;
        let root = templates::root(&key, lifetimes, now)?;
        files::replace(dir, NEXT_ROOT_KEY, key.to_pem().as_bytes())?;
        files::replace(dir, NEXT_ROOT, trust::to_pem(&[root]).as_bytes())?;
    }
    let next = one(dir, NEXT_ROOT)?;
    let mut bundle = files::certificates(dir, BUNDLE)?;
    if !bundle.contains(&next) {
        bundle.push(next);
    }
    files::replace(dir, BUNDLE, trust::to_pem(&bundle).as_bytes())
}

/// Second step: an issuer under the next root, which becomes the root. The old root cross-signs the new one, for those
/// who slept through the first step.
pub fn sign_under_next_root(dir: &Path, lifetimes: &Lifetimes, now: SystemTime) -> Result<(), CaFault> {
    let _lock = files::lock(dir)?;
    if !dir.join(NEXT_ROOT).exists() {
        return Err(CaFault::Step("there is no next root: publish one first"));
    }
    let (next, old) = (one(dir, NEXT_ROOT)?, one(dir, ROOT)?);
    let next_key = files::key(dir, NEXT_ROOT_KEY)?;
    // The same if a crash came after the root was replaced.
    if next != old {
        let cross = templates::cross(&next, &next_key, &old, &files::key(dir, ROOT_KEY)?, lifetimes, now)?;
        write_issuer(dir, &next, &next_key, &[cross], lifetimes, now)?;
        files::replace(dir, ROOT, trust::to_pem(&[next]).as_bytes())?;
    }
    files::replace(dir, ROOT_KEY, next_key.to_pem().as_bytes())?;
    for name in [NEXT_ROOT, NEXT_ROOT_KEY] {
        let path = dir.join(name);
        std::fs::remove_file(&path).map_err(files::io_at(&path))?;
    }
    Ok(())
}

/// Last step: nothing but the root is trusted. What was signed under others is refused from now on.
pub fn drop_other_roots(dir: &Path) -> Result<(), CaFault> {
    let _lock = files::lock(dir)?;
    let root = one(dir, ROOT)?;
    files::replace(dir, BUNDLE, trust::to_pem(&[root]).as_bytes())
}

/// A new issuer under the same root; what cross-signs the root stays.
pub fn renew_issuer(dir: &Path, lifetimes: &Lifetimes, now: SystemTime) -> Result<(), CaFault> {
    let _lock = files::lock(dir)?;
    let (root, root_key) = (one(dir, ROOT)?, files::key(dir, ROOT_KEY)?);
    let cross = files::certificates(dir, ISSUER)?;
    write_issuer(dir, &root, &root_key, cross.get(1..).unwrap_or_default(), lifetimes, now)
}

fn write_issuer(
    dir: &Path,
    root: &CertificateDer<'static>,
    root_key: &SecretKey,
    cross: &[CertificateDer<'static>],
    lifetimes: &Lifetimes,
    now: SystemTime,
) -> Result<(), CaFault> {
    let key = files::generate()?;
    let issuer = templates::issuer(&key, root, root_key, lifetimes, now)?;
    let chain: Vec<_> = std::iter::once(issuer).chain(cross.iter().cloned()).collect();
    files::replace(dir, ISSUER_KEY, key.to_pem().as_bytes())?;
    files::replace(dir, ISSUER, trust::to_pem(&chain).as_bytes())
}

fn one(dir: &Path, file: &'static str) -> Result<CertificateDer<'static>, CaFault> {
    files::certificates(dir, file)?.into_iter().next().ok_or(CaFault::Step("a root's file holds no certificate"))
}
