//! Nobody but identity says whom to trust: not the ConfigMap that it publishes, and not whoever may edit a namespace.

use hauberk_api::trust::{WatchRequest, trust_client::TrustClient};
use k8s_openapi::api::{core::v1::Secret, rbac::v1::RoleBinding};
use kube::api::{DeleteParams, Patch, PatchParams};
use tokio_stream::wrappers::ReceiverStream;

use super::*;

/// What somebody would like to be trusted.
fn other_roots() -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let root = rcgen::CertificateParams::new(["other".to_owned()]).expect("valid").self_signed(&key).expect("signed");
    root.pem()
}

fn forbidden<T>(answer: kube::Result<T>, what: &str) {
    match answer.err() {
        Some(kube::Error::Api(status)) => assert_eq!(status.code, 403, "{what}: {status}"),
        other => panic!("{what} is not refused: {other:?}"),
    }
}

#[tokio::test]
async fn an_edited_or_deleted_trust_map_is_put_right_and_changes_nothing_for_those_who_follow() {
    let cluster = Cluster::start().await;
    let server = cluster.server(&[]).await;
    let (generation, roots) = cluster.published().await;
    let store = Agent::new(cluster.agent(&server, &roots, "none")).expect("valid").1;
    let channel = grpc::channel(server.grpc, identity(IDENTITY_ACCOUNT, CONTROL_NAMESPACE), store);
    let (say, said) = tokio::sync::mpsc::channel(1);
    let mut bundles = TrustClient::new(channel).watch(ReceiverStream::new(said)).await.expect("a stream").into_inner();
    let told = bundles.message().await.expect("streamed").expect("a bundle");
    assert_eq!((told.generation, told.roots.len()), (generation, 1));
    say.send(WatchRequest { adopted_generation: told.generation }).await.expect("followed");

    let data = json!({ "data": { TRUST_ROOTS_KEY: other_roots(), TRUST_GENERATION_KEY: "99" } });
    cluster.maps().patch(TRUST_MAP, &PatchParams::default(), &Patch::Merge(data)).await.expect("patched");
    let right = async || cluster.published().await == (generation, roots.clone());
    until("put right", async || right().await.then_some(())).await;
    cluster.maps().delete(TRUST_MAP, &DeleteParams::default()).await.expect("deleted");
    until("made again", async || right().await.then_some(())).await;

    // No bundle was streamed meanwhile: the next thing is the server's end.
    server.shows("hauberk_identity_trust_generation 1").await;
    let next = timeout(Duration::from_secs(3), bundles.message()).await;
    assert!(next.is_err(), "nothing new: {next:?}");
}

#[tokio::test]
async fn who_may_edit_a_namespace_can_change_neither_what_its_pods_believe_nor_who_they_are() {
    let cluster = Cluster::start().await;
    let server = cluster.server(&[]).await;
    let web = identity("web", "shop");
    cluster.pod("shop", "web-0", "web", Some(web.clone())).await;
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": { "name": "edit" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "eve" }],
    }))
    .expect("a binding");
    let bindings = Api::<RoleBinding>::namespaced(cluster.plane.client(), "shop");
    bindings.create(&PostParams::default(), &binding).await.expect("created");
    let eve = cluster.plane.client_as("eve", &["system:authenticated"]);
    let (generation, roots) = cluster.published().await;

    // She may write what looks like ours into her namespace, and nobody reads it.
    let own = Api::<ConfigMap>::namespaced(eve.clone(), "shop");
    let map: ConfigMap = serde_json::from_value(json!({
        "metadata": { "name": TRUST_MAP },
        "data": { TRUST_ROOTS_KEY: other_roots(), TRUST_GENERATION_KEY: "99" },
    }))
    .expect("a map");
    until("eve may edit", async || own.create(&PostParams::default(), &map).await.ok()).await;
    // Ours she may neither read nor write.
    let ours = Api::<ConfigMap>::namespaced(eve.clone(), CONTROL_NAMESPACE);
    forbidden(ours.patch(TRUST_MAP, &PatchParams::default(), &Patch::Merge(json!({ "data": {} }))).await, "our map");
    for name in ["hauberk-identity-root", "hauberk-identity-issuer"] {
        forbidden(Api::<Secret>::namespaced(eve.clone(), CONTROL_NAMESPACE).get(name).await, name);
    }
    // What a running pod was told, its roots among it, cannot be changed by anybody.
    let pods = Api::<Pod>::namespaced(eve.clone(), "shop");
    let told = json!({ "spec": { "initContainers": [{ "name": "hauberk-proxy", "env": [
        { "name": "HAUBERK_TRUST_ROOTS", "value": other_roots() },
    ] }] } });
    let changed = pods.patch("web-0", &PatchParams::default(), &Patch::Strategic(told)).await;
    let Err(kube::Error::Api(status)) = changed else { panic!("not refused: {changed:?}") };
    assert_eq!(status.code, 422, "{status}");

    // Her labels and annotations say nothing: the pod stays what its spec says.
    let stripped = json!({ "metadata": { "labels": null, "annotations": null } });
    pods.patch("web-0", &PatchParams::default(), &Patch::Merge(stripped)).await.expect("she may");
    let token = cluster.token("shop", "web", "web-0").await;
    let (mut client, bundle) = (cluster.client(&server).await, cluster.bundle().await);
    certified(&mut client, &web, &token, &bundle).await;

    // With a token of hers, of any kind, she is nobody of another namespace.
    let bank = identity("web", "bank");
    cluster.pod("shop", "eve-0", "web", Some(bank.clone())).await;
    let token = cluster.token("shop", "web", "eve-0").await;
    for (asked, reason) in [(&bank, "ask for the identity of the pod's own"), (&web, "has no proxy")] {
        let status = certify(&mut client, asked, &token).await.expect_err(reason);
        assert!(status.message().contains(reason), "{status}");
    }
    assert_eq!(cluster.published().await, (generation, roots), "nothing has changed");
    server.shows("hauberk_identity_trust_generation 1").await;
}
