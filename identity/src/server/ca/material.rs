//! What a CA is made of, and the steps that change it: renew the issuer; rotate the root by publish, sign, drop. Pure.
//! The parts have the same names in a directory and in Secrets.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::{
    CaFault, Lifetimes,
    templates::{self, CaCertificate},
};
use crate::{SecretKey, TrustBundle, renew_at, trust, volume::hex};

pub(crate) const ROOT: &str = "root.pem";
pub(crate) const ROOT_KEY: &str = "root.key";
pub(crate) const NEXT_ROOT: &str = "next-root.pem";
pub(crate) const NEXT_ROOT_KEY: &str = "next-root.key";
pub(crate) const ISSUER: &str = "issuer.pem";
pub(crate) const ISSUER_KEY: &str = "issuer.key";
pub(crate) const BUNDLE: &str = "bundle.pem";
pub(crate) const GENERATION: &str = "generation";
pub(crate) const ROTATION: &str = "rotation";

/// Parts by name; wiped when dropped.
pub(crate) type Parts = BTreeMap<&'static str, Zeroizing<Vec<u8>>>;

/// The roots' keys: needed only while an issuer is signed.
#[derive(Debug)]
pub(crate) struct Roots {
    pub(crate) root: Root,
    /// Published, and nothing signed under it yet.
    pub(crate) next: Option<Root>,
}

/// A root with its key.
#[derive(Debug)]
pub(crate) struct Root {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: SecretKey,
}

/// What is needed to sign leafs and to say whom to trust.
#[derive(Debug)]
pub(crate) struct Material {
    pub(crate) issuer_key: SecretKey,
    /// The issuer's certificate, then what cross-signs its root.
    pub(crate) issuer_chain: Vec<CertificateDer<'static>>,
    pub(crate) roots: Vec<CertificateDer<'static>>,
    /// A generation, and the fingerprint of the roots that it was written down for.
    written: (u64, String),
    /// The last step of a rotation that goes by itself, and when it was done; none if there is none under way.
    pub(crate) rotation: Option<(Step, SystemTime)>,
}

/// The steps of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Publish,
    Sign,
    Drop,
}

impl Step {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Sign => "sign",
            Self::Drop => "drop",
        }
    }
}

impl Root {
    fn create(lifetimes: &Lifetimes, now: SystemTime) -> Result<Self, CaFault> {
        let key = generate()?;
        Ok(Self { certificate: templates::root(&key, lifetimes, now)?, key })
    }

    fn read(parts: &Parts, name: &'static str, key_name: &'static str) -> Result<Self, CaFault> {
        let chain = certificates(parts, name)?;
        let certificate = chain.into_iter().next().ok_or(CaFault::Step("a root's part holds no certificate"))?;
        Ok(Self { certificate, key: key(parts, key_name)? })
    }

    /// An issuer under this root: its key, and its certificate with `cross` behind it.
    fn issuer(
        &self,
        cross: &[CertificateDer<'static>],
        lifetimes: &Lifetimes,
        now: SystemTime,
    ) -> Result<(SecretKey, Vec<CertificateDer<'static>>), CaFault> {
        let key = generate()?;
        let issuer = templates::issuer(&key, &self.certificate, &self.key, lifetimes, now)?;
        Ok((key, std::iter::once(issuer).chain(cross.iter().cloned()).collect()))
    }
}

impl Roots {
    /// A first root.
    pub(crate) fn create(lifetimes: &Lifetimes, now: SystemTime) -> Result<Self, CaFault> {
        Ok(Self { root: Root::create(lifetimes, now)?, next: None })
    }

    pub(crate) fn read(parts: &Parts) -> Result<Self, CaFault> {
        let next = parts.contains_key(NEXT_ROOT).then(|| Root::read(parts, NEXT_ROOT, NEXT_ROOT_KEY)).transpose()?;
        Ok(Self { root: Root::read(parts, ROOT, ROOT_KEY)?, next })
    }

    /// The parts, in the order in which they may be written one by one.
    pub(crate) fn parts(&self) -> Vec<(&'static str, Zeroizing<Vec<u8>>)> {
        let of =
            |root: &Root, name, key| [(key, pem_of(&root.key)), (name, pem(std::slice::from_ref(&root.certificate)))];
        let next = self.next.iter().flat_map(|next| of(next, NEXT_ROOT, NEXT_ROOT_KEY));
        // The next root's key first: it is the only thing here that could be lost.
        next.chain(of(&self.root, ROOT, ROOT_KEY).into_iter().rev()).collect()
    }

    /// Makes the next root, if there is none yet.
    pub(crate) fn prepare(&mut self, lifetimes: &Lifetimes, now: SystemTime) -> Result<&Root, CaFault> {
        if self.next.is_none() {
            self.next = Some(Root::create(lifetimes, now)?);
        }
        self.next.as_ref().ok_or(CaFault::Step("there is no next root"))
    }

    /// The next root becomes the root.
    pub(crate) fn advance(&mut self) {
        if let Some(next) = self.next.take() {
            self.root = next;
        }
    }
}

impl Material {
    /// The first issuer and bundle.
    pub(crate) fn create(root: &Root, lifetimes: &Lifetimes, now: SystemTime) -> Result<Self, CaFault> {
        let (issuer_key, issuer_chain) = root.issuer(&[], lifetimes, now)?;
        let roots = vec![root.certificate.clone()];
        let written = (1, fingerprint(&roots));
        Ok(Self { issuer_key, issuer_chain, roots, written, rotation: None })
    }

    pub(crate) fn read(parts: &Parts) -> Result<Self, CaFault> {
        let text = String::from_utf8_lossy(part(parts, GENERATION)?);
        let parsed = text.trim_end().split_once(' ').and_then(|(number, of)| Some((number.parse::<u64>().ok()?, of)));
        let (number, of) = parsed.ok_or_else(|| CaFault::Generation(text.chars().take(100).collect()))?;
        Ok(Self {
            issuer_key: key(parts, ISSUER_KEY)?,
            issuer_chain: certificates(parts, ISSUER)?,
            roots: certificates(parts, BUNDLE)?,
            written: (number, of.to_owned()),
            rotation: parts.get(ROTATION).map(|bytes| rotation(bytes)).transpose()?,
        })
    }

    /// The parts, in the order in which they may be written one by one.
    pub(crate) fn parts(&self) -> Vec<(&'static str, Zeroizing<Vec<u8>>)> {
        let mut parts = vec![
            (ISSUER_KEY, pem_of(&self.issuer_key)),
            (ISSUER, pem(&self.issuer_chain)),
            (BUNDLE, pem(&self.roots)),
            (GENERATION, self.generation_text()),
        ];
        if let Some((step, at)) = self.rotation {
            let text = format!("{} {}\n", step.label(), seconds(at));
            parts.push((ROTATION, Zeroizing::new(text.into_bytes())));
        }
        parts
    }

    /// The step of a rotation that is to be done now. The first one comes when the root is at 70 % of its life; `gate`
    /// passes between two: after one leaf lifetime, whoever has not heard of a step has no valid leaf either.
    pub(crate) fn step(&self, gate: Duration, now: SystemTime) -> Result<Option<Step>, CaFault> {
        let (next, after) = match self.rotation {
            None => {
                let issuer = self.issuer_chain.first().ok_or(CaFault::NoIssuer)?;
                let root = templates::issuer_among(&self.roots, issuer)?;
                return Ok(root.map(|root| due(root, now)).transpose()?.unwrap_or(false).then_some(Step::Publish));
            }
            Some((Step::Publish, at)) => (Step::Sign, at),
            Some((Step::Sign | Step::Drop, at)) => (Step::Drop, at),
        };
        Ok((now >= after + gate).then_some(next))
    }

    /// The bundle's generation: the one that is written down, or the next if the roots are others.
    pub(crate) fn generation(&self) -> u64 {
        let (number, _) = &self.written;
        if self.is_settled() { *number } else { number.saturating_add(1) }
    }

    /// Whether the generation is written down for the roots as they are. People edit bundles, and not generations.
    pub(crate) fn is_settled(&self) -> bool {
        self.written.1 == fingerprint(&self.roots)
    }

    /// Before anybody is told of the roots, which generation they are is written down, so that it never falls back.
    pub(crate) fn settle(&mut self) {
        self.written = (self.generation(), fingerprint(&self.roots));
    }

    pub(crate) fn generation_text(&self) -> Zeroizing<Vec<u8>> {
        let (number, of) = &self.written;
        Zeroizing::new(format!("{number} {of}\n").into_bytes())
    }

    /// The trusted roots.
    pub(crate) fn bundle(&self) -> Result<TrustBundle, CaFault> {
        let invalid = |source| CaFault::Certificates { file: BUNDLE, source };
        TrustBundle::new(self.generation(), self.roots.clone()).map_err(invalid)
    }

    /// A new issuer under the same root; what cross-signs the root stays.
    pub(crate) fn renew_issuer(&mut self, root: &Root, lifetimes: &Lifetimes, now: SystemTime) -> Result<(), CaFault> {
        let cross = self.issuer_chain.get(1..).unwrap_or_default();
        (self.issuer_key, self.issuer_chain) = root.issuer(cross, lifetimes, now)?;
        Ok(())
    }

    /// First step of a rotation: the next root is trusted. Nothing is signed under it yet.
    pub(crate) fn publish(&mut self, next: &Root) {
        if !self.roots.contains(&next.certificate) {
            self.roots.push(next.certificate.clone());
        }
    }

    /// Second step: an issuer under the next root. The old root cross-signs the new one, for those who slept through
    /// the first step.
    pub(crate) fn sign_under(
        &mut self,
        next: &Root,
        old: &Root,
        lifetimes: &Lifetimes,
        now: SystemTime,
    ) -> Result<(), CaFault> {
        let cross = templates::cross(&next.certificate, &next.key, &old.certificate, &old.key, lifetimes, now)?;
        (self.issuer_key, self.issuer_chain) = next.issuer(&[cross], lifetimes, now)?;
        Ok(())
    }

    /// Last step: nothing but `root` is trusted. What was signed under others is refused from now on.
    pub(crate) fn drop_others(&mut self, root: &CertificateDer<'static>) {
        self.roots = vec![root.clone()];
    }
}

/// Whether the issuer is at 70 % of its life.
pub(crate) fn issuer_is_due(parts: &Parts, now: SystemTime) -> Result<bool, CaFault> {
    due(certificates(parts, ISSUER)?.first().ok_or(CaFault::NoIssuer)?, now)
}

/// Whether a CA's certificate is at 70 % of its life.
pub(crate) fn due(certificate: &CertificateDer<'_>, now: SystemTime) -> Result<bool, CaFault> {
    let CaCertificate { not_before, not_after, .. } = CaCertificate::read(certificate)?;
    Ok(now >= renew_at(not_before, not_after, 0.5))
}

/// A step and when it was done, in seconds since 1970.
fn rotation(bytes: &[u8]) -> Result<(Step, SystemTime), CaFault> {
    let text = String::from_utf8_lossy(bytes);
    let parsed = text.trim_end().split_once(' ').and_then(|(step, at)| {
        let step = [Step::Publish, Step::Sign].into_iter().find(|known| known.label() == step)?;
        Some((step, SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(at.parse().ok()?))?))
    });
    parsed.ok_or_else(|| CaFault::Rotation(text.chars().take(100).collect()))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn generate() -> Result<SecretKey, CaFault> {
    SecretKey::generate().map_err(|error| CaFault::Sign(error.into()))
}

fn part<'a>(parts: &'a Parts, name: &'static str) -> Result<&'a [u8], CaFault> {
    parts.get(name).map(|bytes| bytes.as_slice()).ok_or(CaFault::Absent(name))
}

fn certificates(parts: &Parts, name: &'static str) -> Result<Vec<CertificateDer<'static>>, CaFault> {
    trust::certificates(part(parts, name)?).map_err(|source| CaFault::Certificates { file: name, source })
}

fn key(parts: &Parts, name: &'static str) -> Result<SecretKey, CaFault> {
    SecretKey::from_pem(part(parts, name)?).map_err(|source| CaFault::Key { file: name, source })
}

fn pem(certificates: &[CertificateDer<'_>]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(trust::to_pem(certificates).into_bytes())
}

fn pem_of(key: &SecretKey) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(key.to_pem().as_bytes().to_vec())
}

fn fingerprint(roots: &[CertificateDer<'_>]) -> String {
    hex(&roots.iter().flat_map(|root| root.iter().copied()).collect::<Vec<u8>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (Roots, Material) {
        let (lifetimes, now) = (Lifetimes::default(), SystemTime::now());
        let roots = Roots::create(&lifetimes, now).expect("made");
        let material = Material::create(&roots.root, &lifetimes, now).expect("made");
        (roots, material)
    }

    #[test]
    fn what_is_written_is_read_back_and_what_is_missing_is_named() {
        let (mut roots, material) = fresh();
        roots.prepare(&Lifetimes::default(), SystemTime::now()).expect("made");
        let parts: Parts = material.parts().into_iter().chain(roots.parts()).collect();
        let (read, read_roots) = (Material::read(&parts).expect("whole"), Roots::read(&parts).expect("whole"));
        assert_eq!((read.parts(), read_roots.parts()), (material.parts(), roots.parts()));
        for name in [ROOT, ROOT_KEY, NEXT_ROOT_KEY, ISSUER, ISSUER_KEY, BUNDLE, GENERATION] {
            let mut parts = parts.clone();
            parts.remove(name);
            let error =
                Material::read(&parts).map(drop).and(Roots::read(&parts).map(drop)).expect_err(name).to_string();
            assert!(error.starts_with(&format!("{name} is missing")), "{error}");
        }
    }

    #[test]
    fn other_roots_are_the_next_generation_and_settling_keeps_the_number() {
        let (mut roots, mut material) = fresh();
        assert_eq!((material.generation(), material.is_settled()), (1, true));
        material.publish(roots.prepare(&Lifetimes::default(), SystemTime::now()).expect("made"));
        assert_eq!((material.generation(), material.is_settled()), (2, false));
        material.settle();
        assert_eq!((material.generation(), material.is_settled()), (2, true));
        let before = material.parts();
        material.publish(roots.prepare(&Lifetimes::default(), SystemTime::now()).expect("there"));
        material.settle();
        assert_eq!(material.parts(), before, "twice is once");
        material.drop_others(&roots.root.certificate);
        material.settle();
        assert_eq!((material.generation(), material.roots.len()), (3, 1));
    }

    #[test]
    fn a_rotation_begins_at_seventy_percent_and_waits_between_its_steps() {
        let (_, mut material) = fresh();
        let (now, gate, day) = (SystemTime::now(), Duration::from_secs(3600), Duration::from_secs(86_400));
        let step = |material: &Material, at| material.step(gate, at).expect("readable");
        assert_eq!(step(&material, now + day * 2550), None);
        assert_eq!(step(&material, now + day * 2560), Some(Step::Publish));
        let now = now + day * 2560;
        for (done, next) in [(Step::Publish, Step::Sign), (Step::Sign, Step::Drop)] {
            material.rotation = Some((done, now));
            let parts: Parts = material.parts().into_iter().collect();
            material = Material::read(&parts).expect("whole");
            assert_eq!(step(&material, now + gate - Duration::from_secs(2)), None, "{done:?}");
            assert_eq!(step(&material, now + gate), Some(next), "{done:?}");
        }
        for damaged in ["", "sign", "sign x", "dropped 1", "sign 99999999999999999999"] {
            let error = rotation(damaged.as_bytes()).expect_err(damaged);
            assert!(matches!(error, CaFault::Rotation(_)), "{error}");
        }
    }
}
