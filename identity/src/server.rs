//! The identity server: the CA, `Identity.Certify` for Linkerd's and our proxies, and `Trust.Watch`.

mod ca;
mod certify;
#[doc(hidden)]
pub mod fuzzing;
mod kubernetes;
mod metrics;
mod pods;
mod run;
mod tokens;
mod watch;

pub use ca::{Ca, CaFault, Issued, Lifetimes, SignFault, rotation};
pub use certify::{Certify, CertifyLimits, Refusal};
pub use kubernetes::KubernetesConfig;
pub use metrics::Metrics;
pub use pods::{MeshPods, PodFacts, Pods, PodsFault, PodsUnavailable};
pub use run::{RunError, Server, ServerConfig, SourcesConfig};
pub use tokens::{Bound, LocalTokens, Proven, ReviewFault, TokenClaims, TokenReview, TokensFault};
pub use watch::TrustWatch;
