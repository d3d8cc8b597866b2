//! The pod's volume: key and chain in one file, so that they cannot be of two certificates, and the trust bundle in
//! another. A restarted container finds them there and needs nobody. What cannot be read is reported, then asked for
//! anew.

use std::{
    io,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::{InvalidBundle, InvalidKey, SecretKey, TrustBundle, fs, trust};

/// What stands in the volume and is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeFault {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    Key { path: PathBuf, source: InvalidKey },
    #[error("{path}: {source}")]
    Certificates { path: PathBuf, source: InvalidBundle },
    #[error("{0}: not what was written there")]
    Torn(PathBuf),
}

/// A directory of our own.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    credentials: PathBuf,
    trust: PathBuf,
    /// Of the roots that the process was given: a bundle that came to be under others is not ours to believe.
    pinned: String,
}

impl Volume {
    pub(crate) fn open(dir: &Path, pinned: &TrustBundle) -> io::Result<Self> {
        fs::make_dir(dir)?;
        let all: Vec<u8> = pinned.roots().iter().flat_map(|root| root.iter().copied()).collect();
        Ok(Self { credentials: dir.join("credentials.pem"), trust: dir.join("trust.pem"), pinned: hex(&all) })
    }

    /// Key and chain.
    pub(crate) fn credentials(&self) -> Result<Option<(SecretKey, Vec<CertificateDer<'static>>)>, VolumeFault> {
        let path = || self.credentials.clone();
        let io = |source| VolumeFault::Io { path: path(), source };
        let Some(text) = fs::read_if_there(&self.credentials).map_err(io)?.map(Zeroizing::new) else { return Ok(None) };
        let key = SecretKey::from_pem(&text).map_err(|source| VolumeFault::Key { path: path(), source })?;
        let chain_at = find(&text, CHAIN_STARTS).ok_or_else(|| VolumeFault::Torn(path()))?;
        let chain = trust::certificates(&text[chain_at..])
            .map_err(|source| VolumeFault::Certificates { path: path(), source })?;
        Ok(Some((key, chain)))
    }

    pub(crate) fn save_credentials(&self, key: &SecretKey, chain: &[CertificateDer<'_>]) -> io::Result<()> {
        let text = Zeroizing::new(format!("{}{}", *key.to_pem(), trust::to_pem(chain)));
        fs::replace(&self.credentials, text.as_bytes())
    }

    /// The last bundle that was adopted, if that was under the same pinned roots.
    pub(crate) fn trust(&self) -> Result<Option<TrustBundle>, VolumeFault> {
        let path = || self.trust.clone();
        let io = |source| VolumeFault::Io { path: path(), source };
        let Some(bytes) = fs::read_if_there(&self.trust).map_err(io)? else { return Ok(None) };
        let torn = || VolumeFault::Torn(path());
        let text = str::from_utf8(&bytes).map_err(|_| torn())?;
        let (head, roots) = text.split_once('\n').ok_or_else(torn)?;
        let (generation, pinned) =
            head.strip_prefix(TRUST_HEAD).and_then(|rest| rest.split_once(' ')).ok_or_else(torn)?;
        let generation = generation.parse().map_err(|_| torn())?;
        let bundle = TrustBundle::from_pem(generation, roots.as_bytes())
            .map_err(|source| VolumeFault::Certificates { path: path(), source })?;
        Ok((pinned == self.pinned).then_some(bundle))
    }

    pub(crate) fn save_trust(&self, bundle: &TrustBundle) -> io::Result<()> {
        let text = format!("{TRUST_HEAD}{} {}\n{}", bundle.generation(), self.pinned, bundle.to_pem());
        fs::replace(&self.trust, text.as_bytes())
    }
}

/// First line of the bundle's file: the generation, and the digest of the pinned roots.
const TRUST_HEAD: &str = "# hauberk trust bundle, generation and pinned roots: ";
const CHAIN_STARTS: &[u8] = b"-----BEGIN CERTIFICATE-----";

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

/// SHA-256, hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
