//! What is to be done next about the CA and the leaf. Pure: the clock is an argument, and every step begins from what the
//! Secret holds, so that any replica can go on where another stopped.
//!
//! A rotation: the CA that comes is made (*next*), put into the registration beside the one of now (*published*), and
//! signs the leaf once API servers have had time to take it over (*adopt*). Nobody can ask API servers what they believe;
//! so the gate is time, and the leaf's chain also leads, over a cross-signed certificate, to the CA that goes: an API
//! server that is late verifies it nevertheless. Nor are replicas asked which leaf they serve: the CA that goes stays in
//! the registration until nothing that it signed is valid, whatever a replica was cut off from.

use std::time::{Duration, SystemTime};

use super::held::{Held, Lifetimes};

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing before this time.
    Wait(SystemTime),
    /// Nothing before the registration changes, or this time.
    Publish(SystemTime),
    /// All anew: what is held is of no use.
    Fresh,
    /// A new leaf of the CA of now.
    Leaf,
    /// A CA that is to follow.
    Next,
    /// Note that the CA that comes is in the registration.
    Published,
    /// The CA that comes signs.
    Adopt,
    /// The CA that goes is gone.
    DropOld,
}

/// Decides. `published` says whether each entry of the registration holds the whole bundle, or there is none.
pub(crate) fn step(held: &Held, published: bool, names: &[String], lifetimes: &Lifetimes, now: SystemTime) -> Step {
    let Held { ca, leaf, next, old } = held;
    if ca.not_after <= now {
        return Step::Fresh;
    }
    let renew_leaf = due(leaf.not_after, leaf.life, lifetimes.leaf);
    if renew_leaf <= now || !held.is_for(names) {
        return Step::Leaf;
    }
    if let Some(old) = old {
        return if old.until <= now { Step::DropOld } else { Step::Wait(renew_leaf.min(old.until)) };
    }
    let Some(next) = next else {
        let renew_ca = due(ca.not_after, ca.life, lifetimes.ca);
        return if renew_ca <= now { Step::Next } else { Step::Wait(renew_leaf.min(renew_ca)) };
    };
    if due(next.ca.not_after, next.ca.life, lifetimes.ca) <= now {
        return Step::Next;
    }
    match next.published {
        None if published => Step::Published,
        None => Step::Publish(renew_leaf.min(ca.not_after)),
        // The clock of who noted it was ahead.
        Some(at) if at > now && published => Step::Published,
        Some(at) if at + lifetimes.settle <= now => Step::Adopt,
        Some(at) => Step::Wait(renew_leaf.min(at + lifetimes.settle)),
    }
}

/// At 70 % of its life; of the one that is set, if that is shorter.
fn due(not_after: SystemTime, life: Duration, set: Duration) -> SystemTime {
    not_after - life.min(set).mul_f64(0.3)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const LIFETIMES: Lifetimes =
        Lifetimes { ca: HOUR.saturating_mul(1000), leaf: HOUR.saturating_mul(100), settle: Duration::from_secs(60) };

    fn names() -> Vec<String> {
        vec!["hauberk-webhook.hauberk.svc".to_owned(), "127.0.0.1".to_owned()]
    }

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn apply(held: Held, step: Step, now: SystemTime) -> Held {
        super::super::keeper::apply(held, step, &names(), &LIFETIMES, now).expect("made")
    }

    fn decide(held: &Held, published: bool, now: SystemTime) -> Step {
        step(held, published, &names(), &LIFETIMES, now)
    }

    /// As the Secret keeps it: every step is resumed from there.
    fn kept(held: &Held) -> Held {
        let read = Held::read(&held.data()).expect("what was written is read");
        assert_eq!(read.data(), held.data());
        read
    }

    #[test]
    fn nothing_is_done_before_70_percent_of_a_life() {
        let held = Held::fresh(&names(), &LIFETIMES, start()).expect("made");
        assert_eq!(decide(&held, true, start()), Step::Wait(start() + 70 * HOUR));
        assert_eq!(decide(&held, true, start() + 70 * HOUR - Duration::from_secs(1)), Step::Wait(start() + 70 * HOUR));
        assert_eq!(decide(&held, true, start() + 70 * HOUR), Step::Leaf);
    }

    #[test]
    fn a_leaf_is_renewed_under_the_same_ca_and_when_names_change() {
        let held = Held::fresh(&names(), &LIFETIMES, start()).expect("made");
        let later = start() + 70 * HOUR;
        let renewed = kept(&apply(held.clone(), Step::Leaf, later));
        assert_eq!(renewed.bundle(), held.bundle());
        assert_eq!(renewed.leaf.not_after, later + LIFETIMES.leaf);
        let other = [names(), vec!["more.example".to_owned()]].concat();
        assert_eq!(step(&renewed, true, &other, &LIFETIMES, later), Step::Leaf);
    }

    #[test]
    fn a_rotation_publishes_before_it_signs_and_drops_after_the_last_leaf_has_ended() {
        let mut held = Held::fresh(&names(), &LIFETIMES, start()).expect("made");
        let first = held.bundle();
        let mut now = start() + 699 * HOUR;
        held = apply(held, Step::Leaf, now);
        now += HOUR;
        assert_eq!(decide(&held, true, now), Step::Next);
        held = kept(&apply(held, Step::Next, now));
        let both = held.bundle();
        assert!(both.starts_with(&first) && both.len() > first.len());

        assert!(matches!(decide(&held, false, now), Step::Publish(_)), "not before the registration holds both");
        assert!(matches!(decide(&held, false, now + HOUR), Step::Publish(_)), "however long that takes");
        assert_eq!(decide(&held, true, now), Step::Published);
        held = kept(&apply(held, Step::Published, now));
        assert_eq!(decide(&held, true, now), Step::Wait(now + LIFETIMES.settle));
        assert!(held.leaf.not_after > now, "the old leaf serves meanwhile");
        now += LIFETIMES.settle;
        assert_eq!(decide(&held, true, now), Step::Adopt);
        let last_old_leaf = held.leaf.not_after;
        held = kept(&apply(held, Step::Adopt, now));
        assert_eq!(held.bundle(), both, "what is still served is still believed");

        assert!(matches!(decide(&held, true, last_old_leaf), Step::Leaf | Step::Wait(_)));
        held = kept(&apply(held, Step::Leaf, last_old_leaf));
        now = last_old_leaf + LIFETIMES.settle;
        assert_eq!(decide(&held, true, now), Step::DropOld);
        held = kept(&apply(held, Step::DropOld, now));
        assert!(!held.bundle().contains(&first) && held.old.is_none() && held.next.is_none());
        assert!(matches!(decide(&held, true, now), Step::Wait(_)));
    }

    #[test]
    fn a_ca_that_has_ended_is_replaced_at_once() {
        let held = Held::fresh(&names(), &LIFETIMES, start()).expect("made");
        assert_eq!(decide(&held, true, start() + LIFETIMES.ca), Step::Fresh);
    }

    #[test]
    fn a_next_ca_that_nobody_published_in_time_is_made_anew() {
        let held = apply(Held::fresh(&names(), &LIFETIMES, start()).expect("made"), Step::Next, start() - 705 * HOUR);
        assert_eq!(decide(&held, false, start()), Step::Next);
    }

    #[test]
    fn what_does_not_fit_together_is_not_read() {
        let (one, two) = (Held::fresh(&names(), &LIFETIMES, start()), Held::fresh(&names(), &LIFETIMES, start()));
        let (one, two) = (one.expect("made").data(), two.expect("made").data());
        for key in ["tls.key", "ca.key"] {
            let mut mixed = one.clone();
            mixed.insert(key.to_owned(), two[key].clone());
            assert!(Held::read(&mixed).expect_err("mixed").to_string().contains("not the certificate of its key"));
        }
        for key in one.keys() {
            let mut less = one.clone();
            less.remove(key);
            assert!(Held::read(&less).expect_err("less").to_string().contains(key.as_str()), "{key}");
            less.insert(key.clone(), k8s_openapi::ByteString(b"-----BEGIN".to_vec()));
            assert!(Held::read(&less).is_err(), "{key}");
        }
    }
}
