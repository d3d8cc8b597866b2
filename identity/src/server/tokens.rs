//! Tokens: what one says before anybody has vouched for it, who vouches ([`TokenReview`]), and the local issuer of
//! tokens that look like Kubernetes' bound ServiceAccount tokens.

mod local;

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

pub use local::{LocalTokens, TokensFault};

/// Kubernetes' tokens have some 1,500 bytes.
pub(crate) const LARGEST_TOKEN: usize = 8 * 1024;
/// By how much the issuer's clock may be ahead of ours.
const EARLY: Duration = Duration::from_secs(60);

/// Whom a token speaks for, once somebody who can tell has said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// The ServiceAccount's namespace, and the pod's.
    pub namespace: String,
    /// The ServiceAccount.
    pub service_account: String,
    /// The pod that the token is bound to.
    pub pod: Bound,
}

/// An object that a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// Why a token was not vouched for.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ReviewFault {
    /// The token's fault.
    #[error("{0}")]
    Rejected(String),
    /// Nobody could be asked.
    #[error("{0}")]
    Unavailable(String),
}

/// Says whether a token is genuine, and whom it speaks for. Asked only about tokens whose shape, audience and time are right.
pub trait TokenReview: fmt::Debug + Send + Sync + 'static {
    /// Asks.
    fn review(&self, token: &str, audience: &str) -> impl Future<Output = Result<Proven, ReviewFault>> + Send;
}

/// What a token is checked for here, before anybody is asked about it.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum TokenFault {
    #[error("there is no token: send the ServiceAccount token that is mounted for this purpose")]
    Absent,
    #[error("the token has {0} bytes: at most {LARGEST_TOKEN} are read")]
    TooLarge(usize),
    #[error("the token is not a JWT of a ServiceAccount")]
    Shape,
    #[error("the token is for the audience {found}, not for {expected:?}: mount one that is")]
    Audience { found: String, expected: String },
    #[error("the token ended {0} s ago: read it anew from its file, kubelet replaces it")]
    Expired(u64),
    #[error("the token starts in {0} s: compare the clocks")]
    Early(u64),
    #[error(
        "the token is bound to no pod: use a token that kubelet mounts, not one of a Secret or of `kubectl create token`"
    )]
    NoPod,
}

/// Checks size, shape, audience, expiry and pod of a token that nobody has vouched for. What passes is not believed.
pub(crate) fn precheck<'a>(token: &'a [u8], audience: &str, now: SystemTime) -> Result<&'a str, TokenFault> {
    match token.len() {
        0 => return Err(TokenFault::Absent),
        1..=LARGEST_TOKEN => {}
        length => return Err(TokenFault::TooLarge(length)),
    }
    // A file's last line ends in a newline.
    let token = str::from_utf8(token).map_err(|_| TokenFault::Shape)?.trim_end();
    let claims: TokenClaims = jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(|_| TokenFault::Shape)?;
    if !claims.aud.contains(audience) {
        return Err(TokenFault::Audience { found: claims.aud.to_string(), expected: audience.to_owned() });
    }
    let now = seconds(now);
    if claims.exp <= now {
        return Err(TokenFault::Expired(now - claims.exp));
    }
    let starts = claims.nbf.unwrap_or(0);
    if starts > now + EARLY.as_secs() {
        return Err(TokenFault::Early(starts - now));
    }
    claims.proven().map(|_| token)
}

/// The claims of a ServiceAccount token, as Kubernetes writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenClaims {
    /// Issuer.
    pub iss: String,
    /// `system:serviceaccount:<namespace>:<name>`.
    pub sub: String,
    /// Audiences.
    pub aud: Audiences,
    /// End, seconds since 1970.
    pub exp: u64,
    /// Issued at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iat: Option<u64>,
    /// Start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    /// What the token is bound to.
    #[serde(rename = "kubernetes.io", default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Kubernetes>,
}

/// The claim `kubernetes.io`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kubernetes {
    /// Namespace of all that is named here.
    pub namespace: String,
    /// The account.
    pub serviceaccount: Bound,
    /// The pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Bound>,
}

/// One audience or several; JWT allows both forms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Audiences {
    /// A list.
    Many(Vec<String>),
    /// One.
    One(String),
}

impl Audiences {
    fn contains(&self, audience: &str) -> bool {
        match self {
            Self::Many(all) => all.iter().any(|one| one == audience),
            Self::One(one) => one == audience,
        }
    }
}

impl fmt::Display for Audiences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Many(all) => write!(f, "{all:?}"),
            Self::One(one) => write!(f, "{one:?}"),
        }
    }
}

impl TokenClaims {
    /// Whom the claims name; that they are genuine is another question.
    pub(crate) fn proven(self) -> Result<Proven, TokenFault> {
        let account = self.sub.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
        let (namespace, service_account) = account.ok_or(TokenFault::Shape)?;
        let kubernetes = self.kubernetes.ok_or(TokenFault::NoPod)?;
        let pod = kubernetes.pod.ok_or(TokenFault::NoPod)?;
        if kubernetes.namespace != namespace || kubernetes.serviceaccount.name != service_account {
            return Err(TokenFault::Shape);
        }
        if pod.name.is_empty() || pod.uid.is_empty() {
            return Err(TokenFault::NoPod);
        }
        Ok(Proven { namespace: namespace.to_owned(), service_account: service_account.to_owned(), pod })
    }
}

pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_audience_may_be_written_alone_or_in_a_list() {
        for (written, contained) in [(r#""a""#, true), (r#"["b","a"]"#, true), (r#""b""#, false), ("[]", false)] {
            let audiences: Audiences = serde_json::from_str(written).expect("an audience");
            assert_eq!(audiences.contains("a"), contained, "{written}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic_the_check(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(precheck(&bytes, "a", SystemTime::now()).is_err());
        }

        #[test]
        fn no_parts_panic_the_check(token in "[A-Za-z0-9_-]{0,60}(\\.[A-Za-z0-9_-]{0,60}){0,3}") {
            prop_assert!(precheck(token.as_bytes(), "a", SystemTime::now()).is_err());
        }
    }
}
