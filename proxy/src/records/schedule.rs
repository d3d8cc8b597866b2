//! `Schedule`: the secrets of an established connection, and the keys that follow from them (RFC 8446, 7.2 and 7.3). rustls
//! would keep a KiB for that, the peer's chain among it, and gives its secrets to nobody but a key log: so each handshake
//! has a key log of its own.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

use rustls::{CommonState, Error, KeyLog, Tls13CipherSuite, crypto::tls13::OkmBlock};
use zeroize::Zeroizing;

use super::{RecordError, keys::Keys};

const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

/// As long as the hash of the suite. On the heap: what moves would leave copies behind.
type Secret = Zeroizing<Box<[u8]>>;

/// What a handshake says of its secrets.
#[derive(Default)]
pub(super) struct Learned(Mutex<(Option<Secret>, Option<Secret>)>);

impl Learned {
    /// The client's first secret for data, and the server's.
    pub(super) fn secrets(&self) -> Result<(Secret, Secret), RecordError> {
        let mut learned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::take(&mut *learned) {
            (Some(client), Some(server)) => Ok((client, server)),
            _ => Err(Error::General("the handshake is not over".to_owned()).into()),
        }
    }
}

impl KeyLog for Learned {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        let mut learned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match label {
            CLIENT => learned.0 = Some(Secret::new(secret.into())),
            SERVER => learned.1 = Some(Secret::new(secret.into())),
            _ => {}
        }
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, CLIENT | SERVER)
    }
}

impl fmt::Debug for Learned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Learned(redacted)")
    }
}

/// The secrets of both directions.
pub(super) struct Schedule {
    suite: &'static Tls13CipherSuite,
    sealing: Secret,
    opening: Secret,
}

impl Schedule {
    pub(super) fn new(common: &CommonState, sealing: Secret, opening: Secret) -> Result<Self, RecordError> {
        let suite = common.negotiated_cipher_suite().and_then(|suite| suite.tls13());
        let suite = suite.ok_or(Error::General("the record layer is for TLS 1.3".to_owned()))?;
        Ok(Self { suite, sealing, opening })
    }

    /// What follows the keys that we seal with.
    pub(super) fn next_sealing(&mut self, keys: &Keys) -> Result<Keys, RecordError> {
        next(self.suite, &mut self.sealing, keys)
    }

    /// What follows the keys that we open with.
    pub(super) fn next_opening(&mut self, keys: &Keys) -> Result<Keys, RecordError> {
        next(self.suite, &mut self.opening, keys)
    }
}

fn next(suite: &'static Tls13CipherSuite, secret: &mut Secret, keys: &Keys) -> Result<Keys, RecordError> {
    let expander = suite.hkdf_provider.expander_for_okm(&OkmBlock::new(secret));
    let next = with_label(b"traffic upd", expander.hash_len(), |info| expander.expand_block(info));
    let expander = suite.hkdf_provider.expander_for_okm(&next);
    *secret = Secret::new(next.as_ref().into());
    keys.next(|label, out| {
        let len = out.len();
        with_label(label, len, |info| expander.expand_slice(info, out)).expect("no longer than a few hashes");
    })
}

/// HKDF-Expand-Label without a context: calls `expand` with what stands for the label.
fn with_label<T>(label: &[u8], len: usize, expand: impl FnOnce(&[&[u8]]) -> T) -> T {
    const PREFIX: &[u8] = b"tls13 ";
    let len = u16::try_from(len).expect("a key or a hash").to_be_bytes();
    let label_len = u8::try_from(PREFIX.len() + label.len()).expect("a short label");
    expand(&[&len, &[label_len], PREFIX, label, &[0]])
}
