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
