//! A way to the API server that the test can cut.

use std::{io, net::SocketAddr};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// Carries connections to the API server, from any network namespace that its listener is in.
pub(super) struct Relay {
    pub(super) at: SocketAddr,
    open: watch::Sender<bool>,
    _accepting: JoinSet<()>,
}

impl Relay {
    /// From `listener` to `to`.
    pub(super) fn start(listener: std::net::TcpListener, to: SocketAddr) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let (listener, open) = (TcpListener::from_std(listener)?, watch::Sender::new(true));
        let (at, state) = (listener.local_addr()?, open.subscribe());
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut carried = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                carried.spawn(carry(stream, to, state.clone()));
            }
        });
        Ok(Self { at, open, _accepting: accepting })
    }

    /// Ends what is open, and all that comes, until it is mended.
    pub(super) fn cut(&self) {
        self.open.send_replace(false);
    }

    pub(super) fn mend(&self) {
        self.open.send_replace(true);
    }
}

async fn carry(mut from: TcpStream, to: SocketAddr, mut open: watch::Receiver<bool>) {
    if !*open.borrow_and_update() {
        return;
    }
    let Ok(mut to) = TcpStream::connect(to).await else { return };
    tokio::select! {
        _ = copy_bidirectional(&mut from, &mut to) => {}
        _ = open.changed() => {}
    }
}
