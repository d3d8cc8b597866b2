//! What stands in the certificates that are signed here: all of it ours but a leaf's public key.

use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use hauberk_mesh::IdentityName;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm,
};
use rustls::pki_types::CertificateDer;
use x509_parser::{
    certification_request::X509CertificationRequest,
    prelude::{FromDer as _, X509Certificate},
};

use super::{CaFault, Issued, Lifetimes};
use crate::{InvalidKey, SecretKey};

/// A request for a P-256 key has some 300 bytes.
pub(crate) const LARGEST_REQUEST: usize = 4096;
/// An uncompressed P-256 point.
const POINT: usize = 65;
const UNCOMPRESSED: u8 = 4;

/// Why a leaf was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignFault {
    /// The caller's.
    #[error("the signing request has {0} bytes: at most {LARGEST_REQUEST} are read")]
    TooLarge(usize),
    /// The caller's.
    #[error("the signing request is not PKCS #10 in DER: {0}")]
    Unreadable(String),
    /// The caller's.
    #[error("the signing request's key is not an ECDSA P-256 key: make one of that kind")]
    OtherKey,
    /// The caller's.
    #[error("the signing request is not signed by its own key: whoever asks must hold the key")]
    NotItsKey,
    /// Ours.
    #[error("the issuer's certificate has ended: renew the issuer")]
    IssuerEnded,
    /// Ours.
    #[error("the certificate could not be signed: {0}")]
    Library(#[from] rcgen::Error),
    /// Ours.
    #[error(transparent)]
    Key(#[from] InvalidKey),
}

/// A public key that a request's own signature was checked with.
#[derive(Debug)]
pub(crate) struct RequestedKey(Vec<u8>);

impl PublicKeyData for RequestedKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// Takes the key out of a request. All else that it asks for is not even looked at.
pub(crate) fn requested_key(request: &[u8]) -> Result<RequestedKey, SignFault> {
    if request.len() > LARGEST_REQUEST {
        return Err(SignFault::TooLarge(request.len()));
    }
    let unreadable = |why: String| SignFault::Unreadable(why);
    let (rest, parsed) = X509CertificationRequest::from_der(request).map_err(|error| unreadable(error.to_string()))?;
    if !rest.is_empty() {
        return Err(unreadable(format!("{} bytes too many", rest.len())));
    }
    let subject = &parsed.certification_request_info.subject_pki;
    let key = RequestedKey(subject.subject_public_key.data.to_vec());
    // Whatever is not written as we would write it is another kind of key, or another form of this kind.
    let expected = key.0.len() == POINT && key.0[0] == UNCOMPRESSED && key.subject_public_key_info() == subject.raw;
    if !expected {
        return Err(SignFault::OtherKey);
    }
    parsed.verify_signature().map_err(|_| SignFault::NotItsKey)?;
    Ok(key)
}

/// Key and chain of the issuer.
#[derive(Debug)]
pub(crate) struct Issuer {
    signer: rcgen::Issuer<'static, SecretKey>,
    /// The issuer's certificate, and after it what cross-signs its root.
    chain: Vec<CertificateDer<'static>>,
    not_after: SystemTime,
}

impl Issuer {
    pub(crate) fn new(chain: Vec<CertificateDer<'static>>, key: SecretKey) -> Result<Self, CaFault> {
        let own = chain.first().ok_or(CaFault::NoIssuer)?;
        let facts = CaCertificate::read(own)?;
        if facts.public_key != key.public_key() {
            return Err(CaFault::OtherKey("issuer"));
        }
        let signer = rcgen::Issuer::from_ca_cert_der(own, key).map_err(SignFault::from)?;
        Ok(Self { signer, not_after: facts.not_after, chain })
    }

    pub(crate) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    pub(crate) fn leaf(
        &self,
        key: &impl PublicKeyData,
        name: &IdentityName,
        lifetimes: &Lifetimes,
        now: SystemTime,
    ) -> Result<Issued, SignFault> {
        let not_after = whole_seconds((now + lifetimes.leaf).min(self.not_after));
        if not_after <= now {
            return Err(SignFault::IssuerEnded);
        }
        let serial = serial()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::DnsName(name.as_str().try_into()?)];
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = (now - lifetimes.skew).into();
        params.not_after = not_after.into();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(Issued {
            leaf: params.signed_by(key, &self.signer)?.into(),
            intermediates: self.chain.clone(),
            not_after,
            serial: serial.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}

/// A self-signed root.
pub(crate) fn root(
    key: &SecretKey,
    lifetimes: &Lifetimes,
    now: SystemTime,
) -> Result<CertificateDer<'static>, SignFault> {
    let params = authority("root", BasicConstraints::Unconstrained, lifetimes.root, lifetimes, now)?;
    Ok(params.self_signed(key)?.into())
}

/// An issuer under a root; it signs leafs only.
pub(crate) fn issuer(
    key: &SecretKey,
    root: &CertificateDer<'_>,
    root_key: &SecretKey,
    lifetimes: &Lifetimes,
    now: SystemTime,
) -> Result<CertificateDer<'static>, SignFault> {
    let mut params = authority("issuer", BasicConstraints::Constrained(0), lifetimes.issuer, lifetimes, now)?;
    params.use_authority_key_identifier_extension = true;
    Ok(params.signed_by(key, &rcgen::Issuer::from_ca_cert_der(root, root_key)?)?.into())
}

/// The new root's name and key, signed by the old root: leads those who know only the old one to the new one's issuer.
pub(crate) fn cross(
    new: &CertificateDer<'_>,
    new_key: &SecretKey,
    old: &CertificateDer<'_>,
    old_key: &SecretKey,
    lifetimes: &Lifetimes,
    now: SystemTime,
) -> Result<CertificateDer<'static>, SignFault> {
    let mut params = authority("root", BasicConstraints::Constrained(1), lifetimes.issuer, lifetimes, now)?;
    params.distinguished_name = common_name(&common_name_of(new)?);
    params.use_authority_key_identifier_extension = true;
    Ok(params.signed_by(new_key, &rcgen::Issuer::from_ca_cert_der(old, old_key)?)?.into())
}

/// What has to be known of a CA's certificate.
pub(crate) struct CaCertificate {
    pub(crate) public_key: Vec<u8>,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl CaCertificate {
    pub(crate) fn read(der: &[u8]) -> Result<Self, CaFault> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| CaFault::Unreadable(error.to_string()))?;
        if !certificate.is_ca() {
            return Err(CaFault::NotCa);
        }
        let time = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.max(0).unsigned_abs());
        Ok(Self {
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
            not_before: time(certificate.validity().not_before.timestamp()),
            not_after: time(certificate.validity().not_after.timestamp()),
        })
    }
}

/// The one of `roots` that `certificate` names as its issuer.
pub(crate) fn issuer_among<'a>(
    roots: &'a [CertificateDer<'static>],
    certificate: &CertificateDer<'_>,
) -> Result<Option<&'a CertificateDer<'static>>, CaFault> {
    let unreadable = |error: x509_parser::nom::Err<_>| CaFault::Unreadable(error.to_string());
    let (_, issued) = X509Certificate::from_der(certificate).map_err(unreadable)?;
    let names_it = |root: &&CertificateDer<'_>| {
        X509Certificate::from_der(root).is_ok_and(|(_, root)| root.subject().as_raw() == issued.issuer().as_raw())
    };
    Ok(roots.iter().find(names_it))
}

fn authority(
    what: &str,
    constraints: BasicConstraints,
    life: Duration,
    lifetimes: &Lifetimes,
    now: SystemTime,
) -> Result<CertificateParams, SignFault> {
    let serial = serial()?;
    let mut params = CertificateParams::default();
    // Each has a name of its own, so that nobody takes one root for another.
    let unique: String = serial[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = common_name(&format!("Hauberk {what} {unique}"));
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = (now - lifetimes.skew).into();
    params.not_after = (now + life).into();
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

fn common_name_of(der: &CertificateDer<'_>) -> Result<String, SignFault> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| SignFault::Unreadable(error.to_string()))?;
    let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    name.map(str::to_owned).ok_or_else(|| SignFault::Unreadable("the root has no common name".to_owned()))
}

/// 16 random bytes; a positive number of that many bytes.
fn serial() -> Result<[u8; 16], SignFault> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| InvalidKey::Random)?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(bytes)
}

/// Certificates count in seconds: what we say must be what stands in them.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

#[cfg(test)]
mod tests {
    use hauberk_mesh::TrustDomain;
    use proptest::prelude::*;

    use super::*;

    fn request() -> (SecretKey, Vec<u8>) {
        let key = SecretKey::generate().expect("a key");
        let name = TrustDomain::default().identity("web", "shop").expect("valid");
        let request = key.request(&name).expect("a request");
        (key, request)
    }

    proptest! {
        #[test]
        fn no_bytes_panic_the_reader_of_requests(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(requested_key(&bytes).is_err());
        }

        #[test]
        fn no_change_of_a_request_puts_another_key_in_it(at in any::<proptest::sample::Index>(), flip in 1u8..) {
            let (key, mut request) = request();
            let at = at.index(request.len());
            request[at] ^= flip;
            // Some bytes of the frame around what is signed may be others, and nothing follows from it.
            if let Ok(taken) = requested_key(&request) {
                prop_assert_eq!(taken.der_bytes(), key.public_key(), "byte {}", at);
            }
        }
    }

    #[test]
    fn the_key_that_is_taken_is_the_requesters() {
        let (key, request) = request();
        assert_eq!(requested_key(&request).expect("a good request").der_bytes(), key.public_key());
    }
}
