//! Certify: who gets a certificate, and every reason for which somebody does not.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use hauberk_identity::{
    SecretKey, Store,
    grpc::{self, ClientAuth, IncomingLimits},
    server::{
        Bound, Ca, Certify, CertifyLimits, Lifetimes, LocalTokens, MeshPods, Metrics, Proven, Refusal, ReviewFault,
        TokenClaims, TokenReview,
    },
};
use hauberk_mesh::{TOKEN_AUDIENCE, TrustDomain};
use linkerd2_proxy_api::identity::{CertifyRequest, identity_client::IdentityClient};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};
use tonic::Code;

use crate::support::*;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_meshed_pod_gets_the_certificate_of_its_service_account() {
    let world = World::start().await;
    let key = SecretKey::generate().expect("a key");
    let mut asked = request(&world.tokens);
    asked.certificate_signing_request = key.request(&web()).expect("a request");
    let answer = soon(world.client().certify(asked)).await.expect("granted").into_inner();
    let all = std::iter::once(answer.leaf_certificate).chain(answer.intermediate_certificates);
    let chain = all.map(Into::into).collect();
    let now = SystemTime::now();
    let credentials = hauberk_identity::Credentials::new(&web(), &key, chain, &world.ca.bundle(), 1, now);
    let credentials = credentials.expect("believed by those who trust the bundle");
    let until = SystemTime::try_from(answer.valid_until.expect("said")).expect("a time");
    assert_eq!(until, credentials.not_after());
    assert!(world.metrics().await.contains("hauberk_identity_certificates_issued_total 1\n"));
}

#[tokio::test]
async fn a_pod_of_the_control_plane_needs_no_proxy() {
    let world = World::start().await;
    let name = identity("hauberk-destination", "hauberk");
    let asked = CertifyRequest {
        identity: name.to_string(),
        token: world.tokens.mint(&pod("destination-0"), TOKEN_AUDIENCE, HOUR).into_bytes(),
        ..request(&world.tokens)
    };
    soon(world.client().certify(asked)).await.expect("granted");
}

/// What is changed in a request that is right, and what comes of it.
type Case = (&'static str, Box<dyn Fn(&mut CertifyRequest, &World)>, Code, &'static str, &'static str);

fn case(
    reason: &'static str,
    code: Code,
    name: &'static str,
    message: &'static str,
    change: impl Fn(&mut CertifyRequest, &World) + 'static,
) -> Case {
    (name, Box::new(change), code, reason, message)
}

fn csr(reason: &'static str, name: &'static str, message: &'static str, change: fn(&mut Vec<u8>)) -> Case {
    case(reason, Code::InvalidArgument, name, message, move |asked, _| change(&mut asked.certificate_signing_request))
}

fn token(
    reason: &'static str,
    code: Code,
    name: &'static str,
    message: &'static str,
    change: fn(&mut TokenClaims),
) -> Case {
    case(reason, code, name, message, move |asked, world| {
        let mut claims = TokenClaims::for_pod(&pod("web-0"), TOKEN_AUDIENCE, SystemTime::now(), HOUR);
        change(&mut claims);
        asked.token = world.tokens.mint_claims(&claims).into_bytes();
    })
}

/// Runs the cases, and compares what was counted with what was refused.
async fn refused(cases: Vec<Case>) {
    let world = World::start().await;
    let mut client = world.client();
    for (name, change, code, reason, message) in &cases {
        let mut asked = request(&world.tokens);
        change(&mut asked, &world);
        let status = soon(client.certify(asked.clone())).await.expect_err(name);
        assert_eq!((status.code(), status.message().contains(message)), (*code, true), "{name}: {status:?}");
        assert!(Refusal::REASONS.contains(reason), "{name}");
        if let Some(part) = asked.token.get(..20).and_then(|part| str::from_utf8(part).ok()) {
            assert!(!status.message().contains(part), "{name}: the token is told");
        }
    }
    let metrics = world.metrics().await;
    for (name, .., reason, _) in &cases {
        let count = cases.iter().filter(|case| case.3 == *reason).count();
        let line = format!("hauberk_identity_certificates_refused_total{{reason=\"{reason}\"}} {count}\n");
        assert!(metrics.contains(&line), "{name}: no {line} in\n{metrics}");
    }
    assert!(metrics.contains("hauberk_identity_certificates_issued_total 0\n"));
    // What was refused is not remembered: who asks rightly is served.
    soon(client.certify(request(&world.tokens))).await.expect("granted");
}

#[tokio::test]
async fn refuses_a_request_that_its_own_key_did_not_sign() {
    refused(vec![
        csr("bad-request-signature", "signature", "not signed by its own key", |csr| {
            *csr.last_mut().expect("bytes") ^= 1
        }),
        csr("bad-request-signature", "content", "not signed by its own key", |csr| {
            let at = csr.windows(4).position(|window| window == b"shop").expect("the name");
            csr[at] = b'S';
        }),
    ])
    .await;
}

#[tokio::test]
async fn refuses_every_key_but_p256() {
    let key = move |name, change: fn(&mut Vec<u8>)| csr("other-key-type", name, "not an ECDSA P-256 key", change);
    refused(vec![
        key("p384", |csr| *csr = other_key(&rcgen::PKCS_ECDSA_P384_SHA384)),
        key("p521", |csr| *csr = other_key(&rcgen::PKCS_ECDSA_P521_SHA512)),
        key("ed25519", |csr| *csr = other_key(&rcgen::PKCS_ED25519)),
        key("rsa", |csr| *csr = other_key(&rcgen::PKCS_RSA_SHA256)),
    ])
    .await;
}

fn other_key(kind: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
    let key = rcgen::KeyPair::generate_for(kind).expect("a key");
    rcgen::CertificateParams::default().serialize_request(&key).expect("a request").der().to_vec()
}

#[tokio::test]
async fn refuses_what_is_not_a_signing_request() {
    refused(vec![
        csr("bad-request", "empty", "not PKCS #10 in DER", Vec::clear),
        csr("bad-request", "pem", "not PKCS #10 in DER", |csr| *csr = b"-----BEGIN CERTIFICATE REQUEST-----".to_vec()),
        csr("bad-request", "trailing", "1 bytes too many", |csr| csr.push(0)),
        csr("bad-request", "cut", "not PKCS #10 in DER", |csr| csr.truncate(100)),
    ])
    .await;
}

#[tokio::test]
async fn refuses_oversized_anything() {
    refused(vec![
        csr("bad-request", "request", "has 4097 bytes: at most 4096", |csr| csr.resize(4097, 0)),
        case("bad-token", Code::InvalidArgument, "token", "has 8193 bytes: at most 8192", |asked, _| {
            asked.token = vec![b'a'; 8193];
        }),
        case("bad-name", Code::InvalidArgument, "identity", "has 254 characters", |asked, _| {
            asked.identity = "a".repeat(254);
        }),
    ])
    .await;
    // Beyond that, nothing is read at all.
    let world = World::start().await;
    let asked = CertifyRequest { token: vec![b'a'; 32 * 1024], ..request(&world.tokens) };
    let status = soon(world.client().certify(asked)).await.expect_err("too large");
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
}

#[tokio::test]
async fn refuses_a_token_for_another_audience() {
    refused(vec![token(
        "wrong-audience",
        Code::Unauthenticated,
        "audience",
        "not for \"identity.hauberk.dev\"",
        |claims| {
            *claims = TokenClaims::for_pod(&pod("web-0"), "api", SystemTime::now(), HOUR);
        },
    )])
    .await;
}

#[tokio::test]
async fn refuses_a_token_out_of_its_time() {
    refused(vec![
        token("expired-token", Code::Unauthenticated, "expired", "the token ended", |claims| claims.exp -= 3601),
        token("early-token", Code::Unauthenticated, "early", "the token starts in", |claims| {
            claims.nbf = claims.nbf.map(|start| start + 1800);
        }),
    ])
    .await;
}

#[tokio::test]
async fn refuses_a_token_that_names_no_pod() {
    let unbound = |name, change| token("unbound-token", Code::Unauthenticated, name, "bound to no pod", change);
    refused(vec![
        unbound("no claims", |claims| claims.kubernetes = None),
        unbound("no pod", |claims| claims.kubernetes.as_mut().expect("there").pod = None),
        unbound("no uid", |claims| {
            claims.kubernetes.as_mut().expect("there").pod = Some(Bound { name: "web-0".into(), uid: String::new() });
        }),
    ])
    .await;
}

#[tokio::test]
async fn refuses_what_is_not_a_token_of_a_service_account() {
    refused(vec![
        case("no-token", Code::InvalidArgument, "none", "there is no token", |asked, _| asked.token.clear()),
        case("bad-token", Code::InvalidArgument, "text", "not a JWT", |asked, _| asked.token = b"hello".to_vec()),
        case("bad-token", Code::InvalidArgument, "bytes", "not a JWT", |asked, _| asked.token = vec![0xff; 64]),
        token("bad-token", Code::InvalidArgument, "user", "not a JWT", |claims| claims.sub = "alice".into()),
        token("bad-token", Code::InvalidArgument, "two accounts", "not a JWT", |claims| {
            claims.sub = "system:serviceaccount:shop:admin".into();
        }),
    ])
    .await;
}

#[tokio::test]
async fn refuses_a_token_that_our_issuer_did_not_sign() {
    let claims = || TokenClaims::for_pod(&pod("web-0"), TOKEN_AUDIENCE, SystemTime::now(), HOUR);
    refused(vec![
        case(
            "token-rejected",
            Code::Unauthenticated,
            "other key",
            "not signed by the issuer of this mesh",
            |asked, _| {
                let dir = tempfile::TempDir::new().expect("a directory");
                let other = LocalTokens::open_or_create(dir.path()).expect("tokens");
                asked.token = other.mint(&pod("web-0"), TOKEN_AUDIENCE, HOUR).into_bytes();
            },
        ),
        case(
            "token-rejected",
            Code::Unauthenticated,
            "another algorithm",
            "not signed with ES256",
            move |asked, world| {
                // The public key is no secret: as an HMAC key it must be worth nothing.
                let public = std::fs::read(world.ca_dir().join("token.pub.pem")).expect("read");
                let key = jsonwebtoken::EncodingKey::from_secret(&public);
                let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
                asked.token = jsonwebtoken::encode(&header, &claims(), &key).expect("a token").into_bytes();
            },
        ),
        case(
            "token-rejected",
            Code::Unauthenticated,
            "changed",
            "not signed by the issuer of this mesh",
            |asked, _| {
                let last = asked.token.len() - 10;
                asked.token[last] = if asked.token[last] == b'A' { b'B' } else { b'A' };
            },
        ),
        token("token-rejected", Code::Unauthenticated, "other issuer", "from another issuer", |claims| {
            claims.iss = "kubernetes".into();
        }),
    ])
    .await;
}

#[tokio::test]
async fn refuses_another_identity_than_the_tokens() {
    refused(vec![
        case("other-identity", Code::PermissionDenied, "account", "the token is that of web.shop.", |asked, _| {
            asked.identity = identity("admin", "shop").to_string();
        }),
        case("other-identity", Code::PermissionDenied, "namespace", "the token is that of web.shop.", |asked, _| {
            asked.identity = identity("web", "bank").to_string();
        }),
        case(
            "other-trust-domain",
            Code::PermissionDenied,
            "domain",
            "not of the trust domain hauberk.cluster.local",
            |asked, _| {
                asked.identity = "web.shop.serviceaccount.identity.hauberk.other.local".into();
            },
        ),
        case("bad-name", Code::InvalidArgument, "form", "is not an identity", |asked, _| asked.identity = "web".into()),
        case("bad-name", Code::InvalidArgument, "label", "is not a DNS label", |asked, _| {
            asked.identity = format!("{}.{}", "a".repeat(64), &web().as_str()["web.".len()..]);
        }),
    ])
    .await;
}

#[tokio::test]
async fn refuses_a_token_whose_pod_may_have_no_certificate() {
    let denied = |reason, name, message, change| token(reason, Code::PermissionDenied, name, message, change);
    let of = |reason, name: &'static str, message, account: &'static str, namespace: &'static str| {
        case(reason, Code::PermissionDenied, name, message, move |asked, world| {
            asked.identity = identity(account, namespace).to_string();
            asked.token = world.tokens.mint(&pod(name), TOKEN_AUDIENCE, HOUR).into_bytes();
        })
    };
    refused(vec![
        denied("no-pod", "gone", "there is no pod shop/web-9", |claims| bind(claims, "web-9", "u-9")),
        denied("other-pod", "replaced", "pod shop/web-0 is another one", |claims| bind(claims, "web-0", "u-old")),
        denied("other-account", "account", "pod shop/plain runs as plain, the token is for web", |claims| {
            bind(claims, "plain", "u-plain");
        }),
        of("not-meshed", "plain", "pod shop/plain has no proxy", "plain", "shop"),
        of("not-meshed", "other", "pod hauberk/other has no proxy", "other", "hauberk"),
        of("pod-ended", "job", "pod shop/job has ended", "web", "shop"),
    ])
    .await;
}

fn bind(claims: &mut TokenClaims, name: &str, uid: &str) {
    claims.kubernetes.as_mut().expect("there").pod = Some(Bound { name: name.into(), uid: uid.into() });
}

#[tokio::test]
async fn the_pods_are_those_that_the_file_names_now() {
    let world = World::start().await;
    let mut client = world.client();
    world.edit_mesh("uid: u-web", "uid: u-next");
    let status = soon(client.certify(request(&world.tokens))).await.expect_err("another pod now");
    assert!(status.message().contains("is another one of the same name"), "{status:?}");
    world.edit_mesh("uid: u-next", "uid: u-web");
    soon(client.certify(request(&world.tokens))).await.expect("granted");
    // A bad edit keeps the last good state, and is counted once.
    world.edit_mesh("uid: u-web", "uid: u-job");
    soon(client.certify(request(&world.tokens))).await.expect("granted");
    soon(client.certify(request(&world.tokens))).await.expect("granted");
    let metrics = world.metrics().await;
    assert!(metrics.contains("hauberk_identity_reloads_total{what=\"mesh\",outcome=\"bad\"} 1\n"), "{metrics}");
}

/// Vouches for web-0, but only when told to go on.
#[derive(Debug)]
struct Slow(Arc<Semaphore>);

impl TokenReview for Slow {
    async fn review(&self, _: &str, _: &str) -> Result<Proven, ReviewFault> {
        self.0.acquire().await.map_err(|_| ReviewFault::Unavailable("the API server is away".into()))?.forget();
        let pod = Bound { name: "web-0".into(), uid: "u-web".into() };
        Ok(Proven { namespace: "shop".into(), service_account: "web".into(), pod })
    }
}

/// Serves Certify with a slow reviewer.
async fn slow(
    limits: CertifyLimits,
) -> (IdentityClient<tonic::transport::Channel>, LocalTokens, Arc<Semaphore>, impl Sized) {
    let dir = tempfile::TempDir::new().expect("a directory");
    std::fs::write(dir.path().join("mesh.yaml"), MESH).expect("written");
    let ca = Arc::new(Ca::in_memory(Lifetimes::default()).expect("a CA"));
    let pods = Arc::new(MeshPods::open(&dir.path().join("mesh.yaml"), Metrics::default()).expect("valid"));
    let go_on = Arc::new(Semaphore::new(0));
    let domain = TrustDomain::default();
    let service = Certify::new(ca.clone(), domain, Slow(go_on.clone()), pods, limits, Metrics::default());
    let own = Store::fixed(ca.credentials(&server_identity(), 1, SystemTime::now()).expect("a certificate").into());
    let listener = TcpListener::bind(loopback()).await.expect("bound");
    let addr = listener.local_addr().expect("bound");
    let incoming = grpc::incoming(listener, own.clone(), ClientAuth::Optional, IncomingLimits::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { grpc::server().add_service(service.into_server()).serve_with_incoming(incoming).await });
    let tokens = LocalTokens::open_or_create(dir.path()).expect("tokens");
    let client = IdentityClient::new(grpc::channel(addr, server_identity(), own));
    (client, tokens, go_on, (tasks, dir))
}

#[tokio::test]
async fn reviews_under_way_are_bounded_for_each_source() {
    let limits = CertifyLimits { reviews_per_source: 1, ..CertifyLimits::default() };
    let (mut client, tokens, go_on, _alive) = slow(limits).await;
    let mut waiting = JoinSet::new();
    for _ in 0..2 {
        let (mut client, asked) = (client.clone(), request(&tokens));
        waiting.spawn(async move { client.certify(asked).await });
    }
    let refused = soon(waiting.join_next()).await.expect("one of two").expect("no panic").expect_err("one place");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    go_on.add_permits(2);
    soon(waiting.join_next()).await.expect("the other").expect("no panic").expect("granted");
    soon(client.certify(request(&tokens))).await.expect("the place was given back");
}

#[tokio::test]
async fn a_review_that_does_not_end_is_given_up() {
    let limits = CertifyLimits { review: Duration::from_millis(50), ..CertifyLimits::default() };
    let (mut client, tokens, go_on, _alive) = slow(limits).await;
    let status = soon(client.certify(request(&tokens))).await.expect_err("no answer");
    assert_eq!(
        (status.code(), status.message().contains("no answer in time")),
        (Code::Unavailable, true),
        "{status:?}"
    );
    go_on.close();
    let status = soon(client.certify(request(&tokens))).await.expect_err("no answer");
    assert!(status.message().contains("the API server is away"), "{status:?}");
}
