//! Bounds how long a peer may acknowledge nothing, and only that: a receiver that reads nothing may do so for ever.
//!
//! The kernel's own bound (TCP_USER_TIMEOUT) counts both: it would end a connection whose receiver has closed its window
//! for so long, though it answers every probe. So it is set only while the kernel says that it asks in vain, and taken away
//! as soon as somebody answers. Without it the kernel gives up after a quarter of an hour.

use std::{io, pin::Pin, task::Context, time::Duration};

use nix::{
    getsockopt_impl, libc,
    sys::socket::{getsockopt, sockopt::GetStruct},
};
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

/// Nothing acknowledged for so long: the peer's node is gone.
const BOUND: Duration = Duration::from_secs(30);
/// Between two looks, while there is something to be acknowledged. A bound that comes so late is still met: it counts from
/// the first byte that was sent again.
const LOOK: Duration = Duration::from_secs(5);
/// So many probes of a closed window without an answer are no accident.
const PROBES: u8 = 5;

/// TCP_INFO, as far as every kernel has it.
#[derive(Clone, Copy)]
pub(crate) struct Info;
getsockopt_impl!(Info, libc::IPPROTO_TCP, libc::TCP_INFO, libc::tcp_info, GetStruct<libc::tcp_info>);

/// What the kernel says of what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// All of it is acknowledged, or may yet be.
    Answered { done: bool },
    /// It is sent again, or asked about, in vain.
    Unanswered,
}

impl Sent {
    /// Retransmissions and probes are those since the last answer.
    fn of(retransmissions: u8, probes: u8, backoff: u8, unacknowledged: u32) -> Self {
        match retransmissions > 0 || probes >= PROBES {
            true => Self::Unanswered,
            // The backoff stays while the window is closed.
            false => Self::Answered { done: unacknowledged == 0 && probes == 0 && backoff == 0 },
        }
    }

    fn look(tcp: &TcpStream) -> Self {
        match getsockopt(tcp, Info) {
            Ok(info) => Self::of(info.tcpi_retransmits, info.tcpi_probes, info.tcpi_backoff, info.tcpi_unacked),
            // The socket is gone: whoever reads or writes is told.
            Err(_) => Self::Answered { done: true },
        }
    }
}

/// Whether the peer's kernel has all that was sent.
pub(crate) fn is_acknowledged(tcp: &TcpStream) -> bool {
    getsockopt(tcp, Info).is_ok_and(|info| info.tcpi_unacked == 0 && info.tcpi_notsent_bytes == 0)
}

/// Looks after the two connections of a relay. Costs nothing while neither has anything to be acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    timer: Option<Pin<Box<Sleep>>>,
    /// Something was sent since the last look.
    sent: bool,
    /// There was nothing to be acknowledged at the last look. One is not enough: between the answer that closes a window
    /// and the first probe of it the kernel has nothing to say.
    quiet: bool,
    bounded: [bool; 2],
}

impl Watch {
    /// Notes that something was sent on one of them.
    pub(crate) fn sent(&mut self) {
        self.sent = true;
        if self.timer.is_none() {
            self.timer = Some(Box::pin(sleep(LOOK)));
        }
    }

    /// Looks when it is time to. To be called whenever the relay is polled. `unread`: nobody reads from this one now. If
    /// such a one is found to be broken, which of the two it is, and how.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connections: [&TcpStream; 2],
        unread: [bool; 2],
    ) -> Option<(usize, io::Error)> {
        while let Some(timer) = &mut self.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            timer.as_mut().reset(Instant::now() + LOOK);
            let sent = std::mem::take(&mut self.sent);
            let quiet = self.look(connections) && !sent;
            if std::mem::replace(&mut self.quiet, quiet) && quiet {
                self.timer = None;
            }
            for which in (0..connections.len()).filter(|which| unread[*which]) {
                if let Ok(Some(error)) = connections[which].take_error() {
                    return Some((which, error));
                }
            }
        }
        None
    }

    /// The relay has ended: one of the connections may serve another.
    pub(crate) fn end(&mut self, connections: [&TcpStream; 2]) {
        for (tcp, bounded) in connections.into_iter().zip(&mut self.bounded) {
            if std::mem::take(bounded) {
                // Fails only on a socket that is gone already.
                let _ = SockRef::from(tcp).set_tcp_user_timeout(None);
            }
        }
    }

    /// Whether there is nothing left to be acknowledged.
    fn look(&mut self, connections: [&TcpStream; 2]) -> bool {
        let mut quiet = true;
        for (tcp, bounded) in connections.into_iter().zip(&mut self.bounded) {
            let sent = Sent::look(tcp);
            quiet &= sent == Sent::Answered { done: true };
            let wanted = sent == Sent::Unanswered;
            // Fails only on a socket that is gone already.
            if wanted != *bounded && SockRef::from(tcp).set_tcp_user_timeout(wanted.then_some(BOUND)).is_ok() {
                *bounded = wanted;
            }
        }
        quiet
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn only_what_the_kernel_asks_in_vain_is_unanswered() {
        const WAITS: Sent = Sent::Answered { done: false };
        assert_eq!(Sent::of(0, 0, 0, 0), Sent::Answered { done: true }, "all is acknowledged");
        assert_eq!(Sent::of(0, 0, 0, 7), WAITS, "sent a moment ago");
        assert_eq!(Sent::of(1, 0, 1, 7), Sent::Unanswered, "sent again");
        assert_eq!(Sent::of(0, 0, 9, 0), WAITS, "a closed window whose probes are answered");
        assert_eq!(Sent::of(0, PROBES - 1, 9, 0), WAITS, "some probes were lost");
        assert_eq!(Sent::of(0, PROBES, 9, 0), Sent::Unanswered, "nobody answers them");
    }

    #[tokio::test]
    async fn a_connection_that_is_open_and_idle_is_left_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let addr = listener.local_addr().expect("it listens");
        let (accepted, connected) = tokio::join!(listener.accept(), TcpStream::connect(addr));
        let (accepted, connected) = (accepted.expect("accepted").0, connected.expect("connected"));
        let mut watch = Watch { bounded: [true, false], ..Watch::default() };
        assert!(watch.look([&connected, &accepted]), "nothing is to be acknowledged");
        assert_eq!(watch.bounded, [false, false], "who answers again has no bound any more");
        SockRef::from(&accepted).set_tcp_user_timeout(Some(BOUND)).expect("open");
        watch.bounded = [false, true];
        watch.end([&connected, &accepted]);
        assert_eq!(SockRef::from(&accepted).tcp_user_timeout().expect("open"), None, "the next stream finds none");
    }
}
