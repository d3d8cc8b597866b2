//! `Credentials`: one certificate of ours under one trust bundle, and the TLS configurations that follow from the two.
//! A change of either makes new ones: new verifiers, new ticket keys, nothing carried over.

use std::{fmt, sync::Arc, time::SystemTime};

use hauberk_mesh::{ALPN_HAUBERK, ALPN_LINKERD, IdentityName};
use rustls::{
    ClientConfig, ServerConfig,
    client::{ResolvesClientCert, Resumption, danger::ServerCertVerifier},
    pki_types::{CertificateDer, UnixTime},
    server::{NoServerSessionStorage, ProducesTickets, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};

use crate::{
    EndpointSessions, Peer, PeerFault, SecretKey, TrustBundle,
    key::InvalidKey,
    peer::{self, Leaf},
    provider::{VERSIONS, provider},
    tickets::Ticketer,
    verify::{ClientVerifier, ServerChain, ServerVerifier},
};

/// Leaf, issuer, and what cross-signs during a rotation.
pub(crate) const LONGEST_CHAIN: usize = 8;

/// A certificate that cannot be ours.
#[derive(Debug, thiserror::Error)]
pub enum InvalidCredentials {
    /// It is not that of an identity that is valid now.
    #[error("the certificate is not usable: {0}")]
    Leaf(#[from] PeerFault),
    /// It belongs to another key.
    #[error("the certificate of {0} is not for this key")]
    OtherKey(IdentityName),
    /// No root vouches for it.
    #[error("the certificate of {name} does not lead to a trusted root: {source}")]
    Untrusted {
        /// Whose.
        name: IdentityName,
        /// What the verifier says.
        source: rustls::Error,
    },
    /// Far more certificates than a chain has.
    #[error("a chain of {0} certificates: at most {LONGEST_CHAIN} are used")]
    LongChain(usize),
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] InvalidKey),
    /// rustls could not be set up.
    #[error("TLS could not be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// What this process proves, and whom it believes.
pub struct Credentials {
    own: Arc<Own>,
    trust: TrustBundle,
    server_chain: Arc<ServerChain>,
    resolver: Arc<dyn ResolvesClientCert>,
    mesh_server: Arc<ServerConfig>,
}

/// The certificate alone.
struct Own {
    leaf: Leaf,
    generation: u64,
    certified: CertifiedKey,
}

impl Credentials {
    /// Checks that `chain` (leaf first) is `name`'s, for `key`, valid at `now` and signed under `trust`. `generation`
    /// counts the certificates of this process.
    pub fn new(
        name: &IdentityName,
        key: &SecretKey,
        chain: Vec<CertificateDer<'static>>,
        trust: &TrustBundle,
        generation: u64,
        now: SystemTime,
    ) -> Result<Self, InvalidCredentials> {
        if chain.len() > LONGEST_CHAIN {
            return Err(InvalidCredentials::LongChain(chain.len()));
        }
        let leaf = Leaf::read(chain.first().ok_or(PeerFault::NoCertificate)?)?;
        leaf.clone().check(&name.trust_domain(), Some(name), now)?;
        if leaf.public_key != key.public_key() {
            return Err(InvalidCredentials::OtherKey(name.clone()));
        }
        let own = Arc::new(Own { leaf, generation, certified: CertifiedKey::new(chain, key.to_rustls()?) });
        let credentials = Self::assemble(own, trust)?;
        match credentials.verify(now) {
            Ok(()) => Ok(credentials),
            Err(source) => Err(InvalidCredentials::Untrusted { name: name.clone(), source }),
        }
    }

    /// The same certificate under another bundle.
    pub(crate) fn with_trust(&self, trust: &TrustBundle) -> Result<Self, InvalidCredentials> {
        Self::assemble(self.own.clone(), trust)
    }

    fn assemble(own: Arc<Own>, trust: &TrustBundle) -> Result<Self, InvalidCredentials> {
        let resolver = Arc::new(SingleCertAndKey::from(own.certified.clone()));
        let verifier = Arc::new(ClientVerifier::new(trust, own.leaf.name.trust_domain(), true));
        let mut mesh_server = server(&own.certified, verifier)?;
        mesh_server.alpn_protocols = vec![ALPN_HAUBERK.to_vec(), ALPN_LINKERD.to_vec()];
        mesh_server.ticketer = Arc::new(Ticketer::new(own.leaf.not_after)?) as Arc<dyn ProducesTickets>;
        // Each handshake uses one up: so there are as many as connections were ever made at once.
        mesh_server.send_tls13_tickets = 1;
        mesh_server.enable_secret_extraction = true;
        Ok(Self {
            server_chain: ServerChain::new(trust),
            trust: trust.clone(),
            resolver,
            mesh_server: Arc::new(mesh_server),
            own,
        })
    }

    /// Whom the certificate names.
    pub fn name(&self) -> &IdentityName {
        &self.own.leaf.name
    }

    /// Which certificate of this process it is: rises with each renewal.
    pub fn generation(&self) -> u64 {
        self.own.generation
    }

    /// Which trust bundle.
    pub fn trust_generation(&self) -> u64 {
        self.trust.generation()
    }

    /// When the certificate ends.
    pub fn not_after(&self) -> SystemTime {
        self.own.leaf.not_after
    }

    /// When the certificate starts; some minutes before it was made.
    pub fn not_before(&self) -> SystemTime {
        self.own.leaf.not_before
    }

    /// The certificate's serial number, hexadecimal.
    pub fn serial(&self) -> &str {
        &self.own.leaf.serial
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.own.certified.cert
    }

    /// The trusted roots.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        self.trust.roots()
    }

    /// The trust bundle.
    pub fn trust(&self) -> &TrustBundle {
        &self.trust
    }

    /// For the mesh port: a client certificate of our trust domain is required. One per `Credentials`, with ticket keys
    /// of its own. A client that offers no ALPN at all gets through the handshake: look at what was agreed upon. Here and
    /// in `mesh_client`, rustls gives up a connection's secrets, to the proxy's own record layer.
    pub fn mesh_server(&self) -> Arc<ServerConfig> {
        self.mesh_server.clone()
    }

    /// For connections to one endpoint, which must prove `peer`. `sessions` is that endpoint's own, and keeps the
    /// tickets from one connection to the next. Cheap.
    pub fn mesh_client(&self, peer: &IdentityName, sessions: Arc<EndpointSessions>) -> Arc<ClientConfig> {
        let verifier = sessions.verifier(&self.server_chain, peer);
        let mut config = client(verifier, Some(self.resolver.clone()));
        config.alpn_protocols = vec![ALPN_HAUBERK.to_vec(), ALPN_LINKERD.to_vec()];
        config.resumption = Resumption::store(sessions);
        config.enable_secret_extraction = true;
        Arc::new(config)
    }

    /// After every handshake, resumed or not: whether the peer's chain names an identity of our trust domain, the
    /// `expected` one if given, and the certificate is valid `now`.
    pub fn check_peer(
        &self,
        chain: Option<&[CertificateDer<'_>]>,
        expected: Option<&IdentityName>,
        now: SystemTime,
    ) -> Result<Peer, PeerFault> {
        peer::check(chain, &self.name().trust_domain(), expected, now)
    }

    /// For gRPC: HTTP/2, no resumption (few connections).
    pub(crate) fn grpc_server(&self, mandatory: bool) -> Result<ServerConfig, rustls::Error> {
        let verifier = ClientVerifier::new(&self.trust, self.name().trust_domain(), mandatory);
        let mut config = server(&self.own.certified, Arc::new(verifier))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// Whether a peer that trusts what we trust would believe our own chain.
    pub(crate) fn verify(&self, now: SystemTime) -> Result<(), rustls::Error> {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let verifier = ServerVerifier { chain: self.server_chain.clone(), expected: self.name().clone() };
        let (leaf, rest) = self.chain().split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let name = crate::server_name(self.name());
        verifier.verify_server_cert(leaf, rest, &name, &[], UnixTime::since_unix_epoch(since)).map(drop)
    }
}

/// For gRPC towards `server`, with our certificate if there is one yet.
pub(crate) fn grpc_client(
    server: &IdentityName,
    trust: &TrustBundle,
    credentials: Option<&Credentials>,
) -> ClientConfig {
    let verifier = Arc::new(ServerVerifier { chain: ServerChain::new(trust), expected: server.clone() });
    let mut config = client(verifier, credentials.map(|own| own.resolver.clone()));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    config
}

fn server(certified: &CertifiedKey, verifier: Arc<dyn ClientCertVerifier>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified.clone())));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

fn client(verifier: Arc<dyn ServerCertVerifier>, own: Option<Arc<dyn ResolvesClientCert>>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .expect("the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    match own {
        Some(own) => builder.with_client_cert_resolver(own),
        None => builder.with_no_client_auth(),
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("name", self.name())
            .field("serial", &self.serial())
            .field("generation", &self.generation())
            .field("trust_generation", &self.trust_generation())
            .field("key", &"redacted")
            .finish_non_exhaustive()
    }
}
