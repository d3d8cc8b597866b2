//! A handshake with a proxy's mesh port that asks for one thing: the chain, and proof that the proxy has its key. Who the
//! chain speaks for is judged afterwards, so that a wrong one can be shown.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use hauberk_mesh::{ALPN_HAUBERK, IdentityName};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::TLS13,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

/// Leaf first.
pub(crate) type Chain = Vec<CertificateDer<'static>>;

/// The chain of whoever answers. We show no certificate ourselves: the proxy closes then, but has answered.
pub(crate) async fn chain(stream: impl AsyncRead + AsyncWrite + Unpin, identity: &IdentityName) -> Result<Chain> {
    let seen = Arc::new(Witness { provider: Arc::new(aws_lc_rs::default_provider()), chain: Mutex::default() });
    let mut config = ClientConfig::builder_with_provider(seen.provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(seen.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_HAUBERK.to_vec()];
    let name = ServerName::try_from(identity.to_string()).context("an identity is a name")?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.context("the proxy does not answer by TLS")?;
    let chain = seen.chain.lock().expect("nobody panics while holding it").clone();
    Ok(chain)
}

/// Keeps what it sees, and believes it for now.
#[derive(Debug)]
struct Witness {
    provider: Arc<CryptoProvider>,
    chain: Mutex<Chain>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = std::iter::once(leaf).chain(intermediates).map(|der| der.clone().into_owned()).collect();
        *self.chain.lock().expect("nobody panics while holding it") = chain;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
