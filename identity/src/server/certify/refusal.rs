//! Why a certificate is refused: each reason once, with the gRPC status and the message that the caller gets.

use hauberk_mesh::{IdentityName, InvalidIdentity, TrustDomain};
use tonic::{Code, Status};

use crate::server::{SignFault, tokens::TokenFault};

/// Names what was wrong and what to do; never holds a token.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The name that was asked for.
    #[error("the identity asked for has {0} characters: a DNS name has at most 253")]
    LongName(usize),
    /// The name that was asked for, or the token's account.
    #[error(transparent)]
    Name(#[from] InvalidIdentity),
    /// A name of another mesh.
    #[error("{0} is not of the trust domain {control}.{domain}: ask the identity server of its own", control = .1.control_namespace(), domain = .1.domain())]
    OtherTrustDomain(IdentityName, TrustDomain),
    /// The token, as far as it can be seen from here.
    #[error(transparent)]
    Token(#[from] TokenRefusal),
    /// The signing request, or signing.
    #[error(transparent)]
    Request(SignFault),
    /// Too many at once.
    #[error("too many tokens are being reviewed, for this address or in all: ask again later")]
    Busy,
    /// Nobody vouched for the token.
    #[error("the token is not accepted: {0}")]
    Rejected(String),
    /// Nobody could be asked.
    #[error("the token or its pod could not be looked up: {0}; ask again later")]
    Unavailable(String),
    /// The token is somebody else's.
    #[error("the token is that of {own}, asked for was {asked}: ask for the identity of the pod's own ServiceAccount")]
    OtherIdentity {
        /// What was asked for.
        asked: IdentityName,
        /// Whose the token is.
        own: IdentityName,
    },
    /// The token's pod.
    #[error("there is no pod {0}: its token outlived it")]
    NoPod(String),
    /// The token's pod.
    #[error("pod {0} is another one of the same name than the token's: its token outlived it")]
    OtherPod(String),
    /// The token's pod.
    #[error("pod {pod} runs as {runs_as}, the token is for {token}")]
    OtherAccount {
        /// Which.
        pod: String,
        /// Its account.
        runs_as: String,
        /// The token's.
        token: String,
    },
    /// The token's pod.
    #[error("pod {0} has no proxy: only meshed pods get a certificate; inject it")]
    NotMeshed(String),
    /// The token's pod.
    #[error("pod {0} has ended")]
    Ended(String),
}

/// A [`Refusal`] for what a token says of itself.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct TokenRefusal(TokenFault);

impl From<TokenFault> for Refusal {
    fn from(fault: TokenFault) -> Self {
        Self::Token(TokenRefusal(fault))
    }
}

impl Refusal {
    /// Every reason, for metrics: a closed list.
    pub const REASONS: &[&str] = &[
        "bad-name",
        "other-trust-domain",
        "no-token",
        "bad-token",
        "wrong-audience",
        "expired-token",
        "early-token",
        "unbound-token",
        "bad-request",
        "other-key-type",
        "bad-request-signature",
        "signing-failed",
        "busy",
        "token-rejected",
        "unavailable",
        "other-identity",
        "no-pod",
        "other-pod",
        "other-account",
        "not-meshed",
        "pod-ended",
    ];

    /// The reason; one of [`Refusal::REASONS`].
    pub fn reason(&self) -> &'static str {
        match self {
            Self::LongName(_) | Self::Name(_) => "bad-name",
            Self::OtherTrustDomain(..) => "other-trust-domain",
            Self::Token(TokenRefusal(fault)) => match fault {
                TokenFault::Absent => "no-token",
                TokenFault::TooLarge(_) | TokenFault::Shape => "bad-token",
                TokenFault::Audience { .. } => "wrong-audience",
                TokenFault::Expired(_) => "expired-token",
                TokenFault::Early(_) => "early-token",
                TokenFault::NoPod => "unbound-token",
            },
            Self::Request(fault) => match fault {
                SignFault::TooLarge(_) | SignFault::Unreadable(_) => "bad-request",
                SignFault::OtherKey => "other-key-type",
                SignFault::NotItsKey => "bad-request-signature",
                SignFault::IssuerEnded | SignFault::Library(_) | SignFault::Key(_) => "signing-failed",
            },
            Self::Busy => "busy",
            Self::Rejected(_) => "token-rejected",
            Self::Unavailable(_) => "unavailable",
            Self::OtherIdentity { .. } => "other-identity",
            Self::NoPod(_) => "no-pod",
            Self::OtherPod(_) => "other-pod",
            Self::OtherAccount { .. } => "other-account",
            Self::NotMeshed(_) => "not-meshed",
            Self::Ended(_) => "pod-ended",
        }
    }

    fn code(&self) -> Code {
        match self.reason() {
            "bad-name" | "no-token" | "bad-token" | "bad-request" | "other-key-type" | "bad-request-signature" => {
                Code::InvalidArgument
            }
            "wrong-audience" | "expired-token" | "early-token" | "unbound-token" | "token-rejected" => {
                Code::Unauthenticated
            }
            "busy" => Code::ResourceExhausted,
            "unavailable" => Code::Unavailable,
            "signing-failed" => Code::Internal,
            _ => Code::PermissionDenied,
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code(), refusal.to_string())
    }
}
