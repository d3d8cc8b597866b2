//! Real handshakes, over a pipe, with servers whose chains are as they should be and not.

use std::{sync::Arc, time::Duration};

use hauberk_mesh::TrustDomain;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use tokio_rustls::TlsAcceptor;

use super::*;

/// The times of all certificates here, in seconds: from the 13th to the 14th of November 2023.
const FROM: i64 = 1_699_900_000;
const UNTIL: i64 = FROM + 86_400;

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let root = params.self_signed(&key).expect("signed").into();
        Self { issuer: Issuer::new(params, key), root }
    }

    fn leaf(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        params.not_before = time(FROM);
        params.not_after = time(UNTIL);
        params.serial_number = Some(vec![0x0a, 0xbc].into());
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.issuer).expect("signed").into();
        (leaf, PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    fn bundle(&self) -> TrustBundle {
        TrustBundle::new(0, vec![self.root.clone()]).expect("a bundle")
    }
}

fn time(seconds: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(seconds).expect("a time")
}

fn identity(account: &str) -> IdentityName {
    TrustDomain::default().identity(account, "shop").expect("valid")
}

/// What a proxy of `ca` that is `name` shows to whoever has no certificate, as the mesh port demands one.
async fn shown(ca: &Ca, name: &IdentityName, asked: &IdentityName) -> Result<handshake::Chain> {
    let (leaf, key) = ca.leaf(name.as_str());
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.root.clone()).expect("a root");
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().expect("one");
    let server = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]).expect("TLS 1.3");
    let mut server = server.with_client_cert_verifier(clients).with_single_cert(vec![leaf], key).expect("its own");
    server.alpn_protocols = vec![hauberk_mesh::ALPN_HAUBERK.to_vec()];
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let (chain, _refused) = tokio::join!(handshake::chain(ours, asked), acceptor.accept(theirs));
    chain
}

fn seconds(at: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(at.unsigned_abs()))
}

#[tokio::test]
async fn the_chain_is_shown_without_a_certificate_of_ours_and_judged_as_a_peer_would() {
    let (ca, other) = (Ca::new("issuer of the mesh"), Ca::new("another"));
    let (web, db) = (identity("web"), identity("db"));
    let chain = shown(&ca, &web, &web).await.expect("shown");
    let judged = |roots: &Ca, expected: &IdentityName, at: i64| {
        judge(&chain, &roots.bundle(), expected, seconds(at)).expect("a certificate")
    };
    let good = judged(&ca, &web, FROM + 60);
    insta::assert_snapshot!(
        Format::Yaml.render(&good.value(), String::new),
        @r#"
    fault: null
    identity: web.shop.serviceaccount.identity.hauberk.cluster.local
    issuer: issuer of the mesh
    notAfter: "2023-11-14T18:26:40Z"
    notBefore: "2023-11-13T18:26:40Z"
    serial: "0a:bc"
    trusted: true
    "#);
    for (roots, expected, at, fault) in [
        (&other, &web, FROM + 60, "leads to none of the mesh's trust roots"),
        (&ca, &db, FROM + 60, "not of this pod, which is db.shop.serviceaccount.identity.hauberk.cluster.local"),
        (&ca, &web, UNTIL + 60, "expired"),
        (&ca, &web, FROM - 60, "not valid yet"),
    ] {
        assert_eq!(judged(roots, expected, at).fault.as_deref(), Some(fault));
    }
}

#[tokio::test]
async fn what_is_no_proxy_is_an_error_with_a_reason() {
    let (ours, theirs) = tokio::io::duplex(1024);
    drop(theirs);
    let error = handshake::chain(ours, &identity("web")).await.expect_err("nobody there");
    assert!(format!("{error:#}").contains("the proxy does not answer by TLS"), "{error:#}");
    let error = judge(&[], &Ca::new("x").bundle(), &identity("web"), seconds(FROM)).expect_err("no certificate");
    assert!(error.to_string().contains("showed no certificate"), "{error}");
    let junk = [CertificateDer::from(vec![1, 2, 3])];
    let error = judge(&junk, &Ca::new("x").bundle(), &identity("web"), seconds(FROM)).expect_err("junk");
    assert!(error.to_string().contains("cannot be read"), "{error}");
}

#[tokio::test]
async fn people_see_one_line_for_each_pod() {
    let ca = Ca::new("issuer of the mesh");
    let web = identity("web");
    let chain = shown(&ca, &web, &web).await.expect("shown");
    let certificate = judge(&chain, &ca.bundle(), &web, seconds(FROM)).map_err(|error| error.to_string());
    let row = |pod: &str, certificate| Row { namespace: "shop".to_owned(), pod: pod.to_owned(), certificate };
    let rows = [row("web-0", certificate), row("web-1", Err("no answer within 10 s".to_owned()))];
    insta::assert_snapshot!(people(&rows), @"
    NAMESPACE   POD     IDENTITY                                                 VALID FROM             UNTIL                  SERIAL   ISSUER               STATE
    shop        web-0   web.shop.serviceaccount.identity.hauberk.cluster.local   2023-11-13T18:26:40Z   2023-11-14T18:26:40Z   0a:bc    issuer of the mesh   trusted
    shop        web-1                                                                                                                                        no answer within 10 s
    ");
}
