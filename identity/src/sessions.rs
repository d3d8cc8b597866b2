//! `EndpointSessions`: what the handshakes with one endpoint share. Replicas of a service share a name but not ticket
//! keys, so tickets are kept by endpoint; rustls' own cache keeps them by name, and far too few.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use hauberk_mesh::{IdentityName, Limits};
use rustls::{
    NamedGroup,
    client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue, danger::ServerCertVerifier},
    pki_types::ServerName,
};

use crate::verify::{ServerChain, ServerVerifier};

/// Tickets and verifier of one endpoint. Bounded.
pub struct EndpointSessions {
    held: Mutex<Held>,
}

/// The newest of what was put in, at most a number. Each is given out once, the newest first.
struct Newest<T> {
    most: usize,
    held: VecDeque<T>,
}

impl<T> Newest<T> {
    fn new(most: usize) -> Self {
        Self { most, held: VecDeque::new() }
    }

    fn put(&mut self, item: T) {
        self.held.push_back(item);
        if self.held.len() > self.most {
            self.held.pop_front();
        }
    }

    fn take(&mut self) -> Option<T> {
        self.held.pop_back()
    }

    fn clear(&mut self) {
        self.held.clear();
    }
}

struct Held {
    tickets: Newest<Tls13ClientSessionValue>,
    group: Option<NamedGroup>,
    verifier: Option<(Weak<ServerChain>, Arc<ServerVerifier>)>,
}

impl EndpointSessions {
    /// Keeps at most so many tickets, the newest.
    pub fn new(most: usize) -> Self {
        Self { held: Mutex::new(Held { tickets: Newest::new(most), group: None, verifier: None }) }
    }

    /// The verifier for `peer` under `chain`. A ticket resumes only under the very verifier that made it, so it has to
    /// be the same one each time; under a new trust bundle, own certificate or peer the tickets go.
    pub(crate) fn verifier(&self, chain: &Arc<ServerChain>, peer: &IdentityName) -> Arc<dyn ServerCertVerifier> {
        let mut held = self.held();
        if let Some((made_for, verifier)) = &held.verifier
            && Weak::ptr_eq(made_for, &Arc::downgrade(chain))
            && verifier.expected == *peer
        {
            return verifier.clone();
        }
        let verifier = Arc::new(ServerVerifier { chain: chain.clone(), expected: peer.clone() });
        held.verifier = Some((Arc::downgrade(chain), verifier.clone()));
        held.tickets.clear();
        verifier
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for EndpointSessions {
    /// As many as a proxy keeps unless told otherwise.
    fn default() -> Self {
        Self::new(Limits::default().tickets)
    }
}

impl ClientSessionStore for EndpointSessions {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.held().group = Some(group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.held().group
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.held().tickets.put(ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.held().tickets.take()
    }
}

impl fmt::Debug for EndpointSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointSessions").field("tickets", &self.held().tickets.held.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against the plainest model: a list that is cut at its front.
        #[test]
        fn the_store_gives_out_the_newest_each_once_and_never_more_than_it_may_hold(
            steps in proptest::collection::vec(0u8..8, 0..200), most in 0usize..10,
        ) {
            let (mut store, mut model) = (Newest::new(most), Vec::new());
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    0..=3 => {
                        store.put(number);
                        model.push(number);
                        model.drain(..model.len().saturating_sub(most));
                    }
                    4..=6 => prop_assert_eq!(store.take(), model.pop()),
                    _ => {
                        store.clear();
                        model.clear();
                    }
                }
                prop_assert!(store.held.len() <= most);
            }
            while let Some(expected) = model.pop() {
                prop_assert_eq!(store.take(), Some(expected));
            }
            prop_assert_eq!(store.take(), None);
        }
    }
}
