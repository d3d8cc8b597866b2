//! Following the trust bundle. Believed only over a connection whose server proved itself under a root that is trusted
//! already; generations only rise.

use std::time::Instant;

use hauberk_api::trust::{Bundle, WatchRequest, trust_client::TrustClient};
use rustls::pki_types::CertificateDer;
use tokio::{sync::watch, time::timeout};
use tokio_stream::wrappers::WatchStream;
use tonic::{Status, transport::Channel};
use tracing::{debug, info, warn};

use super::{Agent, chain};
use crate::TrustBundle;

/// 16 roots of 8 KB, and room.
const LARGEST_BUNDLE: usize = 256 * 1024;

impl Agent {
    /// Never ends.
    pub(super) async fn follow_trust(&self, channel: &Channel) {
        let mut failures = 0u32;
        loop {
            let opened = Instant::now();
            let ended = self.watch_trust(channel).await;
            // A stream that lasted is no failure; one that a server ends at once is, however politely.
            failures = if opened.elapsed() > self.config.retry_most { 1 } else { failures.saturating_add(1) };
            match ended {
                Ok(()) => debug!("the stream of trust bundles ended"),
                Err(status) => debug!(error = chain(&status), failures, "no stream of trust bundles"),
            }
            self.pause(failures).await;
        }
    }

    async fn watch_trust(&self, channel: &Channel) -> Result<(), Status> {
        let adopted = |generation| WatchRequest { adopted_generation: generation };
        let said = watch::Sender::new(adopted(self.store.trust().generation()));
        let mut client = TrustClient::new(channel.clone()).max_decoding_message_size(LARGEST_BUNDLE);
        let opened = timeout(self.config.answer, client.watch(WatchStream::new(said.subscribe()))).await;
        let late = |_| Status::deadline_exceeded("the identity server did not answer in time");
        let mut bundles = opened.map_err(late)??.into_inner();
        while let Some(bundle) = bundles.message().await? {
            if let Some(generation) = self.adopt(bundle).await {
                said.send_replace(adopted(generation));
            }
        }
        Ok(())
    }

    async fn adopt(&self, bundle: Bundle) -> Option<u64> {
        let held = self.store.trust().generation();
        if bundle.generation <= held {
            debug!(held, offered = bundle.generation, "no newer trust bundle");
            return None;
        }
        let roots = bundle.roots.into_iter().map(CertificateDer::from).collect();
        let bundle = match TrustBundle::new(bundle.generation, roots) {
            Ok(bundle) => bundle,
            Err(error) => {
                warn!(%error, "the identity server's trust bundle is of no use; keeping the last");
                return None;
            }
        };
        self.put_trust(&bundle);
        info!(generation = bundle.generation(), roots = bundle.roots().len(), "trust bundle adopted");
        let generation = bundle.generation();
        self.save_trust(bundle).await;
        Some(generation)
    }

    fn put_trust(&self, bundle: &TrustBundle) {
        match self.store.current().map(|held| held.with_trust(bundle)) {
            None => self.store.put_trust(bundle.clone()),
            Some(Ok(credentials)) => self.store.put(credentials.into()),
            Some(Err(error)) => warn!(%error, "the trust bundle cannot be used with the certificate; keeping the last"),
        }
    }

    async fn save_trust(&self, bundle: TrustBundle) {
        let Some(volume) = self.volume() else { return };
        match tokio::task::spawn_blocking(move || volume.save_trust(&bundle)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the trust bundle cannot be kept for a restart"),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}
