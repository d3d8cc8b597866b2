//! A leg: one side of a relayed connection. Whole connections here; streams of `hauberk/1` in `mesh_leg`.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use hauberk_mesh::CloseCause;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use crate::{
    linkerd::HeaderError,
    socket,
    wire::{MAX_DATA_SENT, WireError},
};

/// What is read from an application at once: it makes full frames in full TLS records, four to a write.
pub(crate) const ONE_WRITE: usize = FRAMES_PER_WRITE * MAX_DATA_SENT;
/// Most connections whose one direction ends are over by then: only beyond it is it worth five system calls to be told of a
/// reset.
const AGREES: Duration = Duration::from_millis(20);
/// Frames that a mesh leg hands to TLS at once.
pub(crate) const FRAMES_PER_WRITE: usize = 4;

/// What came from a leg.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// So many bytes, at least one.
    Data(usize),
    /// The peer has ended its direction.
    End,
}

/// How a leg failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LegError {
    #[error("reset")]
    Reset,
    #[error("ended without the end of the stream")]
    Truncated,
    #[error("the peer stopped answering")]
    TimedOut,
    #[error(transparent)]
    Protocol(#[from] WireError),
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error(transparent)]
    Io(io::Error),
}

impl LegError {
    pub(crate) fn cause(&self) -> CloseCause {
        match self {
            Self::Reset => CloseCause::Reset,
            Self::Truncated => CloseCause::Truncated,
            Self::TimedOut => CloseCause::PeerTimeout,
            Self::Protocol(_) | Self::Header(_) => CloseCause::ProtocolError,
            Self::Io(_) => CloseCause::IoError,
        }
    }
}

impl From<io::Error> for LegError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::*;
        match error.kind() {
            ConnectionReset | ConnectionAborted | BrokenPipe => Self::Reset,
            UnexpectedEof => Self::Truncated,
            TimedOut | HostUnreachable | NetworkUnreachable => Self::TimedOut,
            _ => Self::Io(error),
        }
    }
}

/// One side of a relayed connection. After an error or `reset` a leg is only dropped.
pub(crate) trait Leg {
    /// The TCP connection under it.
    fn tcp(&self) -> &TcpStream;

    /// Reads application bytes into `buf`, or the end of the peer's direction.
    fn poll_recv(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<Result<Received, LegError>>;

    /// Takes the first bytes of `buf`. What it did not take must be offered again, unchanged, before anything else. `last`:
    /// our direction ends behind them, and `poll_end` comes next in any case; a leg that can sends the end with them.
    fn poll_send(&mut self, cx: &mut Context<'_>, buf: &[u8], last: bool) -> Poll<Result<usize, LegError>>;

    /// Hands what was taken to the kernel.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>>;

    /// Ends our direction; the other goes on.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>>;

    /// Watches a leg whose peer has ended its direction: ready once the connection breaks all the same.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<LegError>;

    /// Both directions have ended cleanly: closing the connection is no reset.
    fn ended(&mut self) {}

    /// Tells the peer, without waiting, that the connection broke: never a clean end.
    fn reset(&mut self);
}

/// A byte stream over TCP.
pub(crate) trait Carrier: AsyncRead + AsyncWrite + Unpin {
    /// The TCP connection under it.
    fn tcp(&self) -> &TcpStream;

    /// Both directions have ended cleanly.
    fn ended(&self) {}
}

impl Carrier for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }

    fn ended(&self) {
        socket::disarm_reset(self);
    }
}

/// All of a connection: the application's TCP, a peer without mTLS, or TLS behind Linkerd's header, whose end is
/// close_notify.
pub(crate) struct ByteLeg<T> {
    io: T,
    /// Set once the peer has ended its direction and the other goes on.
    breaks: Option<Breaks>,
}

/// How it is noticed that a connection breaks whose peer has ended its direction.
enum Breaks {
    /// Not yet looked for.
    Soon(Pin<Box<Sleep>>),
    Watched(Pin<Box<dyn Future<Output = LegError> + Send>>),
}

impl<T> ByteLeg<T> {
    pub(crate) fn new(io: T) -> Self {
        Self { io, breaks: None }
    }
}

impl<T: Carrier> Leg for ByteLeg<T> {
    fn tcp(&self) -> &TcpStream {
        self.io.tcp()
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<Result<Received, LegError>> {
        let most = buf.len().min(ONE_WRITE);
        let mut buf = ReadBuf::new(&mut buf[..most]);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
        Poll::Ready(Ok(match buf.filled().len() {
            0 => Received::End,
            count => Received::Data(count),
        }))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, buf: &[u8], _: bool) -> Poll<Result<usize, LegError>> {
        Pin::new(&mut self.io).poll_write(cx, buf).map_err(LegError::from)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        Pin::new(&mut self.io).poll_flush(cx).map_err(LegError::from)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LegError>> {
        match ready!(Pin::new(&mut self.io).poll_shutdown(cx)) {
            // The peer has reset or closed both ways meanwhile: reading will tell.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            other => Poll::Ready(other.map_err(LegError::from)),
        }
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<LegError> {
        let breaks = self.breaks.get_or_insert_with(|| Breaks::Soon(Box::pin(sleep(AGREES))));
        if let Breaks::Soon(sleep) = breaks {
            ready!(sleep.as_mut().poll(cx));
            *breaks = Breaks::Watched(Box::pin(watch(self.io.tcp().as_fd().try_clone_to_owned())));
        }
        match breaks {
            Breaks::Watched(watch) => watch.as_mut().poll(cx),
            Breaks::Soon(_) => Poll::Pending,
        }
    }

    fn ended(&mut self) {
        self.io.ended();
    }

    fn reset(&mut self) {
        socket::arm_reset(self.io.tcp());
    }
}

/// Waits until a TCP connection breaks. Once the peer has sent FIN, reading says nothing but "end" any more, whatever
/// comes after: only the socket's error does, and of that a second handle of the socket is told.
async fn watch(socket: io::Result<OwnedFd>) -> LegError {
    let watch = async {
        let socket = TcpStream::from_std(socket?.into())?;
        socket.ready(Interest::ERROR).await?;
        socket.take_error()
    };
    match watch.await {
        Ok(Some(error)) => error.into(),
        Ok(None) => LegError::Reset,
        // No descriptor is free. The next byte will tell.
        Err(_) => std::future::pending().await,
    }
}
