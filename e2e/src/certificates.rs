//! The certificates and keys of one control plane: one authority for all, as good as a test needs.

use std::{fs, net::IpAddr, path::Path};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, SanType,
};

/// Names of the API server that its clients may use, beside its address.
const SERVER_NAMES: [&str; 4] =
    ["localhost", "kubernetes", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];

/// The authority, and where what it signs is written: `<name>.crt` and `<name>.key`.
pub(crate) struct Authority<'a> {
    dir: &'a Path,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl<'a> Authority<'a> {
    /// A new one; its certificate and key are `ca.crt` and `ca.key` in `dir`.
    pub(crate) fn new(dir: &'a Path) -> Result<Self> {
        let mut params = params("kubernetes-ca", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        write(dir, "ca", &pem, &key)?;
        Ok(Self { dir, pem, issuer: Issuer::new(params, key) })
    }

    /// Its certificate.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// The certificate of the API servers at `ip`.
    pub(crate) fn server(&self, name: &str, ip: IpAddr) -> Result<()> {
        let mut params = params("kube-apiserver", None);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![SanType::IpAddress(ip)];
        for server in SERVER_NAMES {
            params.subject_alt_names.push(SanType::DnsName(server.try_into()?));
        }
        self.sign(name, &params)
    }

    /// The certificate of the user `user`, in `group`.
    pub(crate) fn client(&self, name: &str, user: &str, group: Option<&str>) -> Result<()> {
        let mut params = params(user, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(name, &params)
    }

    /// The key that signs tokens of ServiceAccounts, `<name>.key`; RSA, as kubeadm has it.
    pub(crate) fn tokens(&self, name: &str) -> Result<()> {
        Ok(fs::write(self.dir.join(format!("{name}.key")), KeyPair::generate_for(&PKCS_RSA_SHA256)?.serialize_pem())?)
    }

    fn sign(&self, name: &str, params: &CertificateParams) -> Result<()> {
        let key = KeyPair::generate()?;
        write(self.dir, name, &params.signed_by(&key, &self.issuer)?.pem(), &key)
    }
}

fn params(name: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn write(dir: &Path, name: &str, certificate: &str, key: &KeyPair) -> Result<()> {
    fs::write(dir.join(format!("{name}.crt")), certificate)?;
    Ok(fs::write(dir.join(format!("{name}.key")), key.serialize_pem())?)
}
