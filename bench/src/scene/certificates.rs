//! Certificates for the peers: from the same CA code as ours, so of the same kind: ECDSA P-256, a leaf and its issuer.

use std::{fs, path::Path, time::SystemTime};

use anyhow::Result;
use hauberk_identity::{
    SecretKey,
    server::{Ca, Lifetimes},
};
use hauberk_mesh::{IdentityName, TrustDomain};

/// File of key, leaf and issuer.
pub(crate) const OWN: &str = "own.pem";
/// File of the root.
pub(crate) const ROOTS: &str = "roots.pem";

#[derive(Debug)]
pub(super) struct Authority(Ca);

impl Authority {
    pub(super) fn new() -> Result<Self> {
        Ok(Self(Ca::in_memory(Lifetimes::default())?))
    }

    /// Puts key, chain and root of `account` into `dir`.
    pub(super) fn write(&self, dir: &Path, account: &str) -> Result<()> {
        let name = identity(account);
        let key = SecretKey::generate()?;
        let issued = self.0.sign(&key.request(&name)?, &name, SystemTime::now())?;
        let chain = std::iter::once(&issued.leaf).chain(&issued.intermediates);
        let chain: String = chain.map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.to_vec()))).collect();
        fs::write(dir.join(OWN), format!("{}{chain}", *key.to_pem()))?;
        Ok(fs::write(dir.join(ROOTS), self.0.bundle().to_pem())?)
    }
}

/// The name in the certificate of `account`.
pub(crate) fn identity(account: &str) -> IdentityName {
    TrustDomain::default().identity(account, "default").expect("the names of accounts here are valid")
}
