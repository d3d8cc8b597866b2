//! The steps of a root's rotation on a CA's directory: publish, sign, drop. Between two steps one leaf lifetime has to
//! pass; who waits for that is whoever calls. Each step can be done again after a crash.

use std::{path::Path, time::SystemTime};

use super::{
    CaFault, Lifetimes,
    files::{self, read_material, read_roots, write},
    material::{NEXT_ROOT, NEXT_ROOT_KEY},
};

/// First step: makes the next root and adds it to the bundle. Nothing is signed under it yet.
pub fn publish_next_root(dir: &Path, lifetimes: &Lifetimes, now: SystemTime) -> Result<(), CaFault> {
    let _lock = files::lock(dir)?;
    let (mut roots, mut material) = (read_roots(dir)?, read_material(dir)?);
    material.publish(roots.prepare(lifetimes, now)?);
    write(dir, roots.parts())?;
    write(dir, material.parts())
}

/// Second step: an issuer under the next root, which becomes the root.
pub fn sign_under_next_root(dir: &Path, lifetimes: &Lifetimes, now: SystemTime) -> Result<(), CaFault> {
    let _lock = files::lock(dir)?;
    let mut roots = read_roots(dir)?;
    let Some(next) = &roots.next else {
        return Err(CaFault::Step("there is no next root: publish one first"));
    };
    // The same if a crash came after the root was replaced.
    if next.certificate != roots.root.certificate {
        let mut material = read_material(dir)?;
        material.sign_under(next, &roots.root, lifetimes, now)?;
        write(dir, material.parts())?;
    }
    roots.advance();
    write(dir, roots.parts())?;
    files::remove(dir, &[NEXT_ROOT, NEXT_ROOT_KEY])
}

/// Last step: nothing but the root is trusted. What was signed under others is refused from now on.
pub fn drop_other_roots(dir: &Path) -> Result<(), CaFault> {
    let _lock = files::lock(dir)?;
    let (roots, mut material) = (read_roots(dir)?, read_material(dir)?);
    material.drop_others(&roots.root.certificate);
    write(dir, material.parts())
}

/// A new issuer under the same root; what cross-signs the root stays.
pub fn renew_issuer(dir: &Path, lifetimes: &Lifetimes, now: SystemTime) -> Result<(), CaFault> {
    let _lock = files::lock(dir)?;
    let (roots, mut material) = (read_roots(dir)?, read_material(dir)?);
    material.renew_issuer(&roots.root, lifetimes, now)?;
    write(dir, material.parts())
}
