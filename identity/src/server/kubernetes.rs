//! The identity server on Kubernetes: tokens and pods are looked up in the API, the CA stands in Secrets that one leader
//! writes and all replicas follow.

mod follow;
mod leader;
mod live_pods;
mod review;
mod secrets;
mod told;

use std::fmt;

use hauberk_kubernetes::LeaseTimes;
use kube::Client;

pub(crate) use self::{
    follow::Follower,
    leader::Keeper,
    live_pods::LivePods,
    review::ApiTokens,
    secrets::{FaultKind, Secrets},
    told::Told,
};

/// What the server is told to run on Kubernetes.
#[derive(Clone)]
pub struct KubernetesConfig {
    /// The API server, as the server's own ServiceAccount.
    pub client: Client,
    /// The name of the server's own pod.
    pub pod: String,
    /// Of the leader's Lease.
    pub lease: LeaseTimes,
}

impl fmt::Debug for KubernetesConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesConfig").field("pod", &self.pod).field("lease", &self.lease).finish_non_exhaustive()
    }
}
