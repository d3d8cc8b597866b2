//! How much of us one address may take, and all together: connections, and bytes of bodies that are held. Whoever is in
//! the cluster can reach the webhook; none of them keeps the API servers out. Pure.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// What may be taken at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Connections of one address.
    pub(crate) connections: usize,
    /// Bytes for one address.
    pub(crate) bytes: usize,
    /// Bytes for all.
    pub(crate) all_bytes: usize,
}

/// What is taken.
#[derive(Debug, Clone)]
pub(crate) struct Sources(Arc<Mutex<Table>>);

#[derive(Debug)]
struct Table {
    shares: Shares,
    taken: HashMap<IpAddr, Taken>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Taken {
    connections: usize,
    bytes: usize,
}

/// One connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Visitor {
    sources: Sources,
    ip: IpAddr,
}

/// Bytes that are held, until they are dropped.
#[derive(Debug)]
pub(crate) struct Held {
    visitor: Arc<Visitor>,
    bytes: usize,
}

impl Sources {
    pub(crate) fn new(shares: Shares) -> Self {
        Self(Arc::new(Mutex::new(Table { shares, taken: HashMap::new(), bytes: 0 })))
    }

    /// One more connection from `ip`, if it may have one.
    pub(crate) fn visit(&self, ip: IpAddr) -> Option<Arc<Visitor>> {
        let ip = ip.to_canonical();
        let may = self.with(|table| {
            let taken = table.taken.entry(ip).or_default();
            let may = taken.connections < table.shares.connections;
            taken.connections += usize::from(may);
            may
        });
        may.then(|| Arc::new(Visitor { sources: self.clone(), ip }))
    }

    fn with<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Visitor {
    /// Nothing yet.
    pub(crate) fn nothing(self: &Arc<Self>) -> Held {
        Held { visitor: self.clone(), bytes: 0 }
    }
}

impl Held {
    /// Takes so many more, if they are there.
    pub(crate) fn more(&mut self, bytes: usize) -> bool {
        let ip = self.visitor.ip;
        let may = self.visitor.sources.with(|table| {
            let taken = table.taken.entry(ip).or_default();
            let may = taken.bytes + bytes <= table.shares.bytes && table.bytes + bytes <= table.shares.all_bytes;
            if may {
                taken.bytes += bytes;
                table.bytes += bytes;
            }
            may
        });
        self.bytes += if may { bytes } else { 0 };
        may
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let (ip, bytes) = (self.visitor.ip, self.bytes);
        self.visitor.sources.with(|table| {
            table.bytes -= bytes;
            if let Some(taken) = table.taken.get_mut(&ip) {
                taken.bytes -= bytes;
            }
        });
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let ip = self.ip;
        self.sources.with(|table| {
            if let Some(taken) = table.taken.get_mut(&ip) {
                taken.connections -= 1;
                if taken.connections == 0 {
                    table.taken.remove(&ip);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources() -> Sources {
        Sources::new(Shares { connections: 2, bytes: 10, all_bytes: 15 })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn one_address_cannot_take_anothers_connections() {
        let sources = sources();
        let open: Vec<_> = (0..2).map(|_| sources.visit(ip("10.0.0.1")).expect("free")).collect();
        assert!(sources.visit(ip("10.0.0.1")).is_none());
        assert!(sources.visit(ip("::ffff:10.0.0.1")).is_none(), "the same address");
        assert!(sources.visit(ip("10.0.0.2")).is_some());
        drop(open);
        assert!(sources.visit(ip("10.0.0.1")).is_some());
        sources.with(|table| assert!(table.taken.is_empty(), "nothing is kept of who has gone"));
    }

    #[test]
    fn bytes_are_bounded_for_one_and_for_all_and_given_back() {
        let sources = sources();
        let (one, two) = (sources.visit(ip("10.0.0.1")).expect("free"), sources.visit(ip("10.0.0.2")).expect("free"));
        let (mut of_one, mut of_two) = (one.nothing(), two.nothing());
        assert!(of_one.more(4) && of_one.more(6) && !of_one.more(1));
        assert!(of_two.more(5) && !of_two.more(1), "15 in all");
        drop((one, of_one));
        assert!(of_two.more(5) && !of_two.more(1), "10 for one");
        drop((two, of_two));
        sources.with(|table| assert!(table.bytes == 0 && table.taken.is_empty()));
    }
}
