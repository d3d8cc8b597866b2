//! Whatever is sent to the webhook's port is answered, or ends; and keeps nobody else from being answered.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use hauberk_webhook::{Limits, registration::Entry};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::{Value, json};

use super::scene::{LIFETIMES, Replica, Scene, until};

/// Nothing here takes that long.
const LIMIT: Duration = Duration::from_secs(30);

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn connect(addr: SocketAddr, bundle: &str) -> std::io::Result<Tls> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(root.expect("PEM")).expect("a certificate");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("suites");
    let config = Arc::new(builder.with_root_certificates(roots).with_no_client_auth());
    let name = ServerName::try_from("hauberk-webhook.hauberk.svc").expect("a name");
    let mut connection = ClientConnection::new(config, name).expect("a client");
    let mut tcp = TcpStream::connect(addr)?;
    tcp.set_read_timeout(Some(LIMIT))?;
    tcp.set_write_timeout(Some(LIMIT))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut tcp)?;
    }
    Ok(StreamOwned::new(connection, tcp))
}

/// Whether who believes `bundle` gets through the handshake.
pub(crate) async fn handshake(addr: SocketAddr, bundle: &str) -> bool {
    let bundle = bundle.to_owned();
    let done = tokio::task::spawn_blocking(move || connect(addr, &bundle).is_ok());
    done.await.expect("no panic")
}

/// All that comes back. Who answers early may close before everything was sent.
fn exchange(addr: SocketAddr, bundle: &str, sent: &[u8]) -> Vec<u8> {
    let mut stream = connect(addr, bundle).expect("a handshake");
    let _ = stream.write_all(sent);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn post(addr: SocketAddr, bundle: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let length = body.len();
    let mut request =
        format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n")
            .into_bytes();
    request.extend_from_slice(body);
    parse(&exchange(addr, bundle, &request))
}

fn parse(answer: &[u8]) -> (u16, Vec<u8>) {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("an HTTP answer");
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    (head[9..12].parse().expect("a status"), answer[end + 4..].to_vec())
}

fn review(uid: &str, namespace: &Value, pod: &Value) -> Vec<u8> {
    let request = json!({
        "uid": uid, "kind": { "group": "", "version": "v1", "kind": "Pod" }, "operation": "CREATE",
        "namespace": namespace, "object": pod, "dryRun": true,
    });
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request })
        .to_string()
        .into_bytes()
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        "[a-z]{1,8}",
        proptest::sample::select(vec![
            "metadata",
            "spec",
            "containers",
            "initContainers",
            "name",
            "ports",
            "containerPort",
            "labels",
            "annotations",
            "livenessProbe",
            "httpGet",
            "port",
            "volumes",
            "env",
            "securityContext",
            "hauberk.dev/tls",
            "ownerReferences",
            "controller",
            "generateName",
            "resources",
            "restartPolicy",
        ])
        .prop_map(str::to_owned),
    ];
    leaf.prop_recursive(6, 60, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::hash_map(key.clone(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

async fn running(limits: Limits) -> (Scene, Replica, String) {
    let scene = Scene::new(1, Default::default()).await;
    scene.publish_trust();
    scene.plane.namespace("shop", &[("hauberk.dev/inject", "enabled")]).await.expect("a namespace");
    let replica = scene.replica_with("webhook-0", LIFETIMES, limits).await;
    scene.register();
    scene.serving(&[&replica]).await;
    let bundle = scene.bundle().await.expect("registered");
    (scene, replica, bundle)
}

/// Runs a law of many cases, which may block.
fn law<S: Strategy>(cases: u32, strategy: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    tokio::task::block_in_place(|| {
        let config = Config { cases, failure_persistence: None, ..Config::default() };
        TestRunner::new(config).run(&strategy, test).map_err(|error| error.to_string()).expect("it holds");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_bytes_get_an_answer() {
    let (scene, replica, bundle) = running(Limits { drain: Duration::ZERO, ..Limits::default() }).await;
    let addr = replica.reviews;
    let path = || proptest::sample::select(Entry::ALL.map(Entry::path).to_vec());

    law(150, (path(), vec(any::<u8>(), 0..2000)), |(path, body)| {
        let (status, text) = post(addr, &bundle, path, &body);
        prop_assert!(status == 400 && !text.is_empty(), "{status} {text:?}");
        Ok(())
    });

    // A review that can be read is always answered yes or no, with its uid, whatever the pod is.
    let namespace = prop_oneof![Just(json!("shop")), Just(json!("absent")), Just(json!("../x")), Just(Value::Null)];
    law(300, (path(), "[\\PC]{0,40}", namespace, any_json()), |(path, uid, namespace, pod)| {
        let (status, body) = post(addr, &bundle, path, &review(&uid, &namespace, &pod));
        let answer: Value = serde_json::from_slice(&body).expect("JSON");
        prop_assert_eq!(status, 200);
        prop_assert_eq!(answer["response"]["uid"].as_str(), Some(uid.as_str()));
        prop_assert!(answer["response"]["allowed"].is_boolean(), "{}", answer);
        Ok(())
    });

    // What is not even HTTP ends; what is deeper or longer than anything is said to be.
    law(50, vec(any::<u8>(), 0..500), |bytes| {
        // Without an end of its own a request might still come.
        let sent = [bytes.as_slice(), b"\r\n\r\n\r\n\r\n"].concat();
        let answer = exchange(addr, &bundle, &sent);
        prop_assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{answer:?}");
        Ok(())
    });
    let many = tokio::task::spawn_blocking(move || {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let deep = post(addr, &bundle, "/mutate/pod", deep.as_bytes());
        let large = post(addr, &bundle, "/mutate/pod", &vec![b' '; (8 << 20) + 1]);
        let elsewhere = post(addr, &bundle, "/mutate", b"{}");
        let numbers = review("n", &json!("shop"), &json!({ "spec": vec![0; 3_000_000] }));
        (deep.0, large.0, elsewhere.0, post(addr, &bundle, "/mutate/pod", &numbers).0)
    });
    assert_eq!(many.await.expect("no panic"), (400, 413, 404, 200));
    scene.serving(&[&replica]).await;
    replica.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_slow_or_takes_too_much_is_ended_and_the_api_server_is_answered_meanwhile() {
    let second = Duration::from_secs(1);
    let limits = Limits {
        connections_of_one: 60,
        handshake: second,
        first_request: second,
        whole_body: second,
        drain: Duration::ZERO,
        ..Limits::default()
    };
    let (scene, replica, bundle) = running(limits).await;
    let addr = replica.reviews;
    let silent: Vec<_> = (0..10).map(|_| TcpStream::connect(addr).expect("accepted")).collect();
    let bundle_of_one = bundle.clone();
    let slow = tokio::task::spawn_blocking(move || {
        let mut open = Vec::new();
        for number in 0..20 {
            let mut stream = connect(addr, &bundle_of_one).expect("a handshake");
            let part: &[u8] = match number % 2 {
                0 => b"POST /mutate/pod HTTP/1.1\r\nhost: ",
                _ => b"POST /mutate/pod HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
            };
            stream.write_all(part).expect("sent");
            open.push(stream);
        }
        open
    });
    let mut slow = slow.await.expect("no panic");
    scene.serving(&[&replica]).await;
    let ended = tokio::task::spawn_blocking(move || {
        for stream in silent {
            stream.set_read_timeout(Some(LIMIT)).expect("a socket");
            let mut rest = Vec::new();
            let _ = (&stream).read_to_end(&mut rest);
        }
        let mut answers = Vec::new();
        for stream in &mut slow {
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            answers.push(String::from_utf8_lossy(&answer).into_owned());
        }
        answers
    });
    let answers = ended.await.expect("no panic");
    assert!(answers.iter().step_by(2).all(String::is_empty), "half a header has no answer: {answers:?}");
    let late = answers.iter().skip(1).step_by(2).all(|answer| answer.starts_with("HTTP/1.1 408"));
    assert!(late, "half a body is told that it is late: {answers:?}");
    assert_eq!(replica.metric(r#"hauberk_webhook_rejected_total{why="handshake"}"#).await, 10.0);
    assert_eq!(replica.metric(r#"hauberk_webhook_rejected_total{why="silent"}"#).await, 10.0);
    assert_eq!(replica.metric(r#"hauberk_webhook_rejected_total{why="slow"}"#).await, 10.0);

    // Over its share an address is not let in; when it lets go, it is again.
    let crowd = (0..70).map(|_| TcpStream::connect(addr).expect("accepted")).collect::<Vec<_>>();
    let series = r#"hauberk_webhook_rejected_total{why="connections"}"#;
    until("some are not let in", async || replica.metric(series).await >= 10.0).await;
    drop(crowd);
    scene.serving(&[&replica]).await;
    replica.end().await;
}
