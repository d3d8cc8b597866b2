//! The certificate that this replica serves: the Secret's, taken over when it changes. Open connections go on.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use futures_util::StreamExt;
use hauberk_kubernetes::Latch;
use hauberk_mesh::WEBHOOK_SECRET;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher::watch_object},
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::sync::watch;
use tracing::{info, warn};

use super::held::Held;
use crate::metrics::Metrics;

/// What is served now.
#[derive(Debug, Default)]
pub(crate) struct Serving(RwLock<Option<Arc<CertifiedKey>>>);

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Serving {
    /// A configuration that serves whatever is current: TLS 1.3, which every API server since 1.19 speaks.
    pub(crate) fn config(self: &Arc<Self>) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().expect("the provider has the suites of TLS 1.3");
        let mut config = builder.with_no_client_auth().with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.into()
    }

    fn put(&self, held: &Held) -> Result<(), String> {
        let pem = held.leaf.chain.as_bytes();
        let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
        let key = PrivateKeyDer::from_pem_slice(held.leaf.key.as_bytes()).map_err(|error| error.to_string())?;
        let certified =
            CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(|e| e.to_string())?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(certified.into());
        Ok(())
    }
}

/// Follows the Secret for as long as it is awaited. What is broken or gone changes nothing: the last good one serves, and
/// the leader mends the Secret. `last` is the last good one; those who watch it are woken by every change.
pub(crate) async fn follow(
    client: Client,
    namespace: String,
    serving: Arc<Serving>,
    last: watch::Sender<Option<Arc<Held>>>,
    latch: Latch,
    metrics: Metrics,
) -> &'static str {
    let api = Api::<Secret>::namespaced(client, &namespace);
    let mut versions = watch_object(api, WEBHOOK_SECRET).default_backoff().boxed();
    while let Some(version) = versions.next().await {
        let data = match version {
            Ok(Some(Secret { data, .. })) => data.unwrap_or_default(),
            Ok(None) => {
                info!(secret = WEBHOOK_SECRET, "not there yet, or gone; the leader makes it");
                last.send_modify(|_| {});
                continue;
            }
            Err(error) => {
                warn!(%error, secret = WEBHOOK_SECRET, "cannot be watched; again");
                continue;
            }
        };
        let taken = Held::read(&data).map_err(|error| error.to_string()).and_then(|held| {
            serving.put(&held)?;
            Ok(held)
        });
        metrics.certificate(taken.is_ok());
        match taken {
            Ok(held) => {
                metrics.ends("leaf", held.leaf.not_after);
                metrics.ends("ca", held.ca.not_after);
                let left = held.leaf.not_after.duration_since(SystemTime::now()).unwrap_or_default().as_secs();
                let (next, old) = (held.next.is_some(), held.old.is_some());
                info!(seconds_left = left, next, old, "serving the Secret's certificate");
                last.send_replace(Some(held.into()));
                latch.open();
            }
            Err(why) => {
                warn!(why, secret = WEBHOOK_SECRET, "cannot be used; what was served before is served on");
                last.send_modify(|_| {});
            }
        }
    }
    "the watch of the Secret"
}
