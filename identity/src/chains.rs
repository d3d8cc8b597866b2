//! `Chains`: which certificate chains have been verified already. Verifying one costs two signatures, more than half of a
//! handshake's own, and a peer shows the same one each time. What the peer signs in the handshake is verified each time.

use std::{
    collections::HashMap,
    ops::RangeInclusive,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aws_lc_rs::digest::{Context, SHA256};
use rustls::{
    Error,
    pki_types::{CertificateDer, UnixTime},
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Peers that are remembered; 100 bytes each. Only chains that lead to a root get in.
const MOST: usize = 4096;

type Digest = [u8; 32];

/// The chains that one verifier has accepted. They are good under its roots alone: other roots, another `Chains`.
#[derive(Debug, Default)]
pub(crate) struct Chains(Mutex<HashMap<Digest, RangeInclusive<i64>>>);

impl Chains {
    /// Has `verify` verify the chain, unless it did so before, for the very same certificates and `name`, and all of them
    /// are valid `now`.
    pub(crate) fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &str,
        now: UnixTime,
        verify: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let digest = digest(end_entity, intermediates, name);
        let valid = self.known().get(&digest).cloned();
        if valid.is_some_and(|valid| i64::try_from(now.as_secs()).is_ok_and(|now| valid.contains(&now))) {
            return Ok(());
        }
        verify()?;
        if let Some(valid) = validity(end_entity, intermediates) {
            let mut known = self.known();
            // Who is still there is verified once more.
            if known.len() >= MOST {
                known.clear();
            }
            known.insert(digest, valid);
        }
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Digest, RangeInclusive<i64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of everything that the verdict depends on, each part with its length.
fn digest(end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>], name: &str) -> Digest {
    let mut context = Context::new(&SHA256);
    let certificates = std::iter::once(end_entity).chain(intermediates).map(AsRef::as_ref);
    for part in std::iter::once(name.as_bytes()).chain(certificates) {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// When all of the certificates are valid, in seconds since 1970; `None` if one cannot be read.
fn validity(end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Option<RangeInclusive<i64>> {
    let (mut from, mut until) = (i64::MIN, i64::MAX);
    for der in std::iter::once(end_entity).chain(intermediates) {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        from = from.max(certificate.validity().not_before.timestamp());
        until = until.min(certificate.validity().not_after.timestamp());
    }
    Some(from..=until)
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Duration};

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};

    use super::*;

    const NAME: &str = "web.shop";

    /// A leaf until 2030 and an issuer until 2028.
    fn chain() -> [CertificateDer<'static>; 2] {
        let (key, issuer_key) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
        let mut issuer = CertificateParams::new([]).expect("no name");
        issuer.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (issuer.not_before, issuer.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2028, 1, 1));
        let mut leaf = CertificateParams::new([NAME.to_owned()]).expect("a name");
        (leaf.not_before, leaf.not_after) = (date_time_ymd(2025, 1, 1), date_time_ymd(2030, 1, 1));
        let own = issuer.self_signed(&issuer_key).expect("signed").der().clone();
        let leaf = leaf.signed_by(&key, &Issuer::new(issuer, issuer_key)).expect("signed");
        [leaf.der().clone(), own]
    }

    fn at(year: i32) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(date_time_ymd(year, 6, 1).unix_timestamp() as u64))
    }

    /// Whether `chains` had to verify.
    fn verifies(chains: &Chains, [leaf, issuer]: &[CertificateDer<'static>; 2], name: &str, now: UnixTime) -> bool {
        let verified = Cell::new(false);
        let verify = || {
            verified.set(true);
            Ok(())
        };
        chains.verify(leaf, std::slice::from_ref(issuer), name, now, verify).expect("verified");
        verified.get()
    }

    #[test]
    fn the_same_chain_is_verified_once_while_all_of_it_is_valid() {
        let (chains, chain) = (Chains::default(), chain());
        assert!(verifies(&chains, &chain, NAME, at(2026)), "never seen");
        assert!(!verifies(&chains, &chain, NAME, at(2026)), "seen");
        assert!(!verifies(&chains, &chain, NAME, at(2027)), "and still valid");
        assert!(verifies(&chains, &chain, NAME, at(2028)), "its issuer has ended, the leaf has not");
        assert!(verifies(&chains, &chain, NAME, at(2024)), "the leaf has not begun, its issuer has");
    }

    #[test]
    fn another_leaf_issuer_or_name_is_another_chain() {
        let (chains, known, other) = (Chains::default(), chain(), chain());
        assert!(verifies(&chains, &known, NAME, at(2026)));
        let [leaf, issuer] = known.clone();
        let [other_leaf, other_issuer] = other;
        assert!(verifies(&chains, &[other_leaf, issuer.clone()], NAME, at(2026)));
        assert!(verifies(&chains, &[leaf.clone(), other_issuer], NAME, at(2026)));
        assert!(verifies(&chains, &[issuer, leaf], NAME, at(2026)), "the order counts");
        assert!(verifies(&chains, &known, "db.shop", at(2026)));
        assert!(!verifies(&chains, &known, NAME, at(2026)));
    }

    #[test]
    fn what_is_refused_is_not_remembered() {
        let (chains, [leaf, issuer]) = (Chains::default(), chain());
        let refused = || Err(Error::General("no".to_owned()));
        for _ in 0..2 {
            chains.verify(&leaf, std::slice::from_ref(&issuer), NAME, at(2026), refused).expect_err("each time");
        }
        assert!(verifies(&chains, &[leaf, issuer], NAME, at(2026)));
    }

    #[test]
    fn memory_is_bounded() {
        let (chains, chain) = (Chains::default(), chain());
        for number in 0..MOST + 10 {
            verifies(&chains, &chain, &number.to_string(), at(2026));
        }
        assert!(chains.known().len() <= MOST, "{}", chains.known().len());
    }
}
