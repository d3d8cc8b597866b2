//! Ctrl-C and SIGTERM as something to ask for and to wait for, so that what was started is taken down in order.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

/// From its making on, Ctrl-C and SIGTERM do not end the process; whoever holds this does.
#[derive(Debug)]
pub(crate) struct Interrupt(Receiver<()>);

impl Interrupt {
    pub(crate) fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let _inside = runtime.enter();
        let mut signals = [SignalKind::interrupt(), SignalKind::terminate()].map(signal).into_iter();
        let (mut interrupt, mut terminate) = match (signals.next(), signals.next()) {
            (Some(Ok(interrupt)), Some(Ok(terminate))) => (interrupt, terminate),
            _ => bail!("cannot listen for signals"),
        };
        drop(_inside);
        let (heard, said) = sync_channel(1);
        thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
            });
            let _ = heard.send(());
        })?;
        Ok(Self(said))
    }

    /// Fails if there was one.
    pub(crate) fn check(&self) -> Result<()> {
        match self.0.recv_timeout(Duration::ZERO) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => bail!("interrupted"),
        }
    }

    /// Waits for one.
    pub(crate) fn wait(&self) -> Result<()> {
        self.0.recv().context("the thread that listens for signals has ended")
    }
}
