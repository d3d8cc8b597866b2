//! Idle mesh connections, to be used again. A stack for each peer: what was used last is the likeliest to live.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::Mutex,
    time::{Duration, Instant},
};

/// A connection that may be kept.
pub(crate) trait Pooled {
    /// Whether it may serve another stream at `now`: young enough, of the current certificates.
    fn is_current(&self, now: Instant) -> bool;

    /// Whether nothing has come on it while it was idle: no end, no byte.
    fn is_quiet(&mut self) -> bool;
}

/// Bounds of a pool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) per_peer: usize,
    pub(crate) total: usize,
    pub(crate) idle: Duration,
}

/// Idle connections by peer.
pub(crate) struct Pool<K, C> {
    bounds: Bounds,
    idle: Mutex<Idle<K, C>>,
}

struct Idle<K, C> {
    by_peer: HashMap<K, Vec<(Instant, C)>>,
    total: usize,
}

impl<K: Eq + Hash, C: Pooled> Pool<K, C> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, idle: Mutex::new(Idle { by_peer: HashMap::new(), total: 0 }) }
    }

    /// The connection to `peer` that was used last and still may be used.
    pub(crate) fn take(&self, peer: &K, now: Instant) -> Option<C> {
        // Dropped after the lock is released: closing a connection takes system calls.
        let mut stale = Vec::new();
        let mut idle = self.lock();
        let Idle { by_peer, total } = &mut *idle;
        let stack = by_peer.get_mut(peer)?;
        let mut found = None;
        while let Some((since, mut conn)) = stack.pop() {
            *total -= 1;
            if now.duration_since(since) < self.bounds.idle && conn.is_current(now) && conn.is_quiet() {
                found = Some(conn);
                break;
            }
            stale.push(conn);
        }
        if stack.is_empty() {
            by_peer.remove(peer);
        }
        drop(idle);
        found
    }

    /// Keeps `conn`, unless the pool is full; of one peer's the one idle longest makes room.
    pub(crate) fn put(&self, peer: K, conn: C, now: Instant) {
        if !conn.is_current(now) {
            return;
        }
        let mut idle = self.lock();
        let Idle { by_peer, total } = &mut *idle;
        let held = by_peer.get(&peer).map_or(0, Vec::len);
        let evicted = if held >= self.bounds.per_peer {
            *total -= 1;
            by_peer.get_mut(&peer).map(|stack| stack.remove(0))
        } else if *total >= self.bounds.total {
            return;
        } else {
            None
        };
        *total += 1;
        by_peer.entry(peer).or_default().push((now, conn));
        drop(idle);
        drop(evicted);
    }

    /// Closes what was idle for too long or is out of date.
    pub(crate) fn sweep(&self, now: Instant) {
        let idle_limit = self.bounds.idle;
        self.remove_if(|_, since, conn| now.duration_since(since) >= idle_limit || !conn.is_current(now));
    }

    /// Closes all connections of peers that `gone` names.
    pub(crate) fn forget(&self, gone: impl Fn(&K) -> bool) {
        self.remove_if(|peer, _, _| gone(peer));
    }

    /// How many are held.
    pub(crate) fn len(&self) -> usize {
        self.lock().total
    }

    fn remove_if(&self, remove: impl Fn(&K, Instant, &C) -> bool) {
        let mut removed = Vec::new();
        let mut idle = self.lock();
        let Idle { by_peer, total } = &mut *idle;
        by_peer.retain(|peer, stack| {
            removed.extend(stack.extract_if(.., |(since, conn)| remove(peer, *since, conn)));
            !stack.is_empty()
        });
        *total -= removed.len();
        drop(idle);
        drop(removed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Idle<K, C>> {
        self.idle.lock().expect("no code panics while it holds the pool")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Conn {
        id: usize,
        current: bool,
        quiet: bool,
    }

    impl Pooled for Conn {
        fn is_current(&self, _: Instant) -> bool {
            self.current
        }
        fn is_quiet(&mut self) -> bool {
            self.quiet
        }
    }

    const BOUNDS: Bounds = Bounds { per_peer: 3, total: 5, idle: Duration::from_secs(30) };

    fn conn(id: usize) -> Conn {
        Conn { id, current: true, quiet: true }
    }

    #[test]
    fn the_last_in_is_the_first_out_and_the_oldest_makes_room() {
        let (pool, now) = (Pool::new(BOUNDS), Instant::now());
        (0..4).for_each(|id| pool.put("a", conn(id), now));
        assert_eq!(pool.len(), 3);
        let taken: Vec<_> = std::iter::from_fn(|| pool.take(&"a", now)).map(|conn| conn.id).collect();
        assert_eq!(taken, [3, 2, 1]);
        assert_eq!(pool.len(), 0);
    }

    #[test]
    fn what_is_stale_old_or_not_silent_is_never_given_out() {
        let (pool, now) = (Pool::new(BOUNDS), Instant::now());
        pool.put("a", conn(0), now);
        pool.put("a", Conn { quiet: false, ..conn(1) }, now);
        assert_eq!(pool.take(&"a", now).map(|conn| conn.id), Some(0));
        pool.put("a", Conn { current: false, ..conn(2) }, now);
        assert_eq!(pool.len(), 0);
        pool.put("a", conn(3), now);
        assert_eq!(pool.take(&"a", now + BOUNDS.idle), None);
        assert_eq!(pool.len(), 0);
    }

    proptest! {
        /// Against the plainest model: all that is idle in one list, the longest idle first.
        #[test]
        fn a_pool_does_what_a_plain_list_would(steps in proptest::collection::vec((0u8..6, 0u8..3, 0u64..20), 0..150)) {
            let (pool, mut now) = (Pool::new(BOUNDS), Instant::now());
            let mut model: Vec<(u8, usize, Instant)> = Vec::new();
            for (id, (step, peer, seconds)) in steps.into_iter().enumerate() {
                now += Duration::from_secs(seconds);
                match step {
                    0..=2 => {
                        pool.put(peer, conn(id), now);
                        let of_peer = model.iter().filter(|(owner, ..)| *owner == peer).count();
                        let oldest = model.iter().position(|(owner, ..)| *owner == peer);
                        match oldest.filter(|_| of_peer >= BOUNDS.per_peer) {
                            Some(oldest) => drop(model.remove(oldest)),
                            None if model.len() >= BOUNDS.total => continue,
                            None => {}
                        }
                        model.push((peer, id, now));
                    }
                    3 => {
                        // What is too old is closed on the way, and below the newest all is older.
                        let newest = model.iter().rposition(|(owner, ..)| *owner == peer).map(|at| model.remove(at));
                        let fresh = newest.filter(|(.., since)| now.duration_since(*since) < BOUNDS.idle);
                        if fresh.is_none() {
                            model.retain(|(owner, ..)| *owner != peer);
                        }
                        prop_assert_eq!(pool.take(&peer, now).map(|conn| conn.id), fresh.map(|(_, id, _)| id));
                    }
                    4 => {
                        pool.sweep(now);
                        model.retain(|(.., since)| now.duration_since(*since) < BOUNDS.idle);
                    }
                    _ => {
                        pool.forget(|key| *key == peer);
                        model.retain(|(owner, ..)| *owner != peer);
                    }
                }
                prop_assert_eq!(pool.len(), model.len());
            }
        }

        #[test]
        fn bounds_hold_and_nothing_is_given_twice(steps in proptest::collection::vec((0u8..5, 0u8..4), 0..200)) {
            let (pool, start) = (Pool::new(BOUNDS), Instant::now());
            let mut given = std::collections::HashSet::new();
            for (id, (step, peer)) in steps.into_iter().enumerate() {
                let now = start + Duration::from_secs(id as u64);
                match step {
                    0 | 1 => pool.put(peer, conn(id), now),
                    2 => if let Some(conn) = pool.take(&peer, now) { prop_assert!(given.insert(conn.id)) },
                    3 => pool.sweep(now),
                    _ => {
                        pool.forget(|key| *key == peer);
                        prop_assert_eq!(pool.take(&peer, now), None);
                    }
                }
                let idle = pool.lock();
                prop_assert_eq!(idle.total, idle.by_peer.values().map(Vec::len).sum::<usize>());
                prop_assert!(idle.total <= BOUNDS.total && idle.by_peer.values().all(|s| (1..=BOUNDS.per_peer).contains(&s.len())));
            }
        }
    }
}
