//! Asking for a certificate, in time, with a new key each time.

use std::{io, path::PathBuf, sync::Arc, time::SystemTime};

use linkerd2_proxy_api::identity::{CertifyRequest, CertifyResponse, identity_client::IdentityClient};
use rustls::pki_types::CertificateDer;
use tokio::{sync::watch, time::timeout};
use tonic::transport::Channel;
use tracing::{info, warn};

use super::{Agent, chain, until};
use crate::{Credentials, InvalidCredentials, InvalidKey, SecretKey, fs, renew_at};

/// A leaf and a few issuers have some 3 KB.
const LARGEST_ANSWER: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("token {path}: {source}")]
    Token { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Key(#[from] InvalidKey),
    #[error("the identity server did not answer in time")]
    Timeout,
    #[error("the identity server: {}", describe(.0))]
    Answer(tonic::Status),
    #[error("the identity server's answer: {0}")]
    Invalid(#[from] InvalidCredentials),
}

impl Agent {
    /// Never ends.
    pub(super) async fn keep_certified(&self, channel: &Channel) {
        let mut held = self.store.subscribe();
        let (mut generation, mut failures) = (0, 0);
        let mut due = SystemTime::now();
        if let Some(found) = self.store.current() {
            generation = found.generation();
            // When it was made is not known; its start is a little before.
            due = renew_at(found.not_before(), found.not_after(), rand::random());
        }
        loop {
            self.wait_until_due(due, &mut held).await;
            match self.certify(channel, generation + 1).await {
                Ok(credentials) => {
                    (generation, failures) = (generation + 1, 0);
                    due = renew_at(SystemTime::now(), credentials.not_after(), rand::random());
                    // However short a life it has, never as fast as the machine can.
                    tokio::time::sleep(self.config.retry_first / 2).await;
                }
                Err(fault) => {
                    failures += 1;
                    warn!(identity = %self.config.identity, server = %self.config.server, failures, %fault, "no certificate");
                    self.store.set_pending(fault.to_string());
                    self.pause(failures).await;
                }
            }
        }
    }

    /// Until `due`, or until nobody would believe the certificate that is held: its root may have been dropped.
    async fn wait_until_due(&self, due: SystemTime, held: &mut watch::Receiver<Option<Arc<Credentials>>>) {
        loop {
            let current = held.borrow_and_update().clone();
            if current.is_none_or(|credentials| credentials.verify(SystemTime::now()).is_err()) {
                return;
            }
            tokio::select! {
                () = until(due) => return,
                _ = held.changed() => {}
            }
        }
    }

    async fn certify(&self, channel: &Channel, generation: u64) -> Result<Arc<Credentials>, Fault> {
        let identity = &self.config.identity;
        let path = &self.config.token_file;
        let token = fs::read(path).map_err(|source| Fault::Token { path: path.clone(), source })?;
        let key = SecretKey::generate()?;
        let request = CertifyRequest {
            identity: identity.to_string(),
            token,
            certificate_signing_request: key.request(identity)?,
        };
        let mut client = IdentityClient::new(channel.clone()).max_decoding_message_size(LARGEST_ANSWER);
        let answer = timeout(self.config.answer, client.certify(request)).await.map_err(|_| Fault::Timeout)?;
        let chain = certificates(answer.map_err(Fault::Answer)?.into_inner());

        let (trust, now) = (self.store.trust(), SystemTime::now());
        let credentials = Credentials::new(identity, &key, chain, &trust, generation, now)?;
        // Kept before it is shown: whoever is killed from now on finds it again.
        self.save(key, &credentials).await;
        // The bundle may have changed meanwhile; from here to `put` it cannot.
        let credentials = Arc::new(credentials.with_trust(&self.store.trust())?);
        self.store.put(credentials.clone());
        info!(%identity, serial = credentials.serial(), generation, "certificate");
        Ok(credentials)
    }

    async fn save(&self, key: SecretKey, credentials: &Credentials) {
        let Some(volume) = self.volume() else { return };
        let chain = credentials.chain().to_vec();
        match tokio::task::spawn_blocking(move || volume.save_credentials(&key, &chain)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the certificate cannot be kept for a restart"),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

fn certificates(answer: CertifyResponse) -> Vec<CertificateDer<'static>> {
    let all = std::iter::once(answer.leaf_certificate).chain(answer.intermediate_certificates);
    all.map(CertificateDer::from).collect()
}

/// Code, message, and where it is about the connection, what lies under it.
fn describe(status: &tonic::Status) -> String {
    let cause = std::error::Error::source(status).map(|cause| format!(": {}", chain(cause))).unwrap_or_default();
    format!("{:?}: {}{cause}", status.code(), status.message())
}
