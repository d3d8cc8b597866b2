//! `Entries`: the addresses whose answers are held: how many, since when unused, which one goes for another.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{entry::Entry, entry::Status, metrics::Metrics, target::Target};

/// All entries, at most a number.
#[derive(Debug)]
pub(super) struct Entries {
    most: usize,
    map: Mutex<HashMap<SocketAddr, Slot>>,
}

#[derive(Debug)]
struct Slot {
    entry: Arc<Entry>,
    last_used: Instant,
    /// Ends the entry's task when the slot goes.
    _task: DropGuard,
}

/// A reader's view of an entry. It does not keep the entry alive, so that its end is seen.
#[derive(Debug)]
pub(super) struct View {
    pub(super) target: watch::Receiver<Arc<Target>>,
    pub(super) status: watch::Receiver<Status>,
}

/// A new entry, to be followed by a task. The entry is given up when this is dropped: also by a panic of the task, or
/// when it never ran.
#[derive(Debug)]
pub(super) struct Opened {
    entries: Arc<Entries>,
    addr: SocketAddr,
    entry: Arc<Entry>,
    given_up: CancellationToken,
}

impl Entries {
    pub(super) fn new(most: usize) -> Self {
        Self { most, map: Mutex::default() }
    }

    /// The entry of `addr`, which is thereby used.
    pub(super) fn find(&self, addr: SocketAddr) -> Option<View> {
        self.map().get_mut(&addr).map(Slot::used)
    }

    /// The entry of `addr`, and what its task needs if it is new. Where there is no room, the one that nobody holds and
    /// that was not used for the longest time goes; if all are held: their number.
    pub(super) fn open(self: &Arc<Self>, addr: SocketAddr, metrics: &Metrics) -> Result<(View, Option<Opened>), usize> {
        let mut map = self.map();
        if let Some(found) = map.get_mut(&addr) {
            return Ok((found.used(), None));
        }
        if map.len() >= self.most {
            let unheld = map.iter().filter(|(_, slot)| !slot.entry.is_held());
            let oldest = unheld.min_by_key(|(_, slot)| slot.last_used).map(|(addr, _)| *addr);
            let oldest = oldest.ok_or(map.len())?;
            map.remove(&oldest);
        }
        let (entry, given_up) = (Arc::new(Entry::new(metrics)), CancellationToken::new());
        let task = given_up.clone().drop_guard();
        let mut slot = Slot { entry: entry.clone(), last_used: Instant::now(), _task: task };
        let view = slot.used();
        map.insert(addr, slot);
        Ok((view, Some(Opened { entries: self.clone(), addr, entry, given_up })))
    }

    pub(super) fn len(&self) -> usize {
        self.map().len()
    }

    fn map(&self) -> MutexGuard<'_, HashMap<SocketAddr, Slot>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn used(&mut self) -> View {
        self.last_used = Instant::now();
        View { target: self.entry.subscribe(), status: self.entry.status() }
    }
}

impl Opened {
    pub(super) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Waits until the entry has gone for another, or nobody has held or used it for `limit`.
    pub(super) async fn given_up(&self, limit: Duration) {
        tokio::select! {
            () = self.given_up.cancelled() => {}
            () = self.idle(limit) => {}
        }
    }

    async fn idle(&self, limit: Duration) {
        loop {
            if self.entry.is_held() {
                self.entry.unheld().await;
                self.with_slot(|slot| slot.last_used = Instant::now());
            }
            let Some(last_used) = self.with_slot(|slot| slot.last_used) else { return };
            sleep_until(last_used + limit).await;
            if self.remove_if(|slot| !slot.entry.is_held() && slot.last_used + limit <= Instant::now()) {
                return;
            }
        }
    }

    fn remove_if(&self, condition: impl Fn(&Slot) -> bool) -> bool {
        let mut map = self.entries.map();
        let own = map.get(&self.addr).filter(|slot| Arc::ptr_eq(&slot.entry, &self.entry));
        let remove = own.is_some_and(condition);
        if remove {
            map.remove(&self.addr);
        }
        remove
    }

    fn with_slot<T>(&self, f: impl FnOnce(&mut Slot) -> T) -> Option<T> {
        let mut map = self.entries.map();
        map.get_mut(&self.addr).filter(|slot| Arc::ptr_eq(&slot.entry, &self.entry)).map(f)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.remove_if(|_| true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(300);
    const SOON: Duration = Duration::from_millis(1);

    fn addr(host: u8) -> SocketAddr {
        SocketAddr::from(([10, 1, 0, host], 80))
    }

    fn entries(most: usize) -> Arc<Entries> {
        Arc::new(Entries::new(most))
    }

    fn open(entries: &Arc<Entries>, host: u8) -> (View, Opened) {
        let (view, opened) = entries.open(addr(host), &Metrics::default()).expect("room");
        (view, opened.expect("new"))
    }

    fn held(entries: &Entries) -> Vec<SocketAddr> {
        let mut addrs: Vec<_> = entries.map().keys().copied().collect();
        addrs.sort_unstable();
        addrs
    }

    #[tokio::test(start_paused = true)]
    async fn where_there_is_no_room_the_longest_unused_that_nobody_holds_goes() {
        let entries = entries(3);
        let (kept, _first) = open(&entries, 1);
        let (_, second) = open(&entries, 2);
        tokio::time::advance(SOON).await;
        let (_, third) = open(&entries, 3);
        tokio::time::advance(SOON).await;
        entries.find(addr(2)).expect("there");
        let (_, _fourth) = open(&entries, 4);
        assert_eq!(held(&entries), [1, 2, 4].map(addr));
        third.given_up(IDLE).await;
        assert!(!second.given_up.is_cancelled());
        drop(kept);
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_are_held_there_is_no_room() {
        let entries = entries(2);
        let (_held, _task) = open(&entries, 1);
        let (last, _other) = open(&entries, 2);
        assert_eq!(entries.open(addr(3), &Metrics::default()).err(), Some(2));
        assert!(entries.open(addr(1), &Metrics::default()).is_ok_and(|(_, new)| new.is_none()), "known is known");
        drop(last);
        assert!(entries.open(addr(3), &Metrics::default()).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_uses_is_given_up_and_what_is_held_is_not() {
        let entries = entries(2);
        let (view, opened) = open(&entries, 1);
        let start = Instant::now();
        let hold = async {
            tokio::time::sleep(IDLE * 3).await;
            drop(view);
            tokio::time::sleep(IDLE / 2).await;
            entries.find(addr(1)).expect("not yet given up");
        };
        tokio::join!(hold, opened.given_up(IDLE));
        assert_eq!(start.elapsed().as_secs(), (IDLE * 9 / 2).as_secs());
        assert_eq!(entries.len(), 0);
    }

    #[tokio::test]
    async fn a_task_that_ends_in_any_way_takes_its_own_entry_along_and_no_other() {
        let entries = entries(1);
        let (_, never_ran) = open(&entries, 1);
        let (_, other) = open(&entries, 2);
        let (_, again) = open(&entries, 1);
        drop((never_ran, other));
        assert_eq!(held(&entries), [addr(1)]);
        drop(again);
        assert_eq!(entries.len(), 0);
    }
}
