//! What a chain says, and whether it is as it must be. Pure.

use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use hauberk_identity::TrustBundle;
use hauberk_mesh::IdentityName;
use rustls::{
    CertificateError, Error, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde_json::{Value, json};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
    time::ASN1Time,
};

/// A leaf, for people.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    identity: String,
    not_before: String,
    not_after: String,
    serial: String,
    issuer: String,
    /// What is wrong with it.
    pub(crate) fault: Option<String>,
}

/// Reads the chain's leaf, and judges the chain as a peer would, now.
pub(crate) fn judge(
    chain: &[CertificateDer<'_>],
    roots: &TrustBundle,
    expected: &IdentityName,
    now: UnixTime,
) -> Result<Certificate> {
    let Some((leaf, intermediates)) = chain.split_first() else { bail!("the proxy showed no certificate") };
    let parsed =
        X509Certificate::from_der(leaf).map_err(|error| anyhow!("the proxy's certificate cannot be read: {error}"))?.1;
    let names = parsed.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| names.value.general_names.iter());
    let names: Vec<_> =
        names.filter_map(|name| if let GeneralName::DNSName(name) = name { Some(*name) } else { None }).collect();
    let time = |time: ASN1Time| {
        jiff::Timestamp::from_second(time.timestamp()).map_or_else(|_| time.to_string(), |stamp| stamp.to_string())
    };
    Ok(Certificate {
        identity: names.join(", "),
        not_before: time(parsed.validity().not_before),
        not_after: time(parsed.validity().not_after),
        serial: parsed.raw_serial_as_string(),
        issuer: common_name(&parsed),
        fault: fault(leaf, intermediates, roots, expected, now).err(),
    })
}

fn common_name(certificate: &X509Certificate<'_>) -> String {
    let name = certificate.issuer().iter_common_name().next().and_then(|name| name.as_str().ok());
    name.map_or_else(|| certificate.issuer().to_string(), str::to_owned)
}

fn fault(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &TrustBundle,
    expected: &IdentityName,
    now: UnixTime,
) -> Result<(), String> {
    let mut anchors = RootCertStore::empty();
    for root in roots.roots() {
        anchors.add(root.clone()).map_err(|error| error.to_string())?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(anchors), provider)
        .build()
        .map_err(|error| error.to_string())?;
    let name = ServerName::try_from(expected.to_string()).map_err(|error| error.to_string())?;
    match verifier.verify_server_cert(leaf, intermediates, &name, &[], now) {
        Ok(_) => Ok(()),
        Err(Error::InvalidCertificate(fault)) => Err(match fault {
            CertificateError::UnknownIssuer => "leads to none of the mesh's trust roots".to_owned(),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired".to_owned(),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "not valid yet".to_owned(),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("not of this pod, which is {expected}")
            }
            other => format!("not valid: {other:?}"),
        }),
        Err(other) => Err(other.to_string()),
    }
}

impl Certificate {
    /// For tables.
    pub(crate) fn cells(&self) -> [String; 6] {
        let state = self.fault.as_deref().unwrap_or("trusted");
        [&self.identity, &self.not_before, &self.not_after, &self.serial, &self.issuer, state].map(str::to_owned)
    }

    /// For programs.
    pub(crate) fn value(&self) -> Value {
        json!({
            "identity": self.identity,
            "notBefore": self.not_before,
            "notAfter": self.not_after,
            "serial": self.serial,
            "issuer": self.issuer,
            "trusted": self.fault.is_none(),
            "fault": self.fault,
        })
    }
}
