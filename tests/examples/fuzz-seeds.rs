//! Writes what the fuzz targets begin with: `cargo run -p hauberk-tests --example fuzz-seeds -- fuzz/corpus`. Valid
//! messages of each kind, in the form that each target reads.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use hauberk_destination::{Answer, Endpoint, Mesh, Pod, profile, updates};
use hauberk_identity::{SecretKey, server::TokenClaims};
use hauberk_mesh::{PortSet, Reason, TOKEN_AUDIENCE, TrustDomain};
use prost::Message;
use rcgen::{CertificateParams, PKCS_ECDSA_P256_SHA256};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// A target's name, and its seeds.
type Seeds = (&'static str, Vec<Vec<u8>>);

fn main() -> Result<()> {
    let dir = std::env::args().nth(1).context("say which directory: fuzz/corpus")?;
    for (target, seeds) in [frames(), linkerd_header(), client_hello()?, request_line(), discovery()?, csr()?, token()]
    {
        let dir = Path::new(&dir).join(target);
        fs::create_dir_all(&dir)?;
        for (number, seed) in seeds.into_iter().enumerate() {
            fs::write(dir.join(format!("seed-{number:02}")), seed)?;
        }
    }
    Ok(())
}

/// Side, size of chunks, frames.
fn frames() -> Seeds {
    let (open, opened, failed) = (&[1, 0, 0, 3, 0x1f, 0x90, 0][..], &[2, 0, 0, 0][..], &[3, 0, 0, 1, 2][..]);
    let (data, end, reset) = (&[4, 0, 0, 2, b'h', b'i'][..], &[5, 0, 0, 0][..], &[6, 0, 0, 0][..]);
    let long_open = &[1, 0, 0, 6, 0, 80, 0, 9, 9, 9][..];
    let requests = [vec![open, data, end], vec![long_open, data, data, end, open, end], vec![open, data, reset]];
    let answers = [vec![opened, data, end], vec![failed], vec![opened, end, opened, data, end], vec![opened, reset]];
    let seeds = |side: u8, all: &[Vec<&[u8]>]| {
        let seed = |frames: &Vec<&[u8]>| [&[side, 3][..], &frames.concat()].concat();
        all.iter().map(seed).collect::<Vec<_>>()
    };
    ("frames", [seeds(0, &requests), seeds(1, &answers)].concat())
}

fn linkerd_header() -> Seeds {
    let framed = |message: &[u8]| {
        let length = (message.len() as u32).to_be_bytes();
        [&[7][..], b"transport.l5d.io/v1\r\n\r\n", &length, message, b"PING"].concat()
    };
    let messages: [&[u8]; 4] =
        [b"\x08\x50", b"\x08\xeb\x31", b"\x08\xaf\x20\x1a\x02\x0a\0", b"\x08\x50\x12\x04a:80\x1a\x02\x12\0"];
    ("linkerd_header", messages.into_iter().map(framed).collect())
}

/// What rustls sends, less the three bytes that the target puts first.
fn client_hello() -> Result<Seeds> {
    let config = ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let config = Arc::new(config);
    let mut seeds = Vec::new();
    for name in ["db.shop.svc", "a", "10.1.2.3"] {
        let mut hello = Vec::new();
        ClientConnection::new(config.clone(), name.to_owned().try_into()?)?.write_tls(&mut hello)?;
        seeds.push([&[16][..], &hello[3..]].concat());
    }
    Ok(("client_hello", seeds))
}

fn request_line() -> Seeds {
    let lines: [&[u8]; 9] = [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /a?b=c HTTP/1.0\r\n\r\n",
        b"OPTIONS * HTTP/1.1\n\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET k\r\n",
        b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
        b"OPTIONS sip:bob@example.com SIP/2.0\r\n",
        b"CONNECT {\"verbose\":false}\r\n",
        b"\x16\x03\x01\0\x05\x01\0\0\x01\x03",
    ];
    ("request_line", lines.into_iter().map(|line| [&[5][..], line].concat()).collect())
}

fn discovery() -> Result<Seeds> {
    let endpoint = |host: u8, meshed: bool| -> Result<(SocketAddr, Endpoint)> {
        let identity = TrustDomain::default().identity("web", "shop")?;
        let mesh = match meshed {
            true => Mesh::Proxy { identity: Ok(identity.clone()), skip_inbound_ports: PortSet::default() },
            false => Mesh::Absent,
        };
        let addr = SocketAddr::from(([10, 1, 0, host], 8080));
        let pod = Pod {
            name: "web-0".to_owned(),
            namespace: "shop".to_owned(),
            service_account: "web".to_owned(),
            ips: vec![addr.ip()],
            mesh,
            terminating: host == 3,
            weight: 1,
            labels: BTreeMap::new(),
            place: None,
        };
        let identity = if meshed { Ok(identity) } else { Err(Reason::PeerNotMeshed) };
        Ok((addr, Endpoint { addr, pod: Some(Arc::new(pod)), identity }))
    };
    let service = |endpoints| Answer::Service {
        fqdn: "web.shop.svc.cluster.local".to_owned(),
        affinity_seconds: Some(60),
        endpoints,
    };
    let full = service(BTreeMap::from([endpoint(2, true)?, endpoint(3, true)?, endpoint(4, false)?]));
    let less = service(BTreeMap::from([endpoint(3, true)?]));
    let pod = Answer::Pod(Some(endpoint(2, true)?.1));
    let message = |kind: u8, bytes: Vec<u8>| {
        let [high, low] = (bytes.len() as u16).to_be_bytes();
        [vec![kind, high, low], bytes].concat()
    };
    let told = |before: Option<&Answer>, now: &Answer| {
        let all = updates(before, now).into_iter().map(|update| message(3, update.encode_to_vec()));
        [all.collect::<Vec<_>>().concat(), message(1, profile(now).encode_to_vec())].concat()
    };
    let reopened = message(0, Vec::new());
    let seeds = vec![
        told(None, &full),
        [told(None, &full), told(Some(&full), &less)].concat(),
        [told(None, &less), reopened, told(None, &Answer::Unknown)].concat(),
        told(None, &pod),
        told(None, &Answer::Pod(None)),
    ];
    Ok(("discovery", seeds))
}

fn csr() -> Result<Seeds> {
    let request = |names: &[&str]| -> Result<Vec<u8>> {
        let key = rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        Ok(CertificateParams::new(names)?.serialize_request(&key)?.der().to_vec())
    };
    let own = SecretKey::generate()?;
    let ours = CertificateParams::default().serialize_request(&own)?.der().to_vec();
    Ok(("csr", vec![request(&[])?, request(&["web.shop"])?, ours]))
}

/// Header, claims and a signature that is none; the target sees to the encoding.
fn token() -> Seeds {
    let pod = hauberk_mesh::Pod {
        name: "web-0".to_owned(),
        namespace: "shop".to_owned(),
        uid: "uid".to_owned(),
        service_account: "web".to_owned(),
        ips: Vec::new(),
        proxy: None,
        ready: true,
        terminating: false,
        ended: false,
        weight: 1,
        labels: BTreeMap::new(),
    };
    let claims = |audience| {
        let claims = TokenClaims::for_pod(&pod, audience, SystemTime::UNIX_EPOCH, Duration::from_secs(1 << 40));
        serde_json::to_vec(&claims).expect("claims serialize")
    };
    (
        "token",
        vec![
            claims(TOKEN_AUDIENCE),
            claims("other"),
            b"{\"iss\":\"a\",\"sub\":\"b\",\"aud\":\"c\",\"exp\":1}".to_vec(),
        ],
    )
}
