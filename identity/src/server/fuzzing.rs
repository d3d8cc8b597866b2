//! What the fuzz targets of the server run, each with the laws that it checks: any bytes, the code that the server runs
//! on them, and a panic if a law does not hold. No part of the API; `fuzz/` and the replay of its corpora call it.

use std::{
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use hauberk_mesh::{TOKEN_AUDIENCE, TrustDomain};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{
    Ca, Lifetimes, TokenClaims,
    ca::{LARGEST_REQUEST, requested_key},
    tokens::{LARGEST_TOKEN, precheck},
};

/// A target's name, and what it runs.
pub type Entry = (&'static str, fn(&[u8]));

/// All targets of this crate.
pub const ENTRIES: [Entry; 2] = [("csr", csr), ("token", token)];

/// A signing request. What is signed has the request's key and the CA's name for it, and nothing else of the request.
pub fn csr(request: &[u8]) {
    static CA: OnceLock<Ca> = OnceLock::new();
    let name = TrustDomain::default().identity("web", "shop").expect("valid");
    let Ok(_) = requested_key(request) else { return };
    assert!(request.len() <= LARGEST_REQUEST);
    let ca = CA.get_or_init(|| Ca::in_memory(Lifetimes::default()).expect("a CA can be made"));
    let issued = ca.sign(request, &name, SystemTime::now()).expect("a key that was taken is signed");
    let (rest, leaf) = X509Certificate::from_der(&issued.leaf).expect("a certificate");
    assert!(rest.is_empty() && !leaf.is_ca() && leaf.subject().iter().next().is_none());
    let names = leaf.subject_alternative_name().expect("readable").expect("it has names");
    let names: Vec<_> = names.value.general_names.iter().map(ToString::to_string).collect();
    assert_eq!(names, [format!("DNSName({})", name.as_str())]);
}

/// A token, twice: the bytes as they come, and as the claims of a well-formed token. What passes is for us, has not
/// ended, and is bound to a pod.
pub fn token(bytes: &[u8]) {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 31);
    let _ = precheck(bytes, TOKEN_AUDIENCE, now);
    let encoded = [&b"eyJhbGciOiJFUzI1NiJ9."[..], &base64url(bytes), b".c2ln"].concat();
    if let Ok(accepted) = precheck(&encoded, TOKEN_AUDIENCE, now) {
        assert!(encoded.len() <= LARGEST_TOKEN && encoded.starts_with(accepted.as_bytes()));
        let claims: TokenClaims = serde_json::from_slice(bytes).expect("what was accepted are claims");
        assert!(claims.exp > 1 << 31 && claims.kubernetes.is_some_and(|bound| bound.pod.is_some()));
    }
}

fn base64url(bytes: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut encoded = Vec::new();
    for group in bytes.chunks(3) {
        let three = [group[0], *group.get(1).unwrap_or(&0), *group.get(2).unwrap_or(&0)];
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        let digits = [18, 12, 6, 0].map(|shift| DIGITS[(bits >> shift) as usize & 63]);
        encoded.extend_from_slice(&digits[..=group.len()]);
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpora_that_fuzzing_found_break_no_law() {
        for (name, entry) in ENTRIES {
            let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
            let files = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
            let count =
                files.map(|file| entry(&std::fs::read(file.expect("readable").path()).expect("readable"))).count();
            assert!(count >= 3, "{name} has a corpus");
        }
    }

    #[test]
    fn valid_claims_pass_in_this_form() {
        let claims = br#"{"iss":"i","sub":"system:serviceaccount:shop:web","aud":["identity.hauberk.dev"],"exp":9000000000,
            "kubernetes.io":{"namespace":"shop","serviceaccount":{"name":"web","uid":"u"},"pod":{"name":"p","uid":"u"}}}"#;
        let token = [&b"eyJhbGciOiJFUzI1NiJ9."[..], &base64url(claims), b".c2ln"].concat();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 31);
        assert!(precheck(&token, TOKEN_AUDIENCE, now).is_ok());
    }
}
