//! `SecretKey`: an ECDSA P-256 key pair. Made here, wiped when dropped, never printed.

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use hauberk_mesh::IdentityName;
use pem::Pem;
use rcgen::{CertificateParams, DistinguishedName, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SignatureAlgorithm};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize as _, Zeroizing};

/// A key that cannot be read or used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidKey {
    /// Not a PEM block of a private key.
    #[error("not a PEM block \"PRIVATE KEY\": write the key as PKCS #8")]
    NotPem,
    /// Another algorithm, or damaged.
    #[error("not a PKCS #8 key of ECDSA P-256: other kinds are not used here")]
    NotP256,
    /// The system gave no random bytes.
    #[error("no key could be made: the system's random number generator failed")]
    Random,
    /// The library refused to sign a request.
    #[error("a signing request for {name} could not be made: {source}")]
    Request {
        /// The identity.
        name: IdentityName,
        /// What the library says.
        source: rcgen::Error,
    },
}

/// An ECDSA P-256 key pair.
pub struct SecretKey {
    pkcs8: Zeroizing<Vec<u8>>,
    pair: EcdsaKeyPair,
}

impl SecretKey {
    /// A new key.
    pub fn generate() -> Result<Self, InvalidKey> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
            .map_err(|_| InvalidKey::Random)?;
        Self::from_pkcs8(Zeroizing::new(document.as_ref().to_vec()))
    }

    /// Reads a PKCS #8 key.
    pub fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, InvalidKey> {
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8).map_err(|_| InvalidKey::NotP256)?;
        Ok(Self { pkcs8, pair })
    }

    /// Reads the first private key of a PEM text.
    pub fn from_pem(text: &[u8]) -> Result<Self, InvalidKey> {
        let blocks = pem::parse_many(text).map_err(|_| InvalidKey::NotPem)?;
        let mut key = None;
        for block in blocks {
            let wanted = key.is_none() && block.tag() == KEY_TAG;
            let contents = Zeroizing::new(block.into_contents());
            if wanted {
                key = Some(contents);
            }
        }
        Self::from_pkcs8(key.ok_or(InvalidKey::NotPem)?)
    }

    /// Writes the key as PKCS #8, PEM.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let mut block = Pem::new(KEY_TAG, self.pkcs8.to_vec());
        let text = Zeroizing::new(pem::encode(&block));
        std::mem::replace(&mut block, Pem::new(KEY_TAG, Vec::new())).into_contents().zeroize();
        text
    }

    /// A certificate signing request for `name`, DER. The CA takes only the public key from it; the name is there
    /// for CAs of Linkerd, which look at it.
    pub fn request(&self, name: &IdentityName) -> Result<Vec<u8>, InvalidKey> {
        let failed = |source| InvalidKey::Request { name: name.clone(), source };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::DnsName(name.as_str().try_into().map_err(failed)?)];
        Ok(params.serialize_request(self).map_err(failed)?.der().to_vec())
    }

    /// The public key, as an uncompressed point.
    pub fn public_key(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// The key as rustls signs with it.
    pub(crate) fn to_rustls(&self) -> Result<Arc<dyn rustls::sign::SigningKey>, InvalidKey> {
        let der = Zeroizing::new(PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.pkcs8.to_vec())));
        rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der).map_err(|_| InvalidKey::NotP256)
    }
}

const KEY_TAG: &str = "PRIVATE KEY";

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(redacted)")
    }
}

impl PublicKeyData for SecretKey {
    fn der_bytes(&self) -> &[u8] {
        self.public_key()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for SecretKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.pair.sign(&SystemRandom::new(), message).map_err(|_| rcgen::Error::RingUnspecified)?;
        Ok(signature.as_ref().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_survives_being_written_and_is_never_printed() {
        let key = SecretKey::generate().expect("a key");
        let text = key.to_pem();
        let read = SecretKey::from_pem(text.as_bytes()).expect("what was written is read");
        assert_eq!(read.public_key(), key.public_key());
        assert_eq!(format!("{key:?}"), "SecretKey(redacted)");
    }

    #[test]
    fn refuses_what_is_not_a_p256_key() {
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
        assert!(matches!(SecretKey::from_pem(other.serialize_pem().as_bytes()), Err(InvalidKey::NotP256)));
        assert!(matches!(SecretKey::from_pem(b"hello"), Err(InvalidKey::NotPem)));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = SecretKey::from_pem(&bytes);
            let _ = SecretKey::from_pkcs8(Zeroizing::new(bytes));
        }
    }
}
