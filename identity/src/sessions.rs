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
    client::{
        ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue, WebPkiServerVerifier,
        danger::ServerCertVerifier,
    },
    pki_types::ServerName,
};

use crate::verify::ServerVerifier;

/// Tickets and verifier of one endpoint. Bounded.
pub struct EndpointSessions {
    most: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    tickets: VecDeque<Tls13ClientSessionValue>,
    group: Option<NamedGroup>,
    verifier: Option<(Weak<WebPkiServerVerifier>, Arc<ServerVerifier>)>,
}

impl EndpointSessions {
    /// Keeps at most so many tickets, the newest.
    pub fn new(most: usize) -> Self {
        Self { most, held: Mutex::default() }
    }

    /// The verifier for `peer` under `chain`. A ticket resumes only under the very verifier that made it, so it has to
    /// be the same one each time; under a new trust bundle, own certificate or peer the tickets go.
    pub(crate) fn verifier(
        &self,
        chain: &Arc<WebPkiServerVerifier>,
        peer: &IdentityName,
    ) -> Arc<dyn ServerCertVerifier> {
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
        let tickets = &mut self.held().tickets;
        tickets.push_back(ticket);
        if tickets.len() > self.most {
            tickets.pop_front();
        }
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.held().tickets.pop_back()
    }
}

impl fmt::Debug for EndpointSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointSessions").field("tickets", &self.held().tickets.len()).finish_non_exhaustive()
    }
}
