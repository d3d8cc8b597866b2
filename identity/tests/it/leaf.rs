//! What stands in a leaf: every field, compared with what is specified, whatever the request asked for.

use std::time::{Duration, SystemTime};

use hauberk_identity::server::{Ca, Lifetimes, SignFault};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use x509_parser::{
    der_parser::oid,
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer as _, X509Certificate},
    x509::X509Version,
};

use crate::support::*;

/// A request for everything that a requester must not decide.
fn greedy(key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "root");
    params.distinguished_name.push(DnType::OrganizationName, "system:masters");
    params.subject_alt_names = vec![
        SanType::DnsName(identity("admin", "bank").as_str().try_into().expect("a name")),
        SanType::DnsName("*.cluster.local".try_into().expect("a name")),
        SanType::IpAddress("10.1.0.1".parse().expect("an address")),
        SanType::URI("spiffe://root".try_into().expect("a name")),
    ];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any, ExtendedKeyUsagePurpose::CodeSigning];
    params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0])];
    params.serialize_request(key).expect("a request").der().to_vec()
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_secs()).expect("not that far")
}

#[test]
fn every_field_of_a_leaf_is_ours_but_its_key() {
    let ca = Ca::in_memory(Lifetimes::default()).expect("a CA");
    let key = KeyPair::generate().expect("a key");
    let now = SystemTime::now();
    let issued = ca.sign(&greedy(&key), &web(), now).expect("signed");
    let (rest, leaf) = X509Certificate::from_der(&issued.leaf).expect("DER");
    assert!(rest.is_empty());
    let (_, issuer) = X509Certificate::from_der(&issued.intermediates[0]).expect("DER");

    assert_eq!(leaf.version(), X509Version::V3);
    assert_eq!(leaf.subject().iter().count(), 0, "no subject");
    assert_eq!(leaf.issuer(), issuer.subject());
    assert_eq!(leaf.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(&key));
    leaf.verify_signature(Some(issuer.public_key())).expect("signed by the issuer");
    assert_eq!(leaf.signature_algorithm.algorithm, oid!(1.2.840.10045.4.3.2), "ECDSA with SHA-256");

    let serial = leaf.raw_serial();
    assert!(serial.len() == 16 && serial[0] & 0x80 == 0, "{serial:?}");
    assert_eq!(leaf.serial.to_str_radix(16), issued.serial);
    let other = ca.sign(&greedy(&key), &web(), now).expect("signed");
    assert_ne!(other.serial, issued.serial, "random");

    let validity = leaf.validity();
    assert_eq!(validity.not_before.timestamp(), seconds(now - Duration::from_secs(120)));
    assert_eq!(validity.not_after.timestamp(), seconds(now + Duration::from_secs(24 * 3600)));
    assert_eq!(validity.not_after.timestamp(), seconds(issued.not_after));

    assert_eq!((leaf.tbs_certificate.issuer_uid.clone(), leaf.tbs_certificate.subject_uid.clone()), (None, None));
    let mut seen = Vec::new();
    for extension in leaf.extensions() {
        let (name, critical) = match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                assert_eq!(names.general_names, [GeneralName::DNSName(web().as_str())]);
                ("names", true)
            }
            ParsedExtension::KeyUsage(usage) => {
                assert_eq!(usage.flags, 1, "digitalSignature and nothing else");
                ("usage", true)
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                let others = [usage.any, usage.code_signing, usage.email_protection, usage.time_stamping];
                assert!(usage.server_auth && usage.client_auth && others == [false; 4] && usage.other.is_empty());
                assert!(!usage.ocsp_signing);
                ("purpose", false)
            }
            ParsedExtension::BasicConstraints(constraints) => {
                assert_eq!((constraints.ca, constraints.path_len_constraint), (false, None));
                ("constraints", true)
            }
            ParsedExtension::SubjectKeyIdentifier(_) => ("key", false),
            ParsedExtension::AuthorityKeyIdentifier(authority) => {
                let subject = issuer.iter_extensions().find_map(|extension| match extension.parsed_extension() {
                    ParsedExtension::SubjectKeyIdentifier(subject) => Some(subject.0),
                    _ => None,
                });
                assert_eq!(authority.key_identifier.as_ref().map(|id| id.0), subject);
                ("authority", false)
            }
            other => panic!("the requester's: {other:?}"),
        };
        assert_eq!(extension.critical, critical, "{name}");
        seen.push(name);
    }
    seen.sort_unstable();
    assert_eq!(seen, ["authority", "constraints", "key", "names", "purpose", "usage"]);
}

#[test]
fn an_issuer_signs_leafs_only_and_a_leaf_ends_no_later_than_it() {
    let lifetimes = Lifetimes { issuer: Duration::from_secs(3600), ..Lifetimes::default() };
    let ca = Ca::in_memory(lifetimes).expect("a CA");
    let key = KeyPair::generate().expect("a key");
    let now = SystemTime::now();
    let issued = ca.sign(&greedy(&key), &web(), now).expect("signed");
    assert_eq!(issued.not_after, ca.issuer_not_after());
    let (_, issuer) = X509Certificate::from_der(&issued.intermediates[0]).expect("DER");
    let constraints = issuer.basic_constraints().expect("well formed").expect("there").value;
    assert_eq!((constraints.ca, constraints.path_len_constraint), (true, Some(0)));
    let usage = issuer.key_usage().expect("well formed").expect("there").value;
    assert!(usage.key_cert_sign() && !usage.digital_signature());

    let late = now + Duration::from_secs(3601);
    assert!(matches!(ca.sign(&greedy(&key), &web(), late), Err(SignFault::IssuerEnded)));
}

#[test]
fn an_identity_of_any_valid_length_can_be_certified() {
    let ca = Ca::in_memory(Lifetimes::default()).expect("a CA");
    let rest = web().as_str().len() - "web".len();
    let account: String = (1..=253 - rest).map(|at| if at % 64 == 0 { '.' } else { 'a' }).collect();
    let name = identity(&account, "shop");
    assert_eq!(name.as_str().len(), 253);
    let credentials = ca.credentials(&name, 1, SystemTime::now()).expect("signed and believed");
    assert_eq!(credentials.name(), &name);
}
