//! The trust bundle: followed while running, through a whole rotation, and never backwards.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use hauberk_api::trust::{Bundle, trust_client::TrustClient};
use hauberk_identity::{
    Agent, AgentConfig, EndpointSessions, Store,
    grpc::{self, ClientAuth},
    server::{Ca, Lifetimes, LocalTokens, rotation},
};
use tempfile::TempDir;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::*;

/// Waits until `store` has a certificate under that generation.
async fn under(store: &Store, generation: u64) {
    let mut held = store.subscribe();
    let there = |held: &Option<Arc<hauberk_identity::Credentials>>| {
        held.as_ref().is_some_and(|held| held.trust_generation() == generation)
    };
    soon(held.wait_for(there)).await.expect("the store is held");
}

#[tokio::test]
async fn a_rotation_reaches_a_running_pod_and_renews_its_certificate() {
    let world = World::start().await;
    let agent = Running::start(world.agent());
    under(&agent.store, 1).await;
    let (dir, lifetimes, now) = (world.ca_dir(), Lifetimes::default(), SystemTime::now());
    let first = agent.store.current().expect("there");

    rotation::publish_next_root(&dir, &lifetimes, now).expect("published");
    under(&agent.store, 2).await;
    let published = agent.store.current().expect("there");
    assert_eq!((published.roots().len(), published.serial()), (2, first.serial()), "the same certificate");
    assert!(!Arc::ptr_eq(&published.mesh_server(), &first.mesh_server()), "new configurations");

    rotation::sign_under_next_root(&dir, &lifetimes, now).expect("signed");
    rotation::drop_other_roots(&dir).expect("dropped");
    under(&agent.store, 3).await;
    // Nobody believes the old certificate now: there is another without waiting for the renewal's time.
    let mut held = agent.store.subscribe();
    soon(held.wait_for(|held| held.as_ref().is_some_and(|held| held.serial() != first.serial())))
        .await
        .expect("the store is held");
    let renewed = agent.store.current().expect("there");
    assert_eq!((renewed.roots().len(), renewed.generation()), (1, 2));
    let _ = renewed.mesh_client(&web(), Arc::<EndpointSessions>::default());

    // What it has adopted is known, so that a rotation can wait for it.
    let told = async {
        while !world.metrics().await.contains("hauberk_identity_trust_generation_adopted_lowest 3\n") {
            tokio::task::yield_now().await;
        }
    };
    soon(told).await;
    // A restart knows what was adopted, and nobody has to be asked.
    let config = world.agent();
    agent.stop().await;
    let (_, store) = Agent::new(AgentConfig { trust_roots_pem: first.trust().to_pem(), ..config }).expect("valid");
    let held = store.current().expect("from the volume");
    assert_eq!((held.trust_generation(), held.serial()), (3, renewed.serial()));
    world.stop().await;
}

#[tokio::test]
async fn a_pod_that_slept_through_a_rotation_still_gets_in() {
    let world = World::start().await;
    let config = world.agent();
    let (dir, lifetimes, now) = (world.ca_dir(), Lifetimes::default(), SystemTime::now());
    rotation::publish_next_root(&dir, &lifetimes, now).expect("published");
    rotation::sign_under_next_root(&dir, &lifetimes, now).expect("signed");
    rotation::drop_other_roots(&dir).expect("dropped");
    // Until the server proves itself to those who know only the new root.
    let moved_on = async {
        loop {
            world.ca.reload().expect("good");
            if world.ca.bundle().roots().len() == 1
                && let Ok(chain) = shown(world.addr, &world.ca).await
            {
                return chain;
            }
        }
    };
    assert_eq!(soon(moved_on).await.len(), 3, "leaf, issuer, and the new root signed by the old");

    let agent = Running::start(config);
    under(&agent.store, world.ca.bundle().generation()).await;
    assert_eq!(agent.store.trust().roots(), world.ca.bundle().roots());
    agent.stop().await;
}

#[tokio::test]
async fn whoever_trusts_us_may_follow_but_one_address_only_so_often() {
    let world = World::start().await;
    let channel = grpc::channel(world.addr, server_identity(), world.stranger());
    let mut open = Vec::new();
    let refused = loop {
        let (say, said) = tokio::sync::mpsc::channel(1);
        let watched = soon(TrustClient::new(channel.clone()).watch(ReceiverStream::new(said))).await;
        match watched {
            Ok(stream) => open.push((say, stream.into_inner())),
            Err(status) => break status,
        }
    };
    assert_eq!((refused.code(), open.len()), (tonic::Code::ResourceExhausted, 16), "{refused:?}");
    for (_, stream) in &mut open {
        let bundle = soon(stream.message()).await.expect("streamed").expect("a bundle");
        assert_eq!((bundle.generation, bundle.roots.len()), (1, 1));
    }
    // The server does not wait for them when it is told to stop: its patience is 5 s.
    tokio::time::timeout(Duration::from_secs(4), world.stop()).await.expect("stopped at once");
}

/// A scripted server whose stream of bundles the test writes.
async fn scripted() -> (Script, Running, TempDir) {
    let mut script = Script::start(Arc::new(Ca::in_memory(long_skew()).expect("a CA")), ClientAuth::Optional).await;
    let dir = TempDir::new().expect("a directory");
    let tokens = LocalTokens::open_or_create(dir.path()).expect("tokens");
    let agent = Running::start(agent_config(script.addr, dir.path(), &tokens, &script.ca));
    script.sign(SystemTime::now()).await;
    soon(agent.store.ready()).await;
    (script, agent, dir)
}

#[tokio::test]
async fn generations_only_rise_and_a_useless_bundle_is_passed_over() {
    let (mut script, agent, _dir) = scripted().await;
    let root = script.ca.bundle().roots()[0].to_vec();
    let other = Ca::in_memory(long_skew()).expect("a CA").bundle().roots()[0].to_vec();
    let send = |generation, roots: Vec<Vec<u8>>| {
        let bundles = script.bundles.clone();
        async move { bundles.send(Bundle { generation, roots }).await.expect("watched") }
    };
    send(5, vec![root.clone(), other.clone()]).await;
    under(&agent.store, 5).await;
    // In order: an older one, the same one again, one without roots, one that is no certificate. Then a good one.
    send(3, vec![root.clone()]).await;
    send(5, vec![root.clone()]).await;
    send(6, vec![]).await;
    send(7, vec![b"root".to_vec()]).await;
    let mut held = agent.store.subscribe();
    held.mark_unchanged();
    send(8, vec![root.clone()]).await;
    soon(held.changed()).await.expect("the store is held");
    assert_eq!(held.borrow().as_ref().expect("there").trust_generation(), 8, "nothing in between");
    assert_eq!(agent.store.trust().roots().len(), 1);
    soon(script.adopted.wait_for(|adopted| *adopted == 8)).await.expect("watched");
    agent.stop().await;
}

#[tokio::test]
async fn a_bundle_in_the_volume_counts_only_under_the_roots_that_it_came_with() {
    let (script, agent, dir) = scripted().await;
    let (root, pinned) = (script.ca.bundle().roots()[0].to_vec(), script.ca.bundle().to_pem());
    script.bundles.send(Bundle { generation: 9, roots: vec![root.clone(), root] }).await.expect("watched");
    under(&agent.store, 9).await;
    // Said once it is written.
    let mut adopted = script.adopted.clone();
    soon(adopted.wait_for(|adopted| *adopted == 9)).await.expect("watched");
    agent.stop().await;
    let restart = |roots: &str| {
        let dir = Some(dir.path().join("volume"));
        Agent::new(AgentConfig::new(web(), script.addr, "token".into(), dir, roots.to_owned())).expect("valid").1
    };
    assert_eq!(restart(&pinned).trust().generation(), 9);
    let other = Ca::in_memory(long_skew()).expect("a CA").bundle().to_pem();
    let store = restart(&other);
    assert_eq!(store.trust().generation(), 0, "a mesh that was made anew");
    assert!(store.current().is_none());

    let file = dir.path().join("volume/trust.pem");
    let good = std::fs::read(&file).expect("written");
    for cut in [0, 10, 60, good.len() / 2, good.len() - 10] {
        std::fs::write(&file, &good[..cut]).expect("written");
        assert_eq!(restart(&pinned).trust().generation(), 0, "torn at {cut}");
        assert!(restart(&pinned).current().is_some(), "the certificate is good under the roots given at start");
    }
}
