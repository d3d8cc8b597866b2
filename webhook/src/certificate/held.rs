//! What the Secret holds: a CA and a leaf of it, and during a rotation the CA that comes or the one that goes. Read from
//! the Secret's bytes and written back; whether it fits together is checked here. No I/O.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

/// By how much the API servers' clocks may be behind ours.
const SKEW: Duration = Duration::from_secs(120);

/// The Secret's keys.
mod keys {
    pub(super) const CA: &str = "ca.crt";
    pub(super) const CA_KEY: &str = "ca.key";
    pub(super) const LEAF: &str = "tls.crt";
    pub(super) const LEAF_KEY: &str = "tls.key";
    pub(super) const NEXT: &str = "next-ca.crt";
    pub(super) const NEXT_KEY: &str = "next-ca.key";
    pub(super) const NEXT_CROSS: &str = "next-ca-cross.crt";
    pub(super) const PUBLISHED: &str = "next-ca-published";
    pub(super) const OLD: &str = "old-ca.crt";
    pub(super) const OLD_UNTIL: &str = "old-ca-until";
    pub(super) const CROSS: &str = "ca-cross.crt";
}

/// Why a Secret's data is of no use, or a certificate cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CertificateFault {
    /// A key is missing.
    #[error("the Secret has no {0}")]
    Missing(&'static str),
    /// A value cannot be read.
    #[error("{key} of the Secret: {why}")]
    Unreadable { key: &'static str, why: String },
    /// A certificate is not of its key.
    #[error("{0} of the Secret is not the certificate of its key")]
    OtherKey(&'static str),
    /// The library.
    #[error("a certificate cannot be made: {0}")]
    Make(String),
}

/// A CA with its key.
#[derive(Clone)]
pub(crate) struct Authority {
    pub(crate) certificate: String,
    key: Zeroizing<String>,
    pub(crate) not_after: SystemTime,
    pub(crate) life: Duration,
}

/// A server's certificate with its key.
#[derive(Clone)]
pub(crate) struct Leaf {
    /// The leaf, and after it what leads to a CA that goes.
    pub(crate) chain: String,
    pub(crate) key: Zeroizing<String>,
    pub(crate) not_after: SystemTime,
    pub(crate) life: Duration,
    names: Vec<String>,
}

/// The CA that comes.
#[derive(Debug, Clone)]
pub(crate) struct Next {
    pub(crate) ca: Authority,
    /// Its certificate by the CA of now: an API server that has not heard of it verifies what it signed nevertheless.
    cross: String,
    /// When every entry of the registration held it.
    pub(crate) published: Option<SystemTime>,
}

/// The CA that goes; its key is gone.
#[derive(Debug, Clone)]
pub(crate) struct Old {
    certificate: String,
    cross: String,
    /// When nothing that it signed is valid any more.
    pub(crate) until: SystemTime,
}

/// All of it.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) ca: Authority,
    pub(crate) leaf: Leaf,
    pub(crate) next: Option<Next>,
    pub(crate) old: Option<Old>,
}

/// What lasts how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of a CA.
    pub ca: Duration,
    /// Of a leaf.
    pub leaf: Duration,
    /// From a bundle in the registration to API servers that use it.
    pub settle: Duration,
}

impl Lifetimes {
    /// A CA that goes is believed for as long as a leaf lives after its successor was adopted: both must be over well
    /// before the successor's own successor is due.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        if self.leaf < Duration::from_secs(2) || self.ca > Duration::from_secs(100 * 365 * 24 * 3600) {
            return Err("the certificate must live for 2s or more, its CA for at most 876000h".to_owned());
        }
        if self.ca < 4 * self.leaf {
            return Err("the CA must live four times as long as its certificate, or longer".to_owned());
        }
        if 10 * self.settle > self.ca {
            return Err("the time for API servers must be a tenth of the CA's life, or shorter".to_owned());
        }
        Ok(())
    }
}

type Data = BTreeMap<String, ByteString>;
type Result<T> = std::result::Result<T, CertificateFault>;

impl Held {
    /// A first CA and its leaf.
    pub(crate) fn fresh(names: &[String], lifetimes: &Lifetimes, now: SystemTime) -> Result<Self> {
        let ca = Authority::make(lifetimes.ca, now, None)?.0;
        let leaf = ca.leaf(names, lifetimes.leaf, now, "")?;
        Ok(Self { ca, leaf, next: None, old: None })
    }

    /// With a new leaf of the CA of now.
    pub(crate) fn with_leaf(mut self, names: &[String], lifetimes: &Lifetimes, now: SystemTime) -> Result<Self> {
        let cross = self.old.as_ref().map_or("", |old| &old.cross);
        self.leaf = self.ca.leaf(names, lifetimes.leaf, now, cross)?;
        Ok(self)
    }

    /// With a CA that is to follow.
    pub(crate) fn with_next(mut self, lifetimes: &Lifetimes, now: SystemTime) -> Result<Self> {
        let (ca, cross) = Authority::make(lifetimes.ca, now, Some(&self.ca))?;
        self.next = Some(Next { ca, cross, published: None });
        Ok(self)
    }

    /// The CA that comes signs from now on; the one of now goes once nothing of it is valid.
    pub(crate) fn adopt(self, names: &[String], lifetimes: &Lifetimes, now: SystemTime) -> Result<Self> {
        let Some(next) = self.next else { return Ok(self) };
        let until = self.leaf.not_after + lifetimes.settle;
        let leaf = next.ca.leaf(names, lifetimes.leaf, now, &next.cross)?;
        let old = Old { certificate: self.ca.certificate, cross: next.cross, until };
        Ok(Self { ca: next.ca, leaf, next: None, old: Some(old) })
    }

    /// What API servers shall believe, oldest first: the same before and after an adoption, which so needs no patch.
    pub(crate) fn bundle(&self) -> String {
        let next = self.next.as_ref().map(|next| next.ca.certificate.as_str());
        let old = self.old.as_ref().map(|old| old.certificate.as_str());
        [old, Some(self.ca.certificate.as_str()), next].into_iter().flatten().collect()
    }

    /// Whether the leaf is for exactly these names.
    pub(crate) fn is_for(&self, names: &[String]) -> bool {
        let mut wanted = names.to_vec();
        wanted.sort_unstable();
        wanted == self.leaf.names
    }

    /// Reads a Secret's data.
    pub(crate) fn read(data: &Data) -> Result<Self> {
        let read = |key| text(data, key)?.ok_or(CertificateFault::Missing(key));
        let ca = Authority::read(&read(keys::CA)?, &read(keys::CA_KEY)?, keys::CA)?;
        let leaf = Leaf::read(&read(keys::LEAF)?, &read(keys::LEAF_KEY)?)?;
        let next = match text(data, keys::NEXT)? {
            None => None,
            Some(certificate) => Some(Next {
                ca: Authority::read(&certificate, &read(keys::NEXT_KEY)?, keys::NEXT)?,
                cross: read(keys::NEXT_CROSS)?.to_string(),
                published: time(data, keys::PUBLISHED)?,
            }),
        };
        let old = match text(data, keys::OLD)? {
            None => None,
            Some(certificate) => {
                Facts::read(&certificate, keys::OLD)?;
                let until = time(data, keys::OLD_UNTIL)?.ok_or(CertificateFault::Missing(keys::OLD_UNTIL))?;
                Some(Old { certificate: certificate.to_string(), cross: read(keys::CROSS)?.to_string(), until })
            }
        };
        Ok(Self { ca, leaf, next, old })
    }

    /// What [`Held::read`] reads.
    pub(crate) fn data(&self) -> Data {
        let mut texts = vec![
            (keys::CA, self.ca.certificate.clone()),
            (keys::CA_KEY, self.ca.key.to_string()),
            (keys::LEAF, self.leaf.chain.clone()),
            (keys::LEAF_KEY, self.leaf.key.to_string()),
        ];
        if let Some(Next { ca, cross, published }) = &self.next {
            texts.push((keys::NEXT, ca.certificate.clone()));
            texts.push((keys::NEXT_KEY, ca.key.to_string()));
            texts.push((keys::NEXT_CROSS, cross.clone()));
            texts.extend(published.map(|at| (keys::PUBLISHED, written(at))));
        }
        if let Some(Old { certificate, cross, until }) = &self.old {
            texts.push((keys::OLD, certificate.clone()));
            texts.push((keys::CROSS, cross.clone()));
            texts.push((keys::OLD_UNTIL, written(*until)));
        }
        texts.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect()
    }
}

impl Authority {
    /// A new CA; and its certificate by `older`, empty where there is none.
    fn make(life: Duration, now: SystemTime, older: Option<&Self>) -> Result<(Self, String)> {
        let key = KeyPair::generate().map_err(make)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // A name of its own: two CAs of one name in a bundle would be taken for each other.
        let name = format!("hauberk-webhook {:016x}", rand::random::<u64>());
        params.distinguished_name.push(DnType::CommonName, name);
        // One below it: the next CA, cross-signed.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - SKEW).into();
        params.not_after = (now + life).into();
        let certificate = params.self_signed(&key).map_err(make)?.pem();
        let cross = match older {
            None => String::new(),
            Some(older) => {
                params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
                params.use_authority_key_identifier_extension = true;
                params.not_after = (now + life).min(older.not_after).into();
                params.signed_by(&key, &older.issuer()?).map_err(make)?.pem()
            }
        };
        Ok((Self::read(&certificate, &Zeroizing::new(key.serialize_pem()), keys::CA)?, cross))
    }

    fn leaf(&self, names: &[String], life: Duration, now: SystemTime, cross: &str) -> Result<Leaf> {
        let key = KeyPair::generate().map_err(make)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names.iter().map(|name| subject(name)).collect::<Result<_>>()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - SKEW).into();
        params.not_after = (now + life).min(self.not_after).into();
        let leaf = params.signed_by(&key, &self.issuer()?).map_err(make)?.pem();
        Leaf::read(&format!("{leaf}{cross}"), &Zeroizing::new(key.serialize_pem()))
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>> {
        let key = KeyPair::from_pem(&self.key).map_err(make)?;
        Issuer::from_ca_cert_pem(&self.certificate, key).map_err(make)
    }

    fn read(certificate: &str, key: &Zeroizing<String>, name: &'static str) -> Result<Self> {
        let facts = Facts::read(certificate, name)?;
        facts.of_key(key, name)?;
        Ok(Self { certificate: certificate.to_owned(), key: key.clone(), not_after: facts.not_after, life: facts.life })
    }
}

impl Leaf {
    fn read(chain: &str, key: &Zeroizing<String>) -> Result<Self> {
        let facts = Facts::read(chain, keys::LEAF)?;
        facts.of_key(key, keys::LEAF)?;
        let Facts { not_after, life, names, .. } = facts;
        Ok(Self { chain: chain.to_owned(), key: key.clone(), not_after, life, names })
    }
}

/// What is read of a certificate.
struct Facts {
    public_key: Vec<u8>,
    not_after: SystemTime,
    /// Without the skew.
    life: Duration,
    /// Sorted.
    names: Vec<String>,
}

impl Facts {
    /// Of the first certificate of a PEM.
    fn read(pem: &str, key: &'static str) -> Result<Self> {
        let unreadable = |why: String| CertificateFault::Unreadable { key, why };
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| unreadable(error.to_string()))?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| unreadable(error.to_string()))?;
        let seconds = |time: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time).unwrap_or_default());
        let validity = parsed.validity();
        let (from, not_after) = (seconds(validity.not_before.timestamp()), seconds(validity.not_after.timestamp()));
        let alternative = parsed.subject_alternative_name().map_err(|error| unreadable(error.to_string()))?;
        let mut names: Vec<_> =
            alternative.iter().flat_map(|extension| &extension.value.general_names).filter_map(name_text).collect();
        names.sort_unstable();
        Ok(Self {
            public_key: parsed.public_key().subject_public_key.data.to_vec(),
            not_after,
            life: not_after.duration_since(from + SKEW).unwrap_or_default(),
            names,
        })
    }

    fn of_key(&self, key: &Zeroizing<String>, name: &'static str) -> Result<()> {
        let unreadable = |error: rcgen::Error| CertificateFault::Unreadable { key: name, why: error.to_string() };
        let key = KeyPair::from_pem(key).map_err(unreadable)?;
        if key.public_key_raw() == self.public_key { Ok(()) } else { Err(CertificateFault::OtherKey(name)) }
    }
}

fn subject(name: &str) -> Result<SanType> {
    match name.parse::<IpAddr>() {
        Ok(ip) => Ok(SanType::IpAddress(ip)),
        Err(_) => Ok(SanType::DnsName(name.try_into().map_err(make)?)),
    }
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
        },
        _ => None,
    }
}

fn text(data: &Data, key: &'static str) -> Result<Option<Zeroizing<String>>> {
    let unreadable = |_| CertificateFault::Unreadable { key, why: "not text".to_owned() };
    let Some(bytes) = data.get(key) else { return Ok(None) };
    Ok(Some(Zeroizing::new(String::from_utf8(bytes.0.clone()).map_err(unreadable)?)))
}

fn time(data: &Data, key: &'static str) -> Result<Option<SystemTime>> {
    let Some(text) = text(data, key)? else { return Ok(None) };
    let unreadable = |error: jiff::Error| CertificateFault::Unreadable { key, why: error.to_string() };
    Ok(Some(text.parse::<Timestamp>().map_err(unreadable)?.into()))
}

fn written(at: SystemTime) -> String {
    Timestamp::try_from(at).unwrap_or(Timestamp::MAX).to_string()
}

fn make(error: rcgen::Error) -> CertificateFault {
    CertificateFault::Make(error.to_string())
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf").field("not_after", &self.not_after).field("names", &self.names).finish_non_exhaustive()
    }
}
