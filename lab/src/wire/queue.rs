//! The frames that a wire keeps: which is due when, and in which order. Pure: the time is the caller's, and chance has a
//! seed.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::WireOptions;

/// How many frames a wire keeps: 100 ms of 1 Gbit/s in full frames. More are lost, as in a switch.
const ROOM: usize = 8192;

/// What is on its way in one direction.
#[derive(Debug)]
pub(super) struct Queue {
    options: WireOptions,
    chance: StdRng,
    /// When the last one that is not late is due: the next one is no earlier.
    last: Option<Instant>,
    taken: u64,
    frames: BinaryHeap<Reverse<Frame>>,
}

/// By the time at which it is due, then by its turn.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Frame {
    due: Instant,
    number: u64,
    bytes: Vec<u8>,
}

impl Queue {
    pub(super) fn new(options: WireOptions, seed: u64) -> Self {
        Self { options, chance: StdRng::seed_from_u64(seed), last: None, taken: 0, frames: BinaryHeap::new() }
    }

    /// Takes the frame that comes at `now`; it is lost if there is no room.
    pub(super) fn push(&mut self, now: Instant, bytes: Vec<u8>) {
        if self.frames.len() == ROOM {
            return;
        }
        let jitter = self.chance.random_range(Duration::ZERO..=self.options.jitter);
        let in_order = self.last.max(Some(now + self.options.delay + jitter)).unwrap_or(now);
        let late = self.chance.random_range(0..100) < self.options.late;
        let due = if late { in_order + self.options.lateness } else { in_order };
        // Those behind a late one do not wait for it.
        self.last = Some(in_order);
        self.taken += 1;
        self.frames.push(Reverse(Frame { due, number: self.taken, bytes }));
    }

    /// When the next one is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.frames.peek().map(|Reverse(frame)| frame.due)
    }

    /// The next one, if it is due by `now`.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.due().filter(|due| *due <= now)?;
        self.frames.pop().map(|Reverse(frame)| frame.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Pushes `count` frames, one each ms, and says at which ms which one came out.
    fn run(options: WireOptions, count: u16) -> Vec<(u32, u16)> {
        let (mut queue, start) = (Queue::new(options, 7), Instant::now());
        let mut out = Vec::new();
        for ms in 0..u32::from(count) + 1000 {
            let now = start + MS * ms;
            if let Some(number) = u16::try_from(ms).ok().filter(|number| *number < count) {
                queue.push(now, number.to_be_bytes().to_vec());
            }
            while let Some(frame) = queue.pop(now) {
                out.push((ms, u16::from_be_bytes([frame[0], frame[1]])));
            }
        }
        assert_eq!((queue.due(), out.len()), (None, usize::from(count)), "nothing is lost or kept for ever");
        out
    }

    #[test]
    fn without_options_a_frame_is_due_at_once() {
        assert_eq!(run(WireOptions::default(), 3), [(0, 0), (1, 1), (2, 2)]);
    }

    #[test]
    fn a_frame_leaves_after_its_delay_and_not_before() {
        let options = WireOptions { delay: MS * 50, ..WireOptions::default() };
        assert_eq!(run(options, 3), [(50, 0), (51, 1), (52, 2)]);
    }

    #[test]
    fn jitter_is_by_chance_within_its_bounds_and_keeps_the_order() {
        let options = WireOptions { delay: MS * 50, jitter: MS * 10, ..WireOptions::default() };
        let out = run(options, 1000);
        assert!(out.is_sorted_by_key(|(_, number)| *number));
        let delays: Vec<_> = out.iter().map(|(ms, number)| ms - u32::from(*number)).collect();
        assert!(delays.iter().all(|delay| (50..=60).contains(delay)), "{delays:?}");
        assert!(delays.iter().any(|delay| *delay < 54) && delays.contains(&60), "{delays:?}");
    }

    #[test]
    fn late_frames_are_overtaken_and_those_behind_do_not_wait() {
        let options = WireOptions { delay: MS * 50, late: 20, lateness: MS * 5, ..WireOptions::default() };
        let out = run(options, 1000);
        let late = out.iter().filter(|(ms, number)| ms - u32::from(*number) == 55).count();
        let on_time = out.iter().filter(|(ms, number)| ms - u32::from(*number) == 50).count();
        assert_eq!(late + on_time, 1000);
        assert!((150..250).contains(&late), "{late} of 1000 are late");
        let overtaken = out.windows(2).filter(|pair| pair[0].1 > pair[1].1).count();
        assert!(overtaken >= 100, "{overtaken} come behind a later one");
    }

    #[test]
    fn what_finds_no_room_is_lost() {
        let (mut queue, now) = (Queue::new(WireOptions::default(), 7), Instant::now());
        for _ in 0..ROOM + 3 {
            queue.push(now, Vec::new());
        }
        assert_eq!(std::iter::from_fn(|| queue.pop(now)).count(), ROOM);
    }
}
