//! `Sources`: how much each address holds at once, so that one stranger cannot take what is there for all.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A number of places in all, and of them a number for each address.
#[derive(Debug, Clone)]
pub struct Sources {
    places: Arc<Semaphore>,
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
    per_source: usize,
}

/// One place; given back on drop.
#[derive(Debug)]
pub struct Taken {
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
    source: IpAddr,
    _place: OwnedSemaphorePermit,
}

impl Sources {
    /// `places` in all, `per_source` for one address.
    pub fn new(places: usize, per_source: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), held: Arc::default(), per_source }
    }

    /// A place for `source`, if there is one now.
    pub fn take(&self, source: IpAddr) -> Option<Taken> {
        let source = source.to_canonical();
        let place = self.places.clone().try_acquire_owned().ok()?;
        let mut held = lock(&self.held);
        let count = held.entry(source).or_default();
        if *count >= self.per_source {
            return None;
        }
        *count += 1;
        Some(Taken { held: self.held.clone(), source, _place: place })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut held = lock(&self.held);
        if let Some(count) = held.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.source);
            }
        }
    }
}

fn lock(held: &Mutex<HashMap<IpAddr, usize>>) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_cannot_take_the_places_of_all() {
        let sources = Sources::new(3, 2);
        let [a, b]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().expect("an address"));
        let first = sources.take(a).expect("the first of two");
        let _second = sources.take(a).expect("the second of two");
        assert!(sources.take(a).is_none(), "its share");
        assert!(sources.take("::ffff:10.0.0.1".parse().expect("an address")).is_none(), "the same address");
        let _third = sources.take(b).expect("a place for another");
        assert!(sources.take(b).is_none(), "all places");
        drop(first);
        assert!(sources.take(b).is_some(), "given back");
        drop((_second, _third));
        assert!(lock(&sources.held).is_empty(), "nothing is remembered of who left");
    }
}
