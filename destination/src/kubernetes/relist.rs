//! `Relist`: what a watch says of one kind of object, as changes to what is held. A list counts once it is whole: until
//! then what was held stays, and then all that differs changes at once. Pure.

use std::{collections::BTreeMap, sync::Arc};

use super::rows::ObjectName;

/// What a watch says.
#[derive(Debug)]
pub(super) enum Event<R> {
    /// A list begins.
    Begin,
    /// An object of the list; none where it is of no interest.
    Listed(ObjectName, Option<R>),
    /// The list is whole.
    Done,
    /// An object was made or changed; none where it is of no interest, or was deleted.
    Set(ObjectName, Option<R>),
}

/// The list that is being read, and whether one ever was.
#[derive(Debug)]
pub(super) struct Relist<R> {
    fresh: BTreeMap<ObjectName, R>,
    synced: bool,
}

impl<R> Default for Relist<R> {
    fn default() -> Self {
        Self { fresh: BTreeMap::new(), synced: false }
    }
}

impl<R: PartialEq> Relist<R> {
    /// Whether a list was read to its end.
    pub(super) fn synced(&self) -> bool {
        self.synced
    }

    /// What changes, where `held` is what is held now.
    pub(super) fn take<'a>(
        &mut self,
        event: Event<R>,
        held: impl Iterator<Item = &'a Arc<ObjectName>>,
    ) -> Vec<(Arc<ObjectName>, Option<R>)> {
        match event {
            Event::Begin => self.fresh.clear(),
            Event::Listed(name, Some(row)) => drop(self.fresh.insert(name, row)),
            Event::Listed(_, None) => {}
            Event::Set(name, row) => return vec![(Arc::new(name), row)],
            Event::Done => {
                self.synced = true;
                let fresh = std::mem::take(&mut self.fresh);
                let gone: Vec<_> = held.filter(|name| !fresh.contains_key(&***name)).cloned().collect();
                let gone = gone.into_iter().map(|name| (name, None));
                return gone.chain(fresh.into_iter().map(|(name, row)| (Arc::new(name), Some(row)))).collect();
            }
        }
        Vec::new()
    }
}
