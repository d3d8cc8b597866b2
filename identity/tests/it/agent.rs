//! The agent: a new key each time, the old certificate while nothing better comes, and the pod's volume.

use std::{
    collections::BTreeSet,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hauberk_identity::{
    Agent, AgentConfig, Credentials,
    grpc::ClientAuth,
    server::{Ca, LocalTokens},
};
use tempfile::TempDir;
use tonic::Status;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::support::*;

fn public_key(credentials: &Credentials) -> Vec<u8> {
    let (_, leaf) = X509Certificate::from_der(&credentials.chain()[0]).expect("DER");
    leaf.public_key().raw.to_vec()
}

/// A scripted server, and an agent's configuration for it.
async fn scripted() -> (Script, AgentConfig, TempDir) {
    let script = Script::start(Arc::new(Ca::in_memory(long_skew()).expect("a CA")), ClientAuth::Optional).await;
    let dir = TempDir::new().expect("a directory");
    let tokens = LocalTokens::open_or_create(dir.path()).expect("tokens");
    let config = agent_config(script.addr, dir.path(), &tokens, &script.ca);
    (script, config, dir)
}

/// Signed so long ago that it is due for renewal, and still good for an hour.
fn nearly_over() -> SystemTime {
    SystemTime::now() - Duration::from_secs(23 * 3600)
}

/// Lets an agent put such a certificate into its volume.
async fn fill_volume(script: &mut Script, config: &AgentConfig) -> Arc<Credentials> {
    let agent = Running::start(config.clone());
    script.sign(nearly_over()).await;
    let held = soon(agent.store.ready()).await;
    agent.stop().await;
    held
}

#[tokio::test]
async fn every_renewal_has_a_new_key() {
    let (mut script, config, _dir) = scripted().await;
    fill_volume(&mut script, &config).await;
    let mut keys = BTreeSet::new();
    let mut generations = Vec::new();
    // Restarted each time: what the volume holds is due at once.
    for _ in 0..3 {
        let agent = Running::start(config.clone());
        let held = agent.store.current().expect("from the volume");
        keys.insert(public_key(&held));
        let mut changes = agent.store.subscribe();
        script.sign(nearly_over()).await;
        soon(changes.changed()).await.expect("the store is held");
        let renewed = agent.store.current().expect("renewed");
        assert_ne!(renewed.serial(), held.serial());
        keys.insert(public_key(&renewed));
        generations.push((held.generation(), renewed.generation()));
        agent.stop().await;
    }
    assert_eq!(keys.len(), 4, "each certificate has a key of its own");
    assert_eq!(generations, [(1, 2); 3]);
}

/// Some two seconds to live. Where a machine stalls that long, the agent asks again: so answer until `done`.
async fn short_lived<T>(script: &mut Script, done: impl Future<Output = T>) -> T {
    let answer = async {
        loop {
            script.sign(SystemTime::now() - Duration::from_secs(24 * 3600 - 2)).await;
        }
    };
    tokio::select! {
        done = soon(done) => done,
        () = answer => unreachable!("a loop"),
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_before_it_ends() {
    let (mut script, config, _dir) = scripted().await;
    let agent = Running::start(config);
    let mut held = agent.store.subscribe();
    let renewed = async {
        let (mut keys, mut generation) = (BTreeSet::new(), 0);
        while keys.len() < 3 {
            held.changed().await.expect("the store is held");
            let Some(held) = held.borrow_and_update().clone() else { continue };
            assert!(held.generation() > generation, "it rises");
            generation = held.generation();
            assert!(keys.insert(public_key(&held)), "a new key");
        }
    };
    short_lived(&mut script, renewed).await;
    agent.stop().await;
}

#[tokio::test]
async fn the_old_certificate_serves_while_renewal_fails() {
    let (mut script, config, _dir) = scripted().await;
    let old = fill_volume(&mut script, &config).await;
    let agent = Running::start(config);
    let mut keys = BTreeSet::new();
    for failure in 0..4 {
        let asked = script.answer(|_| Err(Status::unavailable("try again"))).await;
        keys.insert(asked.certificate_signing_request);
        let held = agent.store.current().expect("the old one");
        assert_eq!((held.serial(), held.generation()), (old.serial(), 1), "failure {failure}");
        assert_eq!(agent.store.pending(), None, "there is a certificate");
    }
    assert_eq!(keys.len(), 4, "a key that was sent and not certified is not used again");
    let mut changes = agent.store.subscribe();
    script.sign(SystemTime::now()).await;
    soon(changes.changed()).await.expect("the store is held");
    assert_ne!(agent.store.current().expect("renewed").serial(), old.serial());
    agent.stop().await;
}

#[tokio::test]
async fn a_certificate_that_has_ended_is_not_shown_any_more() {
    let (mut script, config, _dir) = scripted().await;
    let agent = Running::start(config);
    short_lived(&mut script, agent.store.ready()).await;
    let mut held = agent.store.subscribe();
    let ended = async { held.wait_for(Option::is_none).await.map(drop) };
    let refuse = async {
        loop {
            script.answer(|_| Err(Status::permission_denied("pod shop/web-0 has ended"))).await;
        }
    };
    tokio::select! {
        ended = soon(ended) => ended.expect("the store is held"),
        () = refuse => unreachable!("a loop"),
    }
    let why = agent.store.pending().expect("no certificate");
    assert!(why.contains("pod shop/web-0 has ended"), "{why}");
    agent.stop().await;
}

#[tokio::test]
async fn says_why_there_is_no_certificate_yet() {
    let (mut script, config, _dir) = scripted().await;
    let refused = AgentConfig { server: "127.0.0.1:1".parse().expect("an address"), ..config.clone() };
    let missing = AgentConfig { token_file: "/nonexistent/token".into(), ..config.clone() };
    for (config, expected) in [(refused, "Connection refused"), (missing, "token /nonexistent/token: No such file")] {
        let agent = Running::start(AgentConfig { dir: None, ..config });
        let said = async {
            while !agent.store.pending().is_some_and(|why| why.contains(expected)) {
                tokio::task::yield_now().await;
            }
        };
        soon(said).await;
        agent.stop().await;
    }
    // The server proves another identity: not a word is said to it.
    let other = script.ca.credentials(&web(), 1, SystemTime::now()).expect("a certificate");
    let store = hauberk_identity::Store::fixed(other.into());
    let mut impostor = Script::start_as(script.ca.clone(), store, ClientAuth::Optional, Default::default()).await;
    let agent = Running::start(AgentConfig { server: impostor.addr, dir: None, ..config.clone() });
    let said = async {
        while !agent.store.pending().is_some_and(|why| why.contains("not valid for name")) {
            tokio::task::yield_now().await;
        }
    };
    soon(said).await;
    assert!(impostor.calls.try_recv().is_err());
    agent.stop().await;
    // And the answer has to be of use.
    let agent = Running::start(config);
    let wrong = script.ca.sign(&request_of(&script.ca), &web(), SystemTime::now()).expect("signed");
    script.answer(|_| Ok(wrong.into())).await;
    script.answer(|_| Err(Status::unavailable("later"))).await;
    assert!(agent.store.current().is_none(), "a certificate for another key");
    agent.stop().await;
}

fn request_of(_: &Ca) -> Vec<u8> {
    hauberk_identity::SecretKey::generate().expect("a key").request(&web()).expect("a request")
}

#[tokio::test]
async fn a_restart_from_the_volume_needs_no_server() {
    let (mut script, config, dir) = scripted().await;
    let agent = Running::start(config.clone());
    script.sign(SystemTime::now()).await;
    let before = soon(agent.store.ready()).await;
    agent.stop().await;
    let nobody = AgentConfig { server: "127.0.0.1:1".parse().expect("an address"), ..config };
    let (_, store) = Agent::new(nobody).expect("a valid configuration");
    let after = store.current().expect("from the volume, at once");
    assert_eq!((after.serial(), after.name()), (before.serial(), before.name()));
    assert_eq!(public_key(&after), public_key(&before));

    let volume = dir.path().join("volume");
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&volume), 0o700);
    let files: Vec<_> = std::fs::read_dir(&volume).expect("there").map(|file| file.expect("there").path()).collect();
    assert!(!files.is_empty());
    for file in files {
        assert_eq!(mode(&file), 0o600, "{file:?}");
    }
}

#[tokio::test]
async fn what_is_of_no_use_in_the_volume_is_asked_for_anew() {
    let (mut script, config, dir) = scripted().await;
    let agent = Running::start(config.clone());
    script.sign(SystemTime::now()).await;
    soon(agent.store.ready()).await;
    agent.stop().await;
    let file = dir.path().join("volume/credentials.pem");
    let good = std::fs::read(&file).expect("written");
    let text = String::from_utf8(good.clone()).expect("PEM");
    let chain_at = text.find("-----BEGIN CERT").expect("a chain");
    let other = hauberk_identity::SecretKey::generate().expect("a key");
    let other_ca = Ca::in_memory(long_skew()).expect("a CA");
    let own = hauberk_identity::SecretKey::from_pem(&good).expect("a key").request(&web()).expect("a request");
    let leaf = |ca: &Ca, name, at| {
        let issued = ca.sign(&own, name, at).expect("signed");
        let block = |der: &[u8]| pem::encode(&pem::Pem::new("CERTIFICATE", der));
        format!("{}{}{}", &text[..chain_at], block(&issued.leaf), block(&issued.intermediates[0]))
    };
    let now = SystemTime::now();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("zeros", vec![0; good.len()]),
        ("no chain", good[..chain_at].to_vec()),
        ("no key", good[chain_at..].to_vec()),
        ("cut in the key", good[..chain_at / 2].to_vec()),
        ("cut in the leaf", good[..chain_at + 200].to_vec()),
        ("another key", [other.to_pem().as_bytes(), &good[chain_at..]].concat()),
        ("another CA", leaf(&other_ca, &web(), now).into()),
        ("another identity", leaf(&script.ca, &identity("db", "shop"), now).into()),
        ("ended", leaf(&script.ca, &web(), now - Duration::from_secs(25 * 3600)).into()),
    ];
    for (name, bytes) in cases {
        std::fs::write(&file, &bytes).expect("written");
        let agent = Running::start(config.clone());
        assert!(agent.store.current().is_none(), "{name}");
        script.sign(SystemTime::now()).await;
        soon(agent.store.ready()).await;
        agent.stop().await;
        let (_, store) = Agent::new(config.clone()).expect("a valid configuration");
        assert!(store.current().is_some(), "{name}: repaired");
    }
    // Everywhere it can be cut: either it is whole, or it is asked for anew.
    for cut in (0..good.len()).step_by(7) {
        std::fs::write(&file, &good[..cut]).expect("written");
        let (_, store) = Agent::new(config.clone()).expect("a valid configuration");
        assert!(store.current().is_none(), "cut at {cut}");
    }
}

#[test]
fn wrong_configuration_is_an_error_at_start() {
    let config = AgentConfig::new(web(), loopback(), "token".into(), None, "no roots".into());
    let error = Agent::new(config).expect_err("no roots").to_string();
    assert!(error.contains("at least one certificate"), "{error}");
    let roots = Ca::in_memory(long_skew()).expect("a CA").bundle().to_pem();
    let file = tempfile::NamedTempFile::new().expect("a file");
    let dir = Some(file.path().join("dir"));
    let error = Agent::new(AgentConfig::new(web(), loopback(), "token".into(), dir, roots)).expect_err("a file");
    assert!(error.to_string().contains("must be writable"), "{error}");
}
