//! `TrustBundle`: the roots that are trusted now, and which generation of them. Checked once, here.

use std::sync::Arc;

use pem::Pem;
use rustls::{RootCertStore, pki_types::CertificateDer};

/// Rotation needs two roots at a time; somebody who brings their own may have a few more.
const MOST_ROOTS: usize = 16;
/// A root with an RSA key of 4096 bits has about 1,400 bytes.
const LARGEST_ROOT: usize = 8 * 1024;

/// Roots that cannot be trusted as they are.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidBundle {
    /// Not PEM.
    #[error("the trust roots are not PEM: {0}")]
    NotPem(String),
    /// Something else than a certificate.
    #[error("the trust roots hold a PEM block {0:?}: only certificates belong there")]
    NotCertificate(String),
    /// Nobody could be trusted.
    #[error("there is no trust root: at least one certificate is needed")]
    Empty,
    /// More than anybody needs.
    #[error("{0} trust roots: at most {MOST_ROOTS} are used")]
    TooMany(usize),
    /// Not a certificate that can be a root.
    #[error("trust root number {number} is not usable: {why}")]
    Unusable {
        /// Its place, from 1 on.
        number: usize,
        /// What the library says.
        why: String,
    },
}

/// The trusted roots of one generation. At least one.
#[derive(Debug, Clone)]
pub struct TrustBundle {
    generation: u64,
    roots: Vec<CertificateDer<'static>>,
    anchors: Arc<RootCertStore>,
}

impl TrustBundle {
    /// Checks `roots`, DER.
    pub fn new(generation: u64, roots: Vec<CertificateDer<'static>>) -> Result<Self, InvalidBundle> {
        match roots.len() {
            0 => return Err(InvalidBundle::Empty),
            1..=MOST_ROOTS => {}
            number => return Err(InvalidBundle::TooMany(number)),
        }
        let mut anchors = RootCertStore::empty();
        for (index, root) in roots.iter().enumerate() {
            let unusable = |why: String| InvalidBundle::Unusable { number: index + 1, why };
            if root.len() > LARGEST_ROOT {
                return Err(unusable(format!("{} bytes, at most {LARGEST_ROOT} are read", root.len())));
            }
            anchors.add(root.clone()).map_err(|error| unusable(error.to_string()))?;
        }
        Ok(Self { generation, roots, anchors: Arc::new(anchors) })
    }

    /// Reads the certificates of a PEM text.
    pub fn from_pem(generation: u64, text: &[u8]) -> Result<Self, InvalidBundle> {
        Self::new(generation, certificates(text)?)
    }

    /// The roots as PEM.
    pub fn to_pem(&self) -> String {
        to_pem(&self.roots)
    }

    /// 0 for what the pod was made with, then what the identity server says.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The roots, DER.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    pub(crate) fn anchors(&self) -> Arc<RootCertStore> {
        self.anchors.clone()
    }
}

/// The certificates of a PEM text that holds nothing else.
pub(crate) fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, InvalidBundle> {
    let blocks = pem::parse_many(text).map_err(|error| InvalidBundle::NotPem(error.to_string()))?;
    // The parser passes over a block that is cut off; a root that is gone without a word must not be.
    let begun = text.windows(BEGIN.len()).filter(|window| *window == BEGIN).count();
    if begun != blocks.len() {
        return Err(InvalidBundle::NotPem(format!("{begun} blocks begin and {} can be read", blocks.len())));
    }
    let certificate = |block: Pem| match block.tag() {
        CERTIFICATE_TAG => Ok(CertificateDer::from(block.into_contents())),
        other => Err(InvalidBundle::NotCertificate(other.to_owned())),
    };
    blocks.into_iter().map(certificate).collect()
}

/// Certificates as PEM.
pub(crate) fn to_pem(certificates: &[CertificateDer<'_>]) -> String {
    let blocks: Vec<_> = certificates.iter().map(|der| Pem::new(CERTIFICATE_TAG, der.to_vec())).collect();
    pem::encode_many(&blocks)
}

const CERTIFICATE_TAG: &str = "CERTIFICATE";
const BEGIN: &[u8] = b"-----BEGIN";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const END: &[u8] = b"-----END CERTIFICATE-----";

    fn root(name: &str) -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate().expect("a key");
        rcgen::CertificateParams::new([name.to_owned()]).expect("a name").self_signed(&key).expect("signed").into()
    }

    #[test]
    fn a_bundle_survives_being_written() {
        let bundle = TrustBundle::new(7, vec![root("a"), root("b")]).expect("two roots");
        let read = TrustBundle::from_pem(7, bundle.to_pem().as_bytes()).expect("what was written is read");
        assert_eq!(read.roots(), bundle.roots());
    }

    #[test]
    fn refuses_what_cannot_be_trusted() {
        let one = TrustBundle::new(1, vec![root("a")]).expect("one root").to_pem();
        let key = one.replace("CERTIFICATE", "PRIVATE KEY");
        for (text, expected) in [
            ("", "at least one certificate"),
            ("hello", "at least one certificate"),
            (&key, "only certificates belong there"),
            (&one.repeat(17), "17 trust roots: at most 16"),
            (&one[..one.len() - 20], "1 blocks begin and 0 can be read"),
            (&format!("{one}{}", &one[..100]), "2 blocks begin and 1 can be read"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "trust root number 1 is not usable"),
        ] {
            let error = TrustBundle::from_pem(1, text.as_bytes()).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
        let large = TrustBundle::new(1, vec![vec![0; 9000].into()]).expect_err("too large").to_string();
        assert!(large.contains("9000 bytes"), "{large}");
    }

    proptest! {
        #[test]
        fn no_text_panics_the_reader(text in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = TrustBundle::from_pem(1, text.as_bytes());
            let _ = TrustBundle::from_pem(1, &bytes);
            let _ = TrustBundle::from_pem(1, pem::encode(&Pem::new(CERTIFICATE_TAG, bytes)).as_bytes());
        }

        #[test]
        fn no_cut_or_changed_bundle_loses_a_root_silently(
            cut in any::<proptest::sample::Index>(),
            at in any::<proptest::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let whole = TrustBundle::new(1, vec![root("a"), root("b")]).expect("two roots").to_pem().into_bytes();
            let second = whole.windows(BEGIN.len()).rposition(|window| window == BEGIN).expect("two blocks");
            let cut = cut.index(whole.len());
            let read = TrustBundle::from_pem(1, &whole[..cut]).map_or(0, |bundle| bundle.roots().len());
            // Whole blocks may go unseen only where the cut leaves nothing of the next.
            let first = whole.windows(END.len()).position(|window| window == END).expect("a block") + END.len();
            prop_assert!(read != 1 || (first..second + BEGIN.len()).contains(&cut), "{} at {}", read, cut);
            let mut changed = whole.clone();
            changed[at.index(whole.len())] = byte;
            let _ = TrustBundle::from_pem(1, &changed);
        }
    }
}
