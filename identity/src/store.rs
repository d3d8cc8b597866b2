//! `Store`: what this process holds now. One writer (the agent, or the identity server for itself), any number of
//! readers.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::{Credentials, TrustBundle};

/// The current [`Credentials`], if any, and the trust bundle. Clones see the same.
#[derive(Clone, Debug)]
pub struct Store(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    credentials: watch::Sender<Option<Arc<Credentials>>>,
    trust: watch::Sender<TrustBundle>,
    pending: Mutex<Option<String>>,
}

impl Store {
    pub(crate) fn empty(trust: TrustBundle, pending: String) -> Self {
        Self(Arc::new(Shared {
            credentials: watch::Sender::new(None),
            trust: watch::Sender::new(trust),
            pending: Mutex::new(Some(pending)),
        }))
    }

    /// A store that never changes.
    pub fn fixed(credentials: Arc<Credentials>) -> Self {
        let store = Self::empty(credentials.trust().clone(), String::new());
        store.put(credentials);
        store
    }

    /// What is held now; none before the first certificate, and none once the last has ended.
    pub fn current(&self) -> Option<Arc<Credentials>> {
        self.0.credentials.borrow().clone()
    }

    /// Follows what is held. Never ends while a `Store` is held.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Credentials>>> {
        self.0.credentials.subscribe()
    }

    /// Waits for a certificate.
    pub async fn ready(&self) -> Arc<Credentials> {
        let mut held = self.subscribe();
        let found = held.wait_for(Option::is_some).await.expect("self holds the sender");
        found.clone().expect("waited for")
    }

    /// Why there is no certificate: the last error, or what is being waited for. None if there is one.
    pub fn pending(&self) -> Option<String> {
        if self.current().is_some() {
            return None;
        }
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The trusted roots; there before the first certificate is.
    pub fn trust(&self) -> TrustBundle {
        self.0.trust.borrow().clone()
    }

    /// Replaces certificate and trust bundle by those of `credentials`.
    pub(crate) fn put(&self, credentials: Arc<Credentials>) {
        self.0.trust.send_replace(credentials.trust().clone());
        self.0.credentials.send_replace(Some(credentials));
    }

    /// Replaces the trust bundle while there is no certificate.
    pub(crate) fn put_trust(&self, trust: TrustBundle) {
        self.0.trust.send_replace(trust);
    }

    /// Takes an ended certificate away.
    pub(crate) fn take(&self) {
        self.0.credentials.send_replace(None);
    }

    pub(crate) fn set_pending(&self, why: String) {
        *self.0.pending.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }
}
