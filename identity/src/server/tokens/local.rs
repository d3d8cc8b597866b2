//! `LocalTokens`: where no Kubernetes mints tokens, a key in a directory does, and vouches for them.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use hauberk_mesh::Pod;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind};
use pem::Pem;
use rcgen::PublicKeyData as _;

use super::{Audiences, Bound, Kubernetes, Proven, ReviewFault, TokenClaims, TokenReview, seconds};
use crate::{InvalidKey, SecretKey, fs};

const ISSUER: &str = "hauberk-local";
const KEY: &str = "token.key";
const PUBLIC_KEY: &str = "token.pub.pem";

/// Why there is no local issuer.
#[derive(Debug, thiserror::Error)]
pub enum TokensFault {
    /// A file.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The key.
    #[error("{path}: {source}")]
    Key {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: InvalidKey,
    },
    /// The key, says the library of tokens.
    #[error("the token key is not usable: {0}")]
    Library(#[from] jsonwebtoken::errors::Error),
}

/// Mints tokens and vouches for those that it minted. ES256.
pub struct LocalTokens {
    signer: EncodingKey,
    verifier: DecodingKey,
}

impl LocalTokens {
    /// The issuer whose key is `token.key` in `dir`; made if it is not there. The public half is written beside it.
    pub fn open_or_create(dir: &Path) -> Result<Self, TokensFault> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| TokensFault::Io { path, source }
        };
        let (path, public_path) = (dir.join(KEY), dir.join(PUBLIC_KEY));
        let invalid = |source| TokensFault::Key { path: path.clone(), source };
        fs::make_dir(dir).map_err(at(dir))?;
        let new = SecretKey::generate().map_err(invalid)?;
        fs::create_whole(&path, new.to_pem().as_bytes()).map_err(at(&path))?;
        let text = zeroize::Zeroizing::new(fs::read(&path).map_err(at(&path))?);
        let key = SecretKey::from_pem(&text).map_err(invalid)?;
        let public = pem::encode(&Pem::new("PUBLIC KEY", key.subject_public_key_info()));
        fs::create_whole(&public_path, public.as_bytes()).map_err(at(&public_path))?;
        let signer = EncodingKey::from_ec_pem(&text)?;
        Ok(Self { signer, verifier: DecodingKey::from_ec_pem(public.as_bytes())? })
    }

    /// A token for `pod`, valid from now on.
    pub fn mint(&self, pod: &Pod, audience: &str, lifetime: Duration) -> String {
        self.mint_claims(&TokenClaims::for_pod(pod, audience, SystemTime::now(), lifetime))
    }

    /// A token that says whatever is wished; for tests.
    pub fn mint_claims(&self, claims: &TokenClaims) -> String {
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &self.signer)
            .expect("a P-256 key signs, and claims serialize")
    }
}

impl TokenClaims {
    /// What a token for `pod` says.
    pub fn for_pod(pod: &Pod, audience: &str, now: SystemTime, lifetime: Duration) -> Self {
        let start = seconds(now);
        Self {
            iss: ISSUER.to_owned(),
            sub: format!("system:serviceaccount:{}:{}", pod.namespace, pod.service_account),
            aud: Audiences::Many(vec![audience.to_owned()]),
            exp: start.saturating_add(lifetime.as_secs()),
            iat: Some(start),
            nbf: Some(start),
            kubernetes: Some(Kubernetes {
                namespace: pod.namespace.clone(),
                serviceaccount: Bound { name: pod.service_account.clone(), uid: "local".to_owned() },
                pod: Some(Bound { name: pod.name.clone(), uid: pod.uid.clone() }),
            }),
        }
    }
}

impl TokenReview for LocalTokens {
    async fn review(&self, token: &str, audience: &str) -> Result<Proven, ReviewFault> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[audience]);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["aud", "exp", "iss", "nbf", "sub"]);
        // One clock, ours.
        validation.leeway = 0;
        validation.validate_nbf = true;
        let decoded = jsonwebtoken::decode::<TokenClaims>(token, &self.verifier, &validation);
        let claims = decoded.map_err(|error| ReviewFault::Rejected(describe(error.kind()).to_owned()))?.claims;
        claims.proven().map_err(|fault| ReviewFault::Rejected(fault.to_string()))
    }
}

/// Never what stands in the token.
fn describe(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidSignature => "it was not signed by the issuer of this mesh",
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => "it is not signed with ES256",
        ErrorKind::ExpiredSignature => "it has ended",
        ErrorKind::ImmatureSignature => "it has not started",
        ErrorKind::InvalidAudience => "it is for another audience",
        ErrorKind::InvalidIssuer => "it is from another issuer",
        _ => "it is not a JWT of a ServiceAccount",
    }
}

impl fmt::Debug for LocalTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LocalTokens(redacted)")
    }
}
