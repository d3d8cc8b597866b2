//! `Ca`: root, issuer and trust bundle, held in memory or in a directory that is followed as it changes.

mod files;
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

use self::{files::Material, templates::Issuer};
use crate::{Credentials, InvalidCredentials, SecretKey, TrustBundle, renew_at};

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
        let state = State::new(Material::create(&lifetimes, now)?, 1, &lifetimes, now)?;
        Ok(Self { lifetimes, dir: None, seen: Mutex::default(), state: watch::Sender::new(state.into()) })
    }

    /// The CA of `dir`; made if the directory has none of its files. If it has some of them and not others, that is a
    /// fault: a new root would lock everybody out.
    pub fn open_or_create(dir: &Path, lifetimes: Lifetimes) -> Result<Self, CaFault> {
        let now = SystemTime::now();
        files::create_if_empty(dir, &lifetimes, now)?;
        if issuer_is_due(dir, now)? {
            rotation::renew_issuer(dir, &lifetimes, now)?;
        }
        let found = files::read(dir)?;
        let seen = found.digest();
        let (material, generation) = found.parse()?;
        let state = State::new(material, generation, &lifetimes, now)?;
        files::save_generation(dir, &state.bundle)?;
        let state = watch::Sender::new(state.into());
        Ok(Self { lifetimes, dir: Some(dir.to_owned()), seen: Mutex::new(seen), state })
    }

    /// Looks whether the directory has changed; says whether something new is in force. A change that cannot be used is
    /// an error once, and the last good state stays.
    pub fn reload(&self) -> Result<bool, CaFault> {
        let Some(dir) = &self.dir else { return Ok(false) };
        let now = SystemTime::now();
        let found = files::read(dir);
        let digest = found.as_ref().map_or_else(ToString::to_string, files::Found::digest);
        if std::mem::replace(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner), digest.clone()) == digest {
            return Ok(false);
        }
        let (material, generation) = found?.parse()?;
        let state = State::new(material, generation, &self.lifetimes, now)?;
        files::save_generation(dir, &state.bundle)?;
        info!(generation = state.bundle.generation(), roots = state.bundle.roots().len(), "the CA's directory changed");
        self.state.send_replace(state.into());
        Ok(true)
    }

    /// Makes a new issuer under the same root if the present one is at 70 % of its life; [`Ca::reload`] takes it over.
    pub fn renew_issuer_if_due(&self, now: SystemTime) -> Result<(), CaFault> {
        match &self.dir {
            Some(dir) if issuer_is_due(dir, now)? => rotation::renew_issuer(dir, &self.lifetimes, now),
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

impl State {
    /// Refuses what could not sign anything that anybody believes.
    fn new(material: Material, generation: u64, lifetimes: &Lifetimes, now: SystemTime) -> Result<Self, CaFault> {
        let bundle = TrustBundle::new(generation, material.roots).map_err(CaFault::bundle)?;
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

/// At 70 % of its life.
fn issuer_is_due(dir: &Path, now: SystemTime) -> Result<bool, CaFault> {
    let (not_before, not_after) = files::issuer_validity(dir)?;
    Ok(now >= renew_at(not_before, not_after, 0.5))
}
