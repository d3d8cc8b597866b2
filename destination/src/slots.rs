//! How many streams may be open: on one connection, and in all.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

/// Bounds on open streams.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// On one connection. A proxy holds two for each address, at most 4096 addresses, and two more of its own.
    pub per_connection: usize,
    /// In all. About 4 KB each: 512 MB.
    pub total: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { per_connection: 2 * 4096 + 64, total: 131_072 }
    }
}

/// Counts streams against their bounds.
#[derive(Debug)]
pub(crate) struct Slots {
    bounds: Bounds,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    by_connection: HashMap<SocketAddr, usize>,
    total: usize,
}

/// One stream's place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    connection: SocketAddr,
}

/// The bound that is reached.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum TooMany {
    #[error("this connection has {0} streams open, as many as it may: close some, or use another connection")]
    OnConnection(usize),
    #[error("{0} streams are open, as many as this server serves: try again later, or add a replica")]
    InAll(usize),
}

impl Slots {
    pub(crate) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, taken: Mutex::default() })
    }

    pub(crate) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// A place for one stream of `connection`, known by its remote address.
    pub(crate) fn take(self: &Arc<Self>, connection: SocketAddr) -> Result<Slot, TooMany> {
        let mut taken = self.taken.lock().expect("no code panics while it counts");
        let here = taken.by_connection.get(&connection).copied().unwrap_or_default();
        if here >= self.bounds.per_connection {
            return Err(TooMany::OnConnection(here));
        }
        if taken.total >= self.bounds.total {
            return Err(TooMany::InAll(taken.total));
        }
        taken.by_connection.insert(connection, here + 1);
        taken.total += 1;
        Ok(Slot { slots: self.clone(), connection })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock().expect("no code panics while it counts");
        taken.total -= 1;
        let here = taken.by_connection.get_mut(&self.connection).expect("counted when it was taken");
        *here -= 1;
        if *here == 0 {
            taken.by_connection.remove(&self.connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let slots = Slots::new(Bounds { per_connection: 2, total: 3 });
        let [a, b] = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let first = slots.take(a).expect("free");
        let second = slots.take(a).expect("free");
        assert_eq!(slots.take(a).err(), Some(TooMany::OnConnection(2)));
        let third = slots.take(b).expect("free");
        assert_eq!(slots.take(b).err(), Some(TooMany::InAll(3)));
        drop(first);
        let fourth = slots.take(b).expect("free again");
        drop((second, third, fourth));
        assert!(slots.taken.lock().expect("free").by_connection.is_empty());
    }
}
