//! The CA in Secrets: made once, followed by all replicas, renewed and rotated by the leader, never made over.

use std::time::Instant;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams};

use super::*;

const ISSUER: &str = "hauberk-identity-issuer";
const ROOT: &str = "hauberk-identity-root";

fn secrets(cluster: &Cluster) -> Api<Secret> {
    Api::namespaced(cluster.plane.client(), CONTROL_NAMESPACE)
}

#[tokio::test]
async fn replicas_that_start_together_make_one_ca_and_another_leads_when_the_leader_is_killed() {
    let cluster = Cluster::start().await;
    let replicas = [0, 1].map(|number| cluster.replica(number, &[]));
    for replica in &replicas {
        replica.ready().await;
        replica.shows("hauberk_identity_trust_generation 1").await;
    }
    let web = identity("web", "shop");
    cluster.pod("shop", "web-0", "web", Some(web.clone())).await;
    let token = cluster.token("shop", "web", "web-0").await;
    let bundle = cluster.bundle().await;
    assert_eq!((bundle.generation(), bundle.roots().len()), (1, 1));
    let mut issuers = Vec::new();
    for replica in &replicas {
        let credentials = certified(&mut cluster.client(replica).await, &web, &token, &bundle).await;
        issuers.push(credentials.chain()[1].clone());
    }
    assert_eq!(issuers[0], issuers[1], "both sign with the same issuer");

    let (leader, other) = until("one leads", async || {
        let [a, b] = &replicas;
        match (a.metric("hauberk_identity_leader").await, b.metric("hauberk_identity_leader").await) {
            (Some(1), Some(0)) => Some((a, b)),
            (Some(0), Some(1)) => Some((b, a)),
            _ => None,
        }
    })
    .await;
    let killed = Instant::now();
    leader.process.kill().expect("killed");
    let mut client = cluster.client(other).await;
    // The one that is left goes on issuing, leader or not.
    certified(&mut client, &web, &token, &bundle).await;
    other.leads().await;
    let took = killed.elapsed();
    println!("another leads {took:?} after the leader was killed");
    assert!(took < Duration::from_secs(20), "{took:?}");

    // An orderly end gives the Lease back.
    other.process.stop().expect("stopped");
    let leases =
        Api::<k8s_openapi::api::coordination::v1::Lease>::namespaced(cluster.plane.client(), CONTROL_NAMESPACE);
    let lease = leases.get(IDENTITY_ACCOUNT).await.expect("there").spec.expect("written");
    assert_eq!(lease.holder_identity, None, "{lease:?}");
}

#[tokio::test]
async fn a_lost_secret_is_a_fault_and_never_a_first_start() {
    let cluster = Cluster::start().await;
    let server = cluster.server(&[]).await;
    let bundle = cluster.bundle().await;
    let (issuer, root) = (secrets(&cluster).get(ISSUER).await.expect("there"), secret(&cluster, ROOT).await);
    secrets(&cluster).delete(ISSUER, &DeleteParams::default()).await.expect("deleted");
    server.shows("hauberk_identity_ca_fault{fault=\"issuer-missing\"} 1").await;
    cluster.event(CONTROL_NAMESPACE, "Secret", ISSUER, "IssuerMissing", "restore it from a backup").await;
    // What it holds is good, and it goes on.
    assert!(server.get("/ready").await.expect("an answer").starts_with("HTTP/1.1 200"));
    server.process.stop().expect("stopped");

    // One that holds nothing has nothing to issue with. By the Lease alone, too.
    for left in ["ConfigMap hauberk-trust", "Lease hauberk-identity"] {
        let server = cluster.replica(0, &[]);
        let answer = until("an answer that says why", async || {
            server.get("/ready").await.filter(|answer| answer.contains("is missing"))
        })
        .await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("ca: Secret hauberk-identity-issuer is missing"),
            "{answer}"
        );
        assert!(answer.contains(&format!("but {left} says that there was one")), "{answer}");
        server.leads().await;
        server.shows("hauberk_identity_ca_fault{fault=\"issuer-missing\"} 1").await;
        assert!(secrets(&cluster).get_opt(ISSUER).await.expect("an answer").is_none(), "nothing was made");
        server.process.stop().expect("stopped");
        let _ = cluster.maps().delete(TRUST_MAP, &DeleteParams::default()).await;
    }

    let server = cluster.replica(0, &[]);
    let restored =
        Secret { metadata: kube::core::ObjectMeta { name: Some(ISSUER.to_owned()), ..Default::default() }, ..issuer };
    secrets(&cluster).create(&PostParams::default(), &restored).await.expect("restored");
    server.ready().await;
    server.shows("hauberk_identity_ca_fault{fault=\"issuer-missing\"} 0").await;
    assert_eq!(cluster.bundle().await.roots(), bundle.roots());
    assert_eq!(secret(&cluster, ROOT).await, root, "nor is the root another");

    secrets(&cluster).delete(ROOT, &DeleteParams::default()).await.expect("deleted");
    server.shows("hauberk_identity_ca_fault{fault=\"root-missing\"} 1").await;
    cluster.event(CONTROL_NAMESPACE, "Secret", ISSUER, "RootMissing", "hauberk-identity-root is missing").await;
}

#[tokio::test]
async fn a_damaged_secret_keeps_the_last_good_state_and_is_reported() {
    let cluster = Cluster::start().await;
    let server = cluster.server(&[]).await;
    let web = identity("web", "shop");
    cluster.pod("shop", "web-0", "web", Some(web.clone())).await;
    let token = cluster.token("shop", "web", "web-0").await;
    let (mut client, bundle) = (cluster.client(&server).await, cluster.bundle().await);
    let good = secret(&cluster, ISSUER).await;
    let other = SecretKey::generate().expect("a key").to_pem();
    for (part, bytes) in [("issuer.key", other.as_bytes()), ("bundle.pem", b"".as_slice()), ("generation", b"x")] {
        let patch = Patch::Merge(json!({ "data": { part: base64(bytes) } }));
        secrets(&cluster).patch(ISSUER, &PatchParams::default(), &patch).await.expect("patched");
        server.shows("hauberk_identity_ca_fault{fault=\"issuer-unusable\"} 1").await;
        certified(&mut client, &web, &token, &bundle).await;
        if part == "issuer.key" {
            // By the leader, at its next look: what is put back before is no event.
            let note = "key of the issuer is not that of";
            cluster.event(CONTROL_NAMESPACE, "Secret", ISSUER, "IssuerUnusable", note).await;
        }
        let patch = Patch::Merge(json!({ "data": good }));
        secrets(&cluster).patch(ISSUER, &PatchParams::default(), &patch).await.expect("patched");
        server.shows("hauberk_identity_ca_fault{fault=\"issuer-unusable\"} 0").await;
    }
    assert_eq!(cluster.bundle().await.generation(), 1);
}

#[tokio::test]
async fn the_issuer_is_renewed_while_certificates_are_issued_and_none_fails() {
    let cluster = Cluster::start().await;
    // At 70 % of 20 s and the skew.
    let args = ["--issuer-lifetime=20s", "--leaf-lifetime=10s", "--clock-skew=2s"];
    let replicas = [0, 1].map(|number| cluster.replica(number, &args));
    let web = identity("web", "shop");
    cluster.pod("shop", "web-0", "web", Some(web.clone())).await;
    let token = cluster.token("shop", "web", "web-0").await;
    let mut clients = Vec::new();
    for replica in &replicas {
        replica.ready().await;
        clients.push(cluster.client(replica).await);
    }
    let bundle = cluster.bundle().await;
    let mut issuers: [Vec<_>; 2] = [Vec::new(), Vec::new()];
    let mut issued = 0;
    // Until both replicas have signed with three issuers.
    let signing = async {
        while issuers.iter().any(|issuers| issuers.len() < 3) {
            for (client, issuers) in clients.iter_mut().zip(&mut issuers) {
                let credentials = certified(client, &web, &token, &bundle).await;
                issued += 1;
                let issuer = credentials.chain()[1].clone();
                if !issuers.contains(&issuer) {
                    issuers.push(issuer);
                }
            }
        }
    };
    timeout(Duration::from_secs(120), signing).await.expect("renewed twice");
    println!("{issued} certificates, none refused");
    assert_eq!(issuers[0], issuers[1], "both replicas followed each step");
    assert_eq!(cluster.bundle().await.generation(), 1, "the roots are the same");
    cluster.event(CONTROL_NAMESPACE, "Secret", ISSUER, "IssuerRenewed", "70 %").await;
}

#[tokio::test]
async fn the_root_is_rotated_by_itself_and_whoever_follows_is_never_refused() {
    let cluster = Cluster::start().await;
    // At 70 % of 30 s and the skew; a leaf and the skew between the steps.
    let args = ["--root-lifetime=40s", "--issuer-lifetime=30s", "--leaf-lifetime=4s", "--clock-skew=1s"];
    let replicas = [0, 1].map(|number| cluster.replica(number, &args));
    let web = identity("web", "shop");
    cluster.pod("shop", "web-0", "web", Some(web.clone())).await;
    let token = cluster.token("shop", "web", "web-0").await;
    for replica in &replicas {
        replica.ready().await;
    }
    let first = cluster.bundle().await;
    let (agent, store) = Agent::new(cluster.agent(&replicas[1], &first.to_pem(), &token)).expect("valid");
    let mut running = tokio::task::JoinSet::new();
    running.spawn(agent.run(tokio_util::sync::CancellationToken::new()));
    let mut held = store.subscribe();
    let mut seen = Vec::new();
    let follow = async {
        loop {
            if let Some(credentials) = held.borrow_and_update().clone() {
                let trust = credentials.trust();
                let now = (trust.generation(), trust.roots().len());
                if seen.last() != Some(&now) {
                    seen.push(now);
                }
                if trust.roots().len() == 1 && trust.roots() != first.roots() {
                    return credentials;
                }
            } else {
                assert!(seen.is_empty(), "there is a certificate all the time");
            }
            held.changed().await.expect("the agent runs");
        }
    };
    let last = timeout(Duration::from_secs(120), follow).await.expect("rotated");
    assert_eq!(seen, [(1, 1), (2, 2), (3, 1)], "published, then dropped");
    assert_eq!(cluster.bundle().await.roots(), last.roots());
    for (replica, note) in replicas.iter().zip(["the next one is trusted as well", "is not trusted any more"]) {
        replica.shows("hauberk_identity_trust_generation 3").await;
        cluster.event(CONTROL_NAMESPACE, "Secret", ISSUER, "RootRotation", note).await;
    }
}
