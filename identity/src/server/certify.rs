//! `Identity.Certify`: a token and a signing request in, a leaf or a refusal out. Everything is checked here, nothing
//! is taken from the request but its key.

mod refusal;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hauberk_mesh::{DESTINATION_ACCOUNT, IDENTITY_ACCOUNT, IdentityName, TOKEN_AUDIENCE, TrustDomain, WEBHOOK_ACCOUNT};
use linkerd2_proxy_api::identity::{
    CertifyRequest, CertifyResponse,
    identity_server::{Identity, IdentityServer},
};
use tokio::time::timeout;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

pub use refusal::Refusal;

use super::{
    Ca, Issued, Metrics, PodFacts, Pods, Proven, TokenReview,
    ca::SignFault,
    kubernetes::Told,
    tokens::{ReviewFault, precheck},
};
use crate::grpc::{ConnectInfo, Sources};

/// Token, request and name, and room.
const LARGEST_CALL: usize = 32 * 1024;
/// A DNS name.
const LONGEST_NAME: usize = 253;

/// What callers may hold.
#[derive(Debug, Clone)]
pub struct CertifyLimits {
    /// Reviews under way, in all. Each is a call to the API server.
    pub reviews: usize,
    /// Of these, for one address.
    pub reviews_per_source: usize,
    /// Longest wait for one, and for the look at the pod.
    pub review: Duration,
}

impl Default for CertifyLimits {
    fn default() -> Self {
        Self { reviews: 64, reviews_per_source: 4, review: Duration::from_secs(5) }
    }
}

/// The service.
#[derive(Debug)]
pub struct Certify<R, P> {
    ca: Arc<Ca>,
    domain: TrustDomain,
    reviewer: R,
    pods: Arc<P>,
    limits: CertifyLimits,
    reviews: Sources,
    metrics: Metrics,
    told: Option<Told>,
}

/// Who asks, for the log.
#[derive(Debug, Clone)]
struct Caller {
    remote: SocketAddr,
    peer: Option<IdentityName>,
}

/// What was granted, for the log.
struct Granted {
    issued: Issued,
    proven: Proven,
    pod: PodFacts,
}

impl<R: TokenReview, P: Pods> Certify<R, P> {
    /// Signs with `ca` for the pods that `pods` knows, whose tokens `reviewer` vouches for.
    pub fn new(
        ca: Arc<Ca>,
        domain: TrustDomain,
        reviewer: R,
        pods: Arc<P>,
        limits: CertifyLimits,
        metrics: Metrics,
    ) -> Self {
        let reviews = Sources::new(limits.reviews, limits.reviews_per_source);
        Self { ca, domain, reviewer, pods, limits, reviews, metrics, told: None }
    }

    /// Tells people of refusals, by events.
    pub(crate) fn telling(self, told: Told) -> Self {
        Self { told: Some(told), ..self }
    }

    /// The service as tonic routes to it; what is larger than any honest call is not read.
    pub fn into_server(self) -> IdentityServer<Self> {
        IdentityServer::new(self).max_decoding_message_size(LARGEST_CALL)
    }

    /// `proven` is set as soon as somebody has vouched for the token.
    async fn decide(
        &self,
        asked: &CertifyRequest,
        caller: &Caller,
        proven: &mut Option<Proven>,
    ) -> Result<Granted, Refusal> {
        let now = SystemTime::now();
        let name = self.asked_name(&asked.identity)?;
        let token = precheck(&asked.token, TOKEN_AUDIENCE, now)?;
        // Before anybody is asked: it costs the caller more than us.
        self.ca.check(&asked.certificate_signing_request).map_err(Refusal::Request)?;

        let _place = self.reviews.take(caller.remote.ip()).ok_or(Refusal::Busy)?;
        let reviewed = async {
            let of = proven.insert(self.reviewer.review(token, TOKEN_AUDIENCE).await?).clone();
            self.check_identity(&name, &of)?;
            let pod = self.pods.find(&of.namespace, &of.pod.name).await;
            Ok::<_, Refusal>((of, pod.map_err(|error| Refusal::Unavailable(error.0))?))
        };
        let late = |_| Refusal::Unavailable("no answer in time".to_owned());
        let (proven, found) = timeout(self.limits.review, reviewed).await.map_err(late)??;
        let pod = check_pod(found, &proven, &self.domain)?;
        let issued = self.ca.sign(&asked.certificate_signing_request, &name, now).map_err(Refusal::Request)?;
        Ok(Granted { issued, proven, pod })
    }

    fn asked_name(&self, asked: &str) -> Result<IdentityName, Refusal> {
        if asked.len() > LONGEST_NAME {
            return Err(Refusal::LongName(asked.len()));
        }
        let name = IdentityName::parse(asked)?;
        if name.is_in(&self.domain) { Ok(name) } else { Err(Refusal::OtherTrustDomain(name, self.domain.clone())) }
    }

    fn check_identity(&self, asked: &IdentityName, proven: &Proven) -> Result<(), Refusal> {
        let own = self.domain.identity(&proven.service_account, &proven.namespace)?;
        if *asked == own { Ok(()) } else { Err(Refusal::OtherIdentity { asked: asked.clone(), own }) }
    }
}

/// Whether the pod that the token is bound to may have a certificate.
fn check_pod(found: Option<PodFacts>, proven: &Proven, domain: &TrustDomain) -> Result<PodFacts, Refusal> {
    let name = || format!("{}/{}", proven.namespace, proven.pod.name);
    let pod = found.ok_or_else(|| Refusal::NoPod(name()))?;
    if pod.uid != proven.pod.uid {
        return Err(Refusal::OtherPod(name()));
    }
    if pod.service_account != proven.service_account {
        let (runs_as, token) = (pod.service_account, proven.service_account.clone());
        return Err(Refusal::OtherAccount { pod: name(), runs_as, token });
    }
    let ours = proven.namespace == domain.control_namespace()
        && [IDENTITY_ACCOUNT, DESTINATION_ACCOUNT, WEBHOOK_ACCOUNT].contains(&proven.service_account.as_str());
    if !pod.meshed && !ours {
        return Err(Refusal::NotMeshed(name()));
    }
    if pod.ended {
        return Err(Refusal::Ended(name()));
    }
    Ok(pod)
}

#[tonic::async_trait]
impl<R: TokenReview, P: Pods> Identity for Certify<R, P> {
    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<CertifyResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.into_inner();
        // Cut before it reaches the log.
        let identity: String = asked.identity.chars().take(LONGEST_NAME).collect();
        let mut proven = None;
        match self.decide(&asked, &caller, &mut proven).await {
            Ok(granted) => {
                self.metrics.issued();
                granted.log(&identity, &caller);
                Ok(Response::new(granted.issued.into()))
            }
            Err(refusal) => {
                self.metrics.refused(&refusal);
                if let Some(told) = &self.told {
                    told.refused(&refusal, proven.as_ref());
                }
                let Caller { remote, peer } = caller;
                warn!(identity, %remote, peer = peer.as_ref().map(IdentityName::as_str), reason = refusal.reason(), %refusal, "certificate refused");
                Err(refusal.into())
            }
        }
    }
}

impl Granted {
    fn log(&self, identity: &str, caller: &Caller) {
        let Self { issued, proven, pod } = self;
        info!(
            identity,
            serial = issued.serial,
            pod = proven.pod.name,
            namespace = proven.namespace,
            pod_uid = proven.pod.uid,
            node = pod.node,
            remote = %caller.remote,
            peer = caller.peer.as_ref().map(IdentityName::as_str),
            "certificate issued"
        );
    }
}

impl From<Issued> for CertifyResponse {
    fn from(issued: Issued) -> Self {
        Self {
            leaf_certificate: issued.leaf.to_vec(),
            intermediate_certificates: issued.intermediates.iter().map(|der| der.to_vec()).collect(),
            valid_until: Some(issued.not_after.into()),
        }
    }
}

fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let info = request.extensions().get::<ConnectInfo>();
    let ConnectInfo { remote, peer } = info.cloned().ok_or_else(|| Status::internal("the connection is not known"))?;
    Ok(Caller { remote, peer: peer.map(|peer| peer.name) })
}

impl From<ReviewFault> for Refusal {
    fn from(fault: ReviewFault) -> Self {
        match fault {
            ReviewFault::Rejected(why) => Self::Rejected(why),
            ReviewFault::Unavailable(why) => Self::Unavailable(why),
        }
    }
}

impl Ca {
    /// Whether [`Ca::sign`] would take `request`.
    pub(crate) fn check(&self, request: &[u8]) -> Result<(), SignFault> {
        super::ca::requested_key(request).map(drop)
    }
}
