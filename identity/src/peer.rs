//! Who a certificate speaks for. Asked after every handshake, because a resumed one verifies no certificate.

use std::time::{Duration, SystemTime};

use hauberk_mesh::{CloseCause, IdentityName, TrustDomain};
use rustls::{
    CertificateError,
    pki_types::{CertificateDer, ServerName},
};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

/// The other end of a connection, as its certificate proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its identity.
    pub name: IdentityName,
    /// When its certificate ends; no connection should be used for new streams after that.
    pub not_after: SystemTime,
}

/// Why a peer is not accepted. Always the peer's fault.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum PeerFault {
    /// It sent none.
    #[error("the peer has no certificate")]
    NoCertificate,
    /// The certificate cannot be read.
    #[error("the peer's certificate cannot be read: {why}")]
    Unreadable {
        /// What is wrong.
        why: String,
    },
    /// The certificate names no identity, or more than one thing.
    #[error("the peer's certificate names {found:?}: it must name one identity and nothing else")]
    NotAnIdentity {
        /// What it names.
        found: Vec<String>,
    },
    /// An identity of another mesh.
    #[error("the peer is {found}, which is not of the trust domain {control_namespace}.{domain}")]
    OtherTrustDomain {
        /// Who it is.
        found: IdentityName,
        /// Our control namespace.
        control_namespace: String,
        /// Our domain.
        domain: String,
    },
    /// Somebody else than expected.
    #[error("the peer is {found}, expected was {expected}")]
    Mismatch {
        /// Who was expected.
        expected: IdentityName,
        /// Who it is.
        found: IdentityName,
    },
    /// The certificate is past its end.
    #[error("the certificate of {name} ended {seconds} s ago")]
    Expired {
        /// Who.
        name: IdentityName,
        /// Since when.
        seconds: u64,
    },
    /// The certificate is before its start: one of the clocks is wrong.
    #[error("the certificate of {name} starts in {seconds} s: compare the clocks")]
    NotYetValid {
        /// Who.
        name: IdentityName,
        /// In how long.
        seconds: u64,
    },
}

impl PeerFault {
    /// The cause of close that this amounts to.
    pub fn cause(&self) -> CloseCause {
        match self {
            Self::Expired { .. } | Self::NotYetValid { .. } => CloseCause::CertificateExpired,
            Self::OtherTrustDomain { .. } | Self::Mismatch { .. } => CloseCause::IdentityMismatch,
            Self::NoCertificate | Self::Unreadable { .. } | Self::NotAnIdentity { .. } => CloseCause::HandshakeFailed,
        }
    }
}

/// The cause of close of a failed handshake.
pub fn close_cause(error: &rustls::Error) -> CloseCause {
    let rustls::Error::InvalidCertificate(error) = error else { return CloseCause::HandshakeFailed };
    match error {
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => CloseCause::CertificateExpired,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            CloseCause::IdentityMismatch
        }
        CertificateError::Other(other) => {
            other.0.downcast_ref::<PeerFault>().map_or(CloseCause::HandshakeFailed, PeerFault::cause)
        }
        _ => CloseCause::HandshakeFailed,
    }
}

/// The name to connect with (it becomes the SNI).
pub fn server_name(peer: &IdentityName) -> ServerName<'static> {
    ServerName::try_from(peer.as_str().to_owned()).expect("an identity is a valid DNS name")
}

/// What a leaf says of itself. Says nothing on who signed it.
#[derive(Debug, Clone)]
pub(crate) struct Leaf {
    pub(crate) name: IdentityName,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    /// Hexadecimal, without a sign byte.
    pub(crate) serial: String,
    /// The subject's public key, as it stands in the certificate.
    pub(crate) public_key: Vec<u8>,
}

impl Leaf {
    pub(crate) fn read(der: &[u8]) -> Result<Self, PeerFault> {
        let unreadable = |why: String| PeerFault::Unreadable { why };
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| unreadable(error.to_string()))?;
        if !rest.is_empty() {
            return Err(unreadable(format!("{} bytes too many", rest.len())));
        }
        let time = |seconds: i64| {
            let seconds = u64::try_from(seconds).map_err(|_| unreadable("valid before 1970".to_owned()))?;
            Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
        };
        Ok(Self {
            name: identity(&certificate)?,
            not_before: time(certificate.validity().not_before.timestamp())?,
            not_after: time(certificate.validity().not_after.timestamp())?,
            serial: certificate.serial.to_str_radix(16),
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
        })
    }

    /// The peer, if it is of `domain`, is `expected`, and is valid `now`.
    pub(crate) fn check(
        self,
        domain: &TrustDomain,
        expected: Option<&IdentityName>,
        now: SystemTime,
    ) -> Result<Peer, PeerFault> {
        if !self.name.is_in(domain) {
            return Err(PeerFault::OtherTrustDomain {
                found: self.name,
                control_namespace: domain.control_namespace().to_owned(),
                domain: domain.domain().to_owned(),
            });
        }
        if let Some(expected) = expected.filter(|expected| **expected != self.name) {
            return Err(PeerFault::Mismatch { expected: expected.clone(), found: self.name });
        }
        if let Ok(late) = now.duration_since(self.not_after)
            && !late.is_zero()
        {
            return Err(PeerFault::Expired { name: self.name, seconds: late.as_secs() });
        }
        if let Ok(early) = self.not_before.duration_since(now)
            && !early.is_zero()
        {
            return Err(PeerFault::NotYetValid { name: self.name, seconds: early.as_secs() });
        }
        Ok(Peer { name: self.name, not_after: self.not_after })
    }
}

/// The peer at the other end of a connection, from the chain that rustls verified or restored.
pub(crate) fn check(
    chain: Option<&[CertificateDer<'_>]>,
    domain: &TrustDomain,
    expected: Option<&IdentityName>,
    now: SystemTime,
) -> Result<Peer, PeerFault> {
    let leaf = chain.and_then(<[_]>::first).ok_or(PeerFault::NoCertificate)?;
    Leaf::read(leaf)?.check(domain, expected, now)
}

fn identity(certificate: &X509Certificate<'_>) -> Result<IdentityName, PeerFault> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| PeerFault::Unreadable { why: error.to_string() })?
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let not_an_identity = || PeerFault::NotAnIdentity { found: names.iter().map(ToString::to_string).collect() };
    match names {
        [GeneralName::DNSName(name)] => IdentityName::parse(name).map_err(|_| not_an_identity()),
        _ => Err(not_an_identity()),
    }
}

#[cfg(test)]
mod tests {
    use hauberk_mesh::TrustDomain;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_panic_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(Leaf::read(&bytes).is_err());
        }

        #[test]
        fn no_changed_leaf_panics_the_reader(at in any::<proptest::sample::Index>(), byte in any::<u8>()) {
            let name = TrustDomain::default().identity("web", "shop").expect("valid");
            let key = rcgen::KeyPair::generate().expect("a key");
            let params = rcgen::CertificateParams::new([name.to_string()]).expect("a name");
            let mut leaf = params.self_signed(&key).expect("signed").der().to_vec();
            prop_assert_eq!(Leaf::read(&leaf).expect("a leaf").name, name);
            let at = at.index(leaf.len());
            leaf[at] = byte;
            let _ = Leaf::read(&leaf);
        }
    }
}
