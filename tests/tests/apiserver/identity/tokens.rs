//! Who gets a certificate, and what those are told who do not.

use hauberk_mesh::{CONTROL_NAMESPACE, DESTINATION_ACCOUNT, IDENTITY_ACCOUNT, TOKEN_AUDIENCE};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tonic::Code;

use super::*;

/// What a token says, whoever signed it.
fn claims(token: &str) -> Value {
    jsonwebtoken::dangerous::insecure_decode_claims(token).expect("a token")
}

/// Those claims, signed with the key of this file.
fn signed(claims: &Value, key: &[u8], kid: Option<String>) -> String {
    let header = Header { kid, ..Header::new(Algorithm::RS256) };
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_rsa_pem(key).expect("a key")).expect("signed")
}

#[tokio::test]
async fn only_a_live_meshed_pod_with_its_own_token_gets_a_certificate_and_each_refusal_says_why() {
    let cluster = Cluster::start().await;
    let server = cluster.server(&[]).await;
    let (web, bank) = (identity("web", "shop"), identity("web", "bank"));
    cluster.pod("shop", "web-0", "web", Some(web.clone())).await;
    cluster.pod("bank", "web-0", "web", Some(bank.clone())).await;
    let (mut client, bundle) = (cluster.client(&server).await, cluster.bundle().await);

    let good = cluster.token("shop", "web", "web-0").await;
    let credentials = certified(&mut client, &web, &good, &bundle).await;
    assert_eq!(credentials.name(), &web);
    // A part of the control plane has no proxy.
    cluster.plane.service_account(CONTROL_NAMESPACE, DESTINATION_ACCOUNT).await.expect("an account");
    cluster.pod(CONTROL_NAMESPACE, "destination-0", DESTINATION_ACCOUNT, None).await;
    let token = cluster.token(CONTROL_NAMESPACE, DESTINATION_ACCOUNT, "destination-0").await;
    certified(&mut client, &identity(DESTINATION_ACCOUNT, CONTROL_NAMESPACE), &token, &bundle).await;

    let mut refused = Vec::new();
    let mut refuse = async |token: &str, asked: &IdentityName, code: Code, reason: &'static str, says: &str| {
        let status = certify(&mut client, asked, token).await.expect_err(reason);
        assert_eq!(status.code(), code, "{reason}: {status}");
        assert!(status.message().contains(says), "{reason}: {}", status.message());
        refused.push(reason);
        let count = refused.iter().filter(|one| **one == reason).count();
        server.shows(&format!("hauberk_identity_certificates_refused_total{{reason=\"{reason}\"}} {count}")).await;
    };

    let other = cluster.plane.token("shop", "web", Some("vault"), Some("web-0")).await.expect("a token");
    refuse(&other, &web, Code::Unauthenticated, "wrong-audience", "is for the audience [\"vault\"]").await;
    let api = cluster.plane.token("shop", "web", None, Some("web-0")).await.expect("a token");
    refuse(&api, &web, Code::Unauthenticated, "wrong-audience", "not for \"identity.hauberk.dev\"").await;

    // The API server gives none that ends so soon; its own key does.
    let key = std::fs::read(cluster.plane.dir().join("tokens.key")).expect("its key");
    let kid = jsonwebtoken::decode_header(&good).expect("a token").kid;
    let mut ended = claims(&good);
    let past = ended["iat"].as_u64().expect("a number") - 7200;
    (ended["iat"], ended["nbf"], ended["exp"]) = (past.into(), past.into(), (past + 3600).into());
    refuse(&signed(&ended, &key, kid.clone()), &web, Code::Unauthenticated, "expired-token", "ended").await;
    // With that key a token is as good as the API server's, so that it was its end that was refused.
    let resigned = signed(&claims(&good), &key, kid.clone());
    certified(&mut cluster.client(&server).await, &web, &resigned, &bundle).await;

    let unbound = cluster.plane.token("shop", "web", Some(TOKEN_AUDIENCE), None).await.expect("a token");
    refuse(&unbound, &web, Code::Unauthenticated, "unbound-token", "bound to no pod").await;

    // Of another namespace: its own identity is another.
    let banks = cluster.token("bank", "web", "web-0").await;
    refuse(&banks, &web, Code::PermissionDenied, "other-identity", bank.as_str()).await;
    // And it does not help to say that it is of this one.
    let mut moved = claims(&banks);
    (moved["sub"], moved["kubernetes.io"]["namespace"]) = ("system:serviceaccount:shop:web".into(), "shop".into());
    let forged = signed(&moved, &other_key(), kid);
    refuse(&forged, &web, Code::Unauthenticated, "token-rejected", "the API server says").await;

    cluster.plane.service_account("shop", "gone").await.expect("an account");
    let gone = identity("gone", "shop");
    cluster.pod("shop", "gone-0", "gone", Some(gone.clone())).await;
    let token = cluster.token("shop", "gone", "gone-0").await;
    let accounts = Api::<ServiceAccount>::namespaced(cluster.plane.client(), "shop");
    accounts.delete("gone", &DeleteParams::default()).await.expect("deleted");
    refuse(&token, &gone, Code::Unauthenticated, "token-rejected", "the API server says").await;

    for phase in ["Succeeded", "Failed"] {
        let name = format!("job-{}", phase.to_lowercase());
        cluster.pod("shop", &name, "web", Some(web.clone())).await;
        let token = cluster.token("shop", "web", &name).await;
        let status = Patch::Merge(json!({ "status": { "phase": phase } }));
        cluster.pods("shop").patch_status(&name, &PatchParams::default(), &status).await.expect("patched");
        refuse(&token, &web, Code::PermissionDenied, "pod-ended", &format!("pod shop/{name} has ended")).await;
    }
    cluster.pod("shop", "web-1", "web", Some(web.clone())).await;
    let token = cluster.token("shop", "web", "web-1").await;
    cluster.pods("shop").delete("web-1", &DeleteParams::default().grace_period(0)).await.expect("deleted");
    refuse(&token, &web, Code::Unauthenticated, "token-rejected", "the API server says").await;

    cluster.pod("shop", "plain", "web", None).await;
    let token = cluster.token("shop", "web", "plain").await;
    refuse(&token, &web, Code::PermissionDenied, "not-meshed", "pod shop/plain has no proxy").await;
    cluster.pod("shop", "liar", "web", Some(bank.clone())).await;
    let token = cluster.token("shop", "web", "liar").await;
    refuse(&token, &web, Code::PermissionDenied, "not-meshed", "pod shop/liar has no proxy").await;

    // What is proven stands with the pod; what anybody may say of himself does not.
    for (pod, note) in [("plain", "has no proxy"), ("job-failed", "has ended")] {
        let event = cluster.event("shop", "Pod", pod, "CertificateRefused", note).await;
        assert_eq!(event.reporting_controller.as_deref(), Some("hauberk.dev/identity"));
    }
    cluster.event("bank", "Pod", "web-0", "CertificateRefused", "ask for the identity of the pod's own").await;
    let note = "token-rejected";
    cluster.event(CONTROL_NAMESPACE, "ServiceAccount", IDENTITY_ACCOUNT, "CertificateRefused", note).await;
    let events = Api::<Event>::namespaced(cluster.plane.client(), "shop").list(&ListParams::default()).await;
    for event in events.expect("a list") {
        let regarding = event.regarding.unwrap_or_default().name.unwrap_or_default();
        assert!(["plain", "liar", "job-failed", "job-succeeded"].contains(&regarding.as_str()), "{regarding}");
    }
}

/// Somebody's own.
fn other_key() -> Vec<u8> {
    let other = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).expect("a key");
    other.serialize_pem().into_bytes()
}

#[tokio::test]
async fn an_api_server_that_does_not_answer_is_no_verdict_on_the_token() {
    let cluster = Cluster::start().await;
    let server = cluster.server(&[]).await;
    let web = identity("web", "shop");
    cluster.pod("shop", "web-0", "web", Some(web.clone())).await;
    let token = cluster.token("shop", "web", "web-0").await;
    let (mut client, bundle) = (cluster.client(&server).await, cluster.bundle().await);
    certified(&mut client, &web, &token, &bundle).await;
    // The processes of the control plane end; what identity holds stays.
    let Cluster { processes: _identity, plane, .. } = cluster;
    drop(plane);
    let status = certify(&mut client, &web, &token).await.expect_err("nobody can be asked");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    server.shows("hauberk_identity_certificates_refused_total{reason=\"unavailable\"} 1").await;
    server.shows("hauberk_identity_ca_fault{fault=\"unavailable\"} 1").await;
    assert!(server.get("/ready").await.expect("an answer").starts_with("HTTP/1.1 200"), "what it holds is good");
}
