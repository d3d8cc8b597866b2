//! Who may be in a handshake at the mesh port: a number in all, a share for each address, and where all is taken, a
//! place for whoever has fewer than others. Strangers can hold what nobody else wants, and no more. Pure but for the
//! handles.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio_util::sync::CancellationToken;

/// What became of one who asked.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Granted(u64),
    /// Granted, and the other has to go.
    Instead(u64, u64),
    Refused,
}

/// The decisions.
#[derive(Debug)]
struct Places {
    most: usize,
    per_source: usize,
    /// By source, the oldest first. No source is without a place.
    held: HashMap<IpAddr, VecDeque<u64>>,
    total: usize,
    next: u64,
}

impl Places {
    fn new(most: usize, per_source: usize) -> Self {
        Self { most, per_source, held: HashMap::new(), total: 0, next: 0 }
    }

    fn ask(&mut self, source: IpAddr) -> Answer {
        let own = self.held.get(&source).map_or(0, VecDeque::len);
        if own >= self.per_source {
            return Answer::Refused;
        }
        let evicted = match self.total >= self.most {
            false => None,
            true => match self.evict_above(own + 1) {
                None => return Answer::Refused,
                evicted => evicted,
            },
        };
        self.next += 1;
        self.total += 1;
        self.held.entry(source).or_default().push_back(self.next);
        evicted.map_or(Answer::Granted(self.next), |evicted| Answer::Instead(self.next, evicted))
    }

    /// The oldest place of whoever has most, if that is more than `fair`.
    fn evict_above(&mut self, fair: usize) -> Option<u64> {
        let (source, _) = self.held.iter().max_by_key(|(_, held)| held.len()).filter(|(_, held)| held.len() > fair)?;
        let source = *source;
        let evicted = self.held.get(&source).and_then(VecDeque::front).copied()?;
        self.release(source, evicted);
        Some(evicted)
    }

    fn release(&mut self, source: IpAddr, place: u64) {
        let Some(held) = self.held.get_mut(&source) else { return };
        let before = held.len();
        held.retain(|held| *held != place);
        self.total -= before - held.len();
        if held.is_empty() {
            self.held.remove(&source);
        }
    }
}

/// The places of the mesh port.
#[derive(Debug, Clone)]
pub(crate) struct Handshakes(Arc<Mutex<(Places, HashMap<u64, CancellationToken>)>>);

/// One place; given back on drop.
#[derive(Debug)]
pub(crate) struct Place {
    all: Handshakes,
    source: IpAddr,
    number: u64,
    evicted: CancellationToken,
}

impl Handshakes {
    /// `most` in all, `per_source` for one address.
    pub(crate) fn new(most: usize, per_source: usize) -> Self {
        Self(Arc::new(Mutex::new((Places::new(most, per_source), HashMap::new()))))
    }

    /// A place for `source`, if there is one, or if another has more than its share.
    pub(crate) fn take(&self, source: IpAddr) -> Option<Place> {
        let source = source.to_canonical();
        let mut all = self.lock();
        let (number, evicted) = match all.0.ask(source) {
            Answer::Refused => return None,
            Answer::Granted(number) => (number, None),
            Answer::Instead(number, evicted) => (number, all.1.remove(&evicted)),
        };
        let own = CancellationToken::new();
        all.1.insert(number, own.clone());
        drop(all);
        if let Some(evicted) = evicted {
            evicted.cancel();
        }
        Some(Place { all: self.clone(), source, number, evicted: own })
    }

    fn lock(&self) -> MutexGuard<'_, (Places, HashMap<u64, CancellationToken>)> {
        self.0.lock().expect("no code panics while it holds this")
    }
}

impl Place {
    /// Does `work`, unless the place has to be given to another: then none.
    pub(crate) async fn unless_evicted<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.evicted.cancelled() => None,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        all.0.release(self.source, self.number);
        all.1.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn source(number: u8) -> IpAddr {
        IpAddr::from([10, 1, 0, number])
    }

    #[test]
    fn who_has_most_makes_room_for_who_has_less() {
        let mut places = Places::new(4, 4);
        assert!((1..=4).all(|number| places.ask(source(1)) == Answer::Granted(number)));
        assert_eq!(places.ask(source(1)), Answer::Refused);
        assert_eq!(places.ask(source(2)), Answer::Instead(5, 1));
        assert_eq!(places.ask(source(2)), Answer::Instead(6, 2));
        assert_eq!(places.ask(source(2)), Answer::Refused, "each has its half");
        // Two each of four: a third gets one of them, and then it is enough for all.
        assert!(matches!(places.ask(source(3)), Answer::Instead(7, 3 | 5)));
        assert_eq!(places.ask(source(3)), Answer::Refused);
    }

    proptest! {
        #[test]
        fn bounds_hold_and_whoever_has_none_gets_one_while_another_has_two(
            steps in proptest::collection::vec((any::<bool>(), 0u8..6, any::<prop::sample::Index>()), 0..200),
            most in 1usize..12, per_source in 1usize..6,
        ) {
            let mut places = Places::new(most, per_source);
            let mut held: Vec<(u8, u64)> = Vec::new();
            for (ask, who, index) in steps {
                if ask || held.is_empty() {
                    let of = |who| held.iter().filter(|(owner, _)| *owner == who).count();
                    let (own, largest) = (of(who), (0..6).map(of).max().unwrap_or(0));
                    let before = held.len();
                    match places.ask(source(who)) {
                        Answer::Granted(number) => {
                            prop_assert!(before < most && own < per_source);
                            held.push((who, number));
                        }
                        Answer::Instead(number, evicted) => {
                            let at = held.iter().position(|(_, held)| *held == evicted).expect("one that was held");
                            let (loser, _) = held.remove(at);
                            prop_assert!(before == most && loser != who && largest > own + 1);
                            held.push((who, number));
                        }
                        Answer::Refused => {
                            prop_assert!(own >= per_source || (before == most && largest <= own + 1));
                        }
                    }
                } else {
                    let (who, number) = held.remove(index.index(held.len()));
                    places.release(source(who), number);
                    places.release(source(who), number);
                }
                prop_assert_eq!(places.total, held.len());
                prop_assert!(places.total <= most);
                prop_assert_eq!(places.held.values().map(VecDeque::len).sum::<usize>(), held.len());
                prop_assert!(places.held.values().all(|held| (1..=per_source).contains(&held.len())));
            }
        }
    }

    #[tokio::test]
    async fn an_evicted_one_is_told_and_gives_back_nothing_twice() {
        let all = Handshakes::new(2, 2);
        let greedy = [(), ()].map(|()| all.take(source(1)).expect("room"));
        let modest = all.take(source(2)).expect("instead of the oldest");
        assert_eq!(greedy[0].unless_evicted(std::future::pending::<()>()).await, None);
        assert_eq!(modest.unless_evicted(async { 7 }).await, Some(7));
        drop(greedy);
        assert!(all.take(source(3)).is_some());
        drop(modest);
        assert_eq!(all.lock().0.total, 0);
    }
}
