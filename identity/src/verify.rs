//! The verifiers of both sides: rustls' own, which check a chain that was not checked before, and on top the identity.

use std::{sync::Arc, time::SystemTime};

use hauberk_mesh::{IdentityName, TrustDomain};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use crate::{PeerFault, TrustBundle, chains::Chains, peer::Leaf, provider::provider, server_name};

/// Checks that a server's chain leads to a root, by rustls' own verifier. Shared by all that connect.
#[derive(Debug)]
pub(crate) struct ServerChain {
    webpki: Arc<WebPkiServerVerifier>,
    known: Chains,
}

impl ServerChain {
    pub(crate) fn new(trust: &TrustBundle) -> Arc<Self> {
        let webpki = WebPkiServerVerifier::builder_with_provider(trust.anchors(), provider());
        Arc::new(Self { webpki: webpki.build().expect("a bundle has a root"), known: Chains::default() })
    }
}

/// Accepts one server: the one that proves `expected`, whatever name the connection was opened with.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    pub(crate) chain: Arc<ServerChain>,
    pub(crate) expected: IdentityName,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ServerChain { webpki, known } = &*self.chain;
        let name = server_name(&self.expected);
        let verify = || {
            webpki.verify_server_cert(end_entity, intermediates, &name, ocsp, now)?;
            check(end_entity, &self.expected.trust_domain(), Some(&self.expected), now)
        };
        known.verify(end_entity, intermediates, self.expected.as_str(), now, verify)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.webpki.supported_verify_schemes()
    }
}

/// Accepts every client of our trust domain.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    known: Chains,
    domain: TrustDomain,
    mandatory: bool,
}

impl ClientVerifier {
    pub(crate) fn new(trust: &TrustBundle, domain: TrustDomain, mandatory: bool) -> Self {
        // No hints of root names: every client has one certificate, and the handshake stays small.
        let chain = WebPkiClientVerifier::builder_with_provider(trust.anchors(), provider())
            .clear_root_hint_subjects()
            .build()
            .expect("a bundle has a root");
        Self { chain, known: Chains::default(), domain, mandatory }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verify = || {
            self.chain.verify_client_cert(end_entity, intermediates, now)?;
            check(end_entity, &self.domain, None, now)
        };
        // Any name of our trust domain will do.
        self.known.verify(end_entity, intermediates, "", now, verify)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

fn check(
    end_entity: &CertificateDer<'_>,
    domain: &TrustDomain,
    expected: Option<&IdentityName>,
    now: UnixTime,
) -> Result<(), Error> {
    let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(now.as_secs());
    let checked = Leaf::read(end_entity).and_then(|leaf| leaf.check(domain, expected, now));
    let rejected = |fault: PeerFault| CertificateError::Other(OtherError(Arc::new(fault)));
    checked.map(drop).map_err(|fault| Error::InvalidCertificate(rejected(fault)))
}
