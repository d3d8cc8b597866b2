//! `Ca`: issuer and trust bundle as they are in force, and the leafs that are signed with them. They come from memory,
//! or from a directory that is followed as it changes; what they are made of and how it changes is [`material`].

mod files;
pub(crate) mod material;
pub mod rotation;
mod templates;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use hauberk_mesh::{IdentityName, TrustDomain};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tracing::info;

pub use files::CaFault;
pub use templates::SignFault;
pub(crate) use templates::{LARGEST_REQUEST, requested_key};

use self::{
    material::{Material, Parts, Roots},
    templates::{CaCertificate, Issuer},
};
use crate::{Credentials, InvalidCredentials, SecretKey, TrustBundle};

/// How long certificates live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of a root that is made here.
    pub root: Duration,
    /// Of an issuer that is made here.
    pub issuer: Duration,
    /// Of a leaf.
    pub leaf: Duration,
    /// By how much the clocks of pods may be behind: certificates start that much earlier.
    pub skew: Duration,
}

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Default for Lifetimes {
    fn default() -> Self {
        Self { root: DAY * 3650, issuer: DAY * 365, leaf: DAY, skew: Duration::from_secs(120) }
    }
}

/// A signed certificate.
#[derive(Debug, Clone)]
pub struct Issued {
    /// DER.
    pub leaf: CertificateDer<'static>,
    /// What leads from it to a root, the root not among it.
    pub intermediates: Vec<CertificateDer<'static>>,
    /// When it ends.
    pub not_after: SystemTime,
    /// Hexadecimal.
    pub serial: String,
}

/// Signs leafs.
#[derive(Debug)]
pub struct Ca {
    lifetimes: Lifetimes,
    dir: Option<PathBuf>,
    /// What was last found in the directory, good or bad, so that a bad edit is reported once.
    seen: Mutex<String>,
    state: watch::Sender<Arc<State>>,
}

/// What the CA signs with and what it tells others to trust.
#[derive(Debug)]
pub(crate) struct State {
    issuer: Issuer,
    pub(crate) bundle: TrustBundle,
}

impl Ca {
    /// A CA that is gone when the process ends.
    pub fn in_memory(lifetimes: Lifetimes) -> Result<Self, CaFault> {
        let now = SystemTime::now();
        let root = Roots::create(&lifetimes, now)?.root;
        Self::of(Material::create(&root, &lifetimes, now)?, lifetimes, now)
    }

    /// A CA whose material is kept elsewhere; see [`Ca::adopt`].
    pub(crate) fn of(material: Material, lifetimes: Lifetimes, now: SystemTime) -> Result<Self, CaFault> {
        let state = watch::Sender::new(State::new(material, &lifetimes, now)?.into());
        Ok(Self { lifetimes, dir: None, seen: Mutex::default(), state })
    }

    /// The CA of `dir`; made if the directory has none of its files. If it has some of them and not others, that is a
    /// fault: a new root would lock everybody out.
    pub fn open_or_create(dir: &Path, lifetimes: Lifetimes) -> Result<Self, CaFault> {
        let now = SystemTime::now();
        files::create_if_empty(dir, &lifetimes, now)?;
        if files::issuer_is_due(dir, now)? {
            rotation::renew_issuer(dir, &lifetimes, now)?;
        }
        let parts = files::read(dir)?;
        let seen = Mutex::new(files::digest(&parts));
        let state = from_files(dir, &parts, &lifetimes, now)?;
        Ok(Self { lifetimes, dir: Some(dir.to_owned()), seen, state: watch::Sender::new(state.into()) })
    }

    /// Looks whether the directory has changed; says whether something new is in force. A change that cannot be used is
    /// an error once, and the last good state stays.
    pub fn reload(&self) -> Result<bool, CaFault> {
        let Some(dir) = &self.dir else { return Ok(false) };
        let parts = files::read(dir);
        let digest = parts.as_ref().map_or_else(ToString::to_string, files::digest);
        if std::mem::replace(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner), digest.clone()) == digest {
            return Ok(false);
        }
        self.put(from_files(dir, &parts?, &self.lifetimes, SystemTime::now())?);
        Ok(true)
    }

    /// Puts other material in force, if it can be used.
    pub(crate) fn adopt(&self, material: Material, now: SystemTime) -> Result<(), CaFault> {
        self.put(State::new(material, &self.lifetimes, now)?);
        Ok(())
    }

    fn put(&self, state: State) {
        info!(generation = state.bundle.generation(), roots = state.bundle.roots().len(), "the CA changed");
        self.state.send_replace(state.into());
    }

    /// Makes a new issuer under the same root if the present one is at 70 % of its life; [`Ca::reload`] takes it over.
    pub fn renew_issuer_if_due(&self, now: SystemTime) -> Result<(), CaFault> {
        match &self.dir {
            Some(dir) if files::issuer_is_due(dir, now)? => rotation::renew_issuer(dir, &self.lifetimes, now),
            _ => Ok(()),
        }
    }

    /// The trusted roots.
    pub fn bundle(&self) -> TrustBundle {
        self.state.borrow().bundle.clone()
    }

    /// When the issuer ends.
    pub fn issuer_not_after(&self) -> SystemTime {
        self.state.borrow().issuer.not_after()
    }

    /// When the first of the trusted roots ends.
    pub(crate) fn root_not_after(&self) -> Option<SystemTime> {
        let bundle = self.bundle();
        bundle.roots().iter().filter_map(|root| Some(CaCertificate::read(root).ok()?.not_after)).min()
    }

    /// Follows issuer and bundle.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    /// Signs a leaf for `name` with the public key of `request` (PKCS #10, DER) and nothing else of it.
    pub fn sign(&self, request: &[u8], name: &IdentityName, now: SystemTime) -> Result<Issued, SignFault> {
        let key = templates::requested_key(request)?;
        self.state.borrow().issuer.leaf(&key, name, &self.lifetimes, now)
    }

    /// A certificate of the CA's own making: for the identity server itself, and for tests.
    pub fn credentials(&self, name: &IdentityName, generation: u64, now: SystemTime) -> Result<Credentials, CaFault> {
        let state = self.state.borrow().clone();
        state.credentials(name, generation, &self.lifetimes, now)
    }
}

/// Whether a CA of these parts could sign anything that anybody believes.
pub(crate) fn check(parts: &Parts, lifetimes: &Lifetimes, now: SystemTime) -> Result<(), CaFault> {
    State::new(Material::read(parts)?, lifetimes, now).map(drop)
}

impl State {
    /// Refuses what could not sign anything that anybody believes.
    fn new(material: Material, lifetimes: &Lifetimes, now: SystemTime) -> Result<Self, CaFault> {
        let bundle = material.bundle()?;
        let state = Self { issuer: Issuer::new(material.issuer_chain, material.issuer_key)?, bundle };
        let probe = TrustDomain::default().identity("probe", "probe").expect("a valid name");
        state.credentials(&probe, 1, lifetimes, now)?;
        Ok(state)
    }

    fn credentials(
        &self,
        name: &IdentityName,
        generation: u64,
        lifetimes: &Lifetimes,
        now: SystemTime,
    ) -> Result<Credentials, CaFault> {
        let key = SecretKey::generate().map_err(InvalidCredentials::from)?;
        let issued = self.issuer.leaf(&key, name, lifetimes, now)?;
        let chain = std::iter::once(issued.leaf).chain(issued.intermediates).collect();
        Ok(Credentials::new(name, &key, chain, &self.bundle, generation, now)?)
    }
}

/// Which generation the roots are is written down only if they are of use.
fn from_files(dir: &Path, parts: &Parts, lifetimes: &Lifetimes, now: SystemTime) -> Result<State, CaFault> {
    let mut material = Material::read(parts)?;
    material.settle();
    let generation = material.generation_text();
    let state = State::new(material, lifetimes, now)?;
    files::save_generation(dir, &generation)?;
    Ok(state)
}
