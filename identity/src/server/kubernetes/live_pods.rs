//! `LivePods`: each pod is looked up when its token is. Nothing is kept: what a pod was a minute ago is not asked for.

use std::fmt;

use hauberk_kubernetes::proxy_of;
use hauberk_mesh::TrustDomain;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use kube::{Api, Client};

use crate::server::{PodFacts, Pods, PodsUnavailable};

/// Asks the API server. Right: get Pods. Whoever asks sees to the time, and to how many ask at once.
pub(crate) struct LivePods {
    client: Client,
    domain: TrustDomain,
}

impl LivePods {
    pub(crate) fn new(client: Client, domain: TrustDomain) -> Self {
        Self { client, domain }
    }
}

impl Pods for LivePods {
    async fn find(&self, namespace: &str, name: &str) -> Result<Option<PodFacts>, PodsUnavailable> {
        let found = Api::<Pod>::namespaced(self.client.clone(), namespace).get_opt(name).await;
        let pod = found.map_err(|error| PodsUnavailable(error.to_string()))?;
        Ok(pod.map(|pod| facts(&pod, &self.domain)))
    }
}

/// What the pod's spec and status say; its labels and annotations say nothing here.
fn facts(pod: &Pod, domain: &TrustDomain) -> PodFacts {
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    let service_account = account.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let own = domain.identity(&service_account, namespace);
    // A proxy that was told to be somebody else is not one that this pod may run.
    let told = pod.spec.as_ref().and_then(proxy_of).and_then(Result::ok).map(|told| told.identity);
    PodFacts {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        meshed: own.is_ok_and(|own| told == Some(own)),
        service_account,
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        ended: has_ended(pod),
    }
}

/// By its phase, or because all its containers have ended and its restart policy starts none of them again: the phase
/// follows late where a sidecar is slow to stop.
fn has_ended(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return true;
    }
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    let for_good = |ended: &ContainerStateTerminated| match policy {
        Some("Never") => true,
        Some("OnFailure") => ended.exit_code == 0,
        _ => false,
    };
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let ended = containers.iter().filter_map(|container| container.state.as_ref()?.terminated.as_ref());
    !containers.is_empty() && ended.filter(|ended| for_good(ended)).count() == containers.len()
}

impl fmt::Debug for LivePods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LivePods")
    }
}

#[cfg(test)]
mod tests {
    use hauberk_mesh::ProxySpec;
    use serde_json::json;

    use super::*;

    fn pod(account: &str, told: (&str, &str), restart: &str, status: &serde_json::Value) -> Pod {
        let identity = TrustDomain::default().identity(told.0, told.1).expect("valid");
        let addr = |text: &str| text.parse().expect("an address");
        let told = ProxySpec::new(identity, addr("10.2.0.2:8080"), addr("10.2.0.3:8086"), "PEM".to_owned());
        let env: Vec<_> =
            told.to_env().into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        let proxy = json!({"name": "hauberk-proxy", "restartPolicy": "Always", "env": env});
        serde_json::from_value(json!({
            "metadata": {"name": "web-0", "namespace": "shop", "uid": "u-1"},
            "spec": {
                "serviceAccountName": account, "nodeName": "node-a", "restartPolicy": restart,
                "initContainers": [proxy], "containers": [{"name": "app"}],
            },
            "status": status,
        }))
        .expect("a pod")
    }

    #[test]
    fn a_pod_is_meshed_if_its_proxy_was_told_to_be_what_the_pod_runs_as() {
        let running = json!({"phase": "Running"});
        let domain = TrustDomain::default();
        for (account, told, meshed) in [
            ("web", ("web", "shop"), true),
            ("web", ("db", "shop"), false),
            ("web", ("web", "bank"), false),
            ("", ("default", "shop"), true),
        ] {
            let facts = facts(&pod(account, told, "Always", &running), &domain);
            assert_eq!((facts.meshed, facts.ended), (meshed, false), "{account} {told:?}");
            assert_eq!((facts.uid.as_str(), facts.node.as_deref()), ("u-1", Some("node-a")));
        }
        let mut bare = pod("web", ("web", "shop"), "Always", &running);
        bare.spec.as_mut().expect("there").init_containers = None;
        assert!(!facts(&bare, &domain).meshed);
        bare.spec = None;
        assert_eq!(facts(&bare, &domain).service_account, "default");
    }

    #[test]
    fn a_pod_has_ended_when_nothing_of_it_will_run_again() {
        let containers = |codes: &[Option<i32>]| {
            let state = |code: &Option<i32>| match code {
                Some(code) => json!({"name": "app", "state": {"terminated": {"exitCode": code}}}),
                None => json!({"name": "app", "state": {"running": {}}}),
            };
            json!({"phase": "Running", "containerStatuses": codes.iter().map(state).collect::<Vec<_>>()})
        };
        for (restart, status, ended) in [
            ("Always", json!({"phase": "Succeeded"}), true),
            ("Always", json!({"phase": "Failed"}), true),
            ("Always", json!({"phase": "Running"}), false),
            ("Always", json!({}), false),
            ("Never", json!({"phase": "Pending"}), false),
            ("Never", containers(&[Some(1), Some(0)]), true),
            ("Never", containers(&[Some(0), None]), false),
            ("OnFailure", containers(&[Some(0)]), true),
            ("OnFailure", containers(&[Some(1)]), false),
            ("Always", containers(&[Some(0)]), false),
        ] {
            let found = has_ended(&pod("web", ("web", "shop"), restart, &status));
            assert_eq!(found, ended, "{restart} {status}");
        }
    }
}
