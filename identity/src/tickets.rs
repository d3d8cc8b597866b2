//! Session tickets of the mesh port. rustls' own live for 12 hours; ours for an hour at most, and never beyond the
//! certificate that they were given under. Keys are this process's alone and rotate.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand::{SecureRandom as _, SystemRandom},
};
use rustls::{crypto::GetRandomFailed, server::ProducesTickets, ticketer::TicketRotator};
use zeroize::Zeroizing;

/// How long a ticket is good.
pub(crate) const TICKET_LIFE: Duration = Duration::from_secs(3600);
/// A ticket holds the client's chain, some 1.5 KB; whatever is far above is not ours.
const LARGEST_TICKET: usize = 16 * 1024;
const STAMP: usize = size_of::<u64>();

/// Seals tickets with the time at which they end.
#[derive(Debug)]
pub(crate) struct Ticketer {
    rotator: TicketRotator,
    not_after: SystemTime,
}

impl Ticketer {
    /// Tickets for a server whose certificate ends at `not_after`.
    pub(crate) fn new(not_after: SystemTime) -> Result<Self, rustls::Error> {
        // The rotator keeps a key for twice this long.
        let rotation = (TICKET_LIFE.as_secs() / 2) as u32;
        Ok(Self { rotator: TicketRotator::new(rotation, || Ok(Box::new(Sealer::new()?)))?, not_after })
    }

    fn seal(&self, message: &[u8], now: SystemTime) -> Option<Vec<u8>> {
        let ends = seconds(now) + self.life_left(now);
        let mut stamped = Zeroizing::new(Vec::with_capacity(STAMP + message.len()));
        stamped.extend_from_slice(&ends.to_be_bytes());
        stamped.extend_from_slice(message);
        (ends > seconds(now)).then(|| self.rotator.encrypt(&stamped)).flatten()
    }

    /// The rotator rolls its keys only when used, so that an idle server would take one old ticket: the time inside
    /// the ticket decides.
    fn open(&self, ticket: &[u8], now: SystemTime) -> Option<Vec<u8>> {
        if ticket.len() > LARGEST_TICKET {
            return None;
        }
        let opened = Zeroizing::new(self.rotator.decrypt(ticket)?);
        let (ends, message) = opened.split_first_chunk::<STAMP>()?;
        (seconds(now) < u64::from_be_bytes(*ends)).then(|| message.to_vec())
    }

    fn life_left(&self, now: SystemTime) -> u64 {
        let left = self.not_after.duration_since(now).unwrap_or_default();
        left.min(TICKET_LIFE).as_secs()
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.life_left(SystemTime::now()) as u32
    }

    fn encrypt(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.seal(message, SystemTime::now())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.open(ticket, SystemTime::now())
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// One key: nonce, then AES-256-GCM.
struct Sealer(RandomizedNonceKey);

impl Sealer {
    fn new() -> Result<Self, GetRandomFailed> {
        let mut key = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(&mut *key).map_err(|_| GetRandomFailed)?;
        RandomizedNonceKey::new(&AES_256_GCM, &*key).map(Self).map_err(|_| GetRandomFailed)
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(redacted)")
    }
}

impl ProducesTickets for Sealer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        TICKET_LIFE.as_secs() as u32
    }

    fn encrypt(&self, message: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = message.to_vec();
        let nonce = self.0.seal_in_place_append_tag(Aad::empty(), &mut sealed).ok()?;
        Some([&nonce.as_ref()[..], &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = ticket.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed = sealed.to_vec();
        let opened = self.0.open_in_place(Nonce::from(nonce), Aad::empty(), &mut sealed).ok()?.len();
        sealed.truncate(opened);
        Some(sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn after(seconds: u64) -> SystemTime {
        NOW + Duration::from_secs(seconds)
    }

    #[test]
    fn a_ticket_is_good_for_an_hour() {
        let ticketer = Ticketer::new(after(24 * 3600)).expect("a ticketer");
        let ticket = ticketer.seal(b"session", NOW).expect("sealed");
        assert_eq!(ticketer.open(&ticket, after(3599)).as_deref(), Some(&b"session"[..]));
        assert_eq!(ticketer.open(&ticket, after(3600)), None);
    }

    #[test]
    fn a_ticket_does_not_outlive_the_certificate() {
        let ticketer = Ticketer::new(after(60)).expect("a ticketer");
        let ticket = ticketer.seal(b"session", NOW).expect("sealed");
        assert!(ticketer.open(&ticket, after(59)).is_some());
        assert_eq!(ticketer.open(&ticket, after(60)), None);
        assert_eq!(ticketer.seal(b"session", after(60)), None);
        assert_eq!(ticketer.lifetime(), 0, "the certificate ended long ago");
    }

    #[test]
    fn a_ticket_of_other_keys_is_refused() {
        let [ours, theirs] = [(); 2].map(|()| Ticketer::new(after(60)).expect("a ticketer"));
        let ticket = ours.seal(b"session", NOW).expect("sealed");
        assert_eq!(theirs.open(&ticket, NOW), None);
    }

    proptest! {
        #[test]
        fn no_changed_ticket_opens(at in any::<proptest::sample::Index>(), flip in 1u8..) {
            let ticketer = Ticketer::new(after(60)).expect("a ticketer");
            let mut ticket = ticketer.seal(b"session", NOW).expect("sealed");
            let at = at.index(ticket.len());
            ticket[at] ^= flip;
            prop_assert_eq!(ticketer.open(&ticket, NOW), None);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(Ticketer::new(after(60)).expect("a ticketer").open(&bytes, NOW), None);
        }
    }
}
