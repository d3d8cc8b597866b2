//! The servers of all pods: one thread of this process, whose sockets are the pods'. What they do with a connection is
//! set from outside, so that one port is enough and every contender has one fixed target.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use hauberk_lab::Pod;
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::Handle,
    sync::oneshot,
};

/// Where the servers listen.
pub(crate) const PORT: u16 = 7000;
/// What a server says that speaks first.
pub(crate) const GREETING: &[u8; 32] = b"220 this server speaks first. \r\n";
/// What a connection carries before it idles.
pub(crate) const BODY: usize = 1_000_000;
/// One write of bulk data.
pub(crate) const CHUNK: usize = 256 * 1024;
const BACKLOG: u32 = 4096;
/// A peer that takes nothing for so long is gone.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// What a server does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    /// Writes until the client has gone. A thread for each connection.
    Bulk,
    /// Returns what comes. A thread for each connection: least latency.
    EchoThread,
    /// Returns what comes. One thread for all.
    Echo,
    /// Returns one byte and closes.
    EchoOnce,
    /// Speaks first.
    Greet,
    /// Answers one byte with [`BODY`] bytes, then is silent.
    Body,
}

const MODES: [Mode; 6] = [Mode::Bulk, Mode::EchoThread, Mode::Echo, Mode::EchoOnce, Mode::Greet, Mode::Body];

/// The servers' thread. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct App {
    mode: Arc<AtomicU8>,
    handle: Handle,
    /// Dropped first: that is what the thread waits for.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl App {
    pub(crate) fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new().name("servers".to_owned()).spawn(move || {
            // An error is that the sender was dropped, which is the signal.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { mode: Arc::default(), handle, stop: Some(stop), thread: Some(thread) })
    }

    /// What every server does with connections that come from now on.
    pub(crate) fn behave(&self, mode: Mode) {
        self.mode.store(mode as u8, Relaxed);
    }

    /// A server on [`PORT`] of every address of `pod`.
    pub(crate) fn serve(&self, pod: &Pod) -> Result<()> {
        let _inside = self.handle.enter();
        let handle = &self.handle;
        let listener = pod.enter(|| {
            let _inside = handle.enter();
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::from(([0, 0, 0, 0], PORT)))?;
            socket.listen(BACKLOG)
        });
        let listener = listener.with_context(|| format!("a server in pod {}", pod.name()))?;
        self.handle.spawn(accept(listener, self.mode.clone()));
        Ok(())
    }
}

impl Drop for App {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It cannot panic: tasks do, and the runtime catches that.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, mode: Arc<AtomicU8>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                eprintln!("a server cannot accept: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let mode = MODES[usize::from(mode.load(Relaxed))];
        // The client sees what goes wrong with a connection, and the load fails there.
        let _ = stream.set_nodelay(true);
        match mode {
            Mode::Bulk | Mode::EchoThread => {
                thread::spawn(move || blocking(stream, mode));
            }
            Mode::Echo | Mode::EchoOnce | Mode::Greet | Mode::Body => {
                tokio::spawn(async move { evented(stream, mode).await });
            }
        }
    }
}

fn blocking(stream: TcpStream, mode: Mode) -> std::io::Result<()> {
    let mut stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0x5a; CHUNK];
    loop {
        if mode == Mode::Bulk {
            stream.write_all(&buffer)?;
            continue;
        }
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}

async fn evented(mut stream: TcpStream, mode: Mode) -> std::io::Result<()> {
    let mut buffer = [0; 1024];
    match mode {
        Mode::EchoOnce => {
            let count = stream.read(&mut buffer[..1]).await?;
            stream.write_all(&buffer[..count]).await?;
            return Ok(());
        }
        Mode::Greet => stream.write_all(GREETING).await?,
        Mode::Body => {
            stream.read_exact(&mut buffer[..1]).await?;
            send_body(&mut stream).await?;
        }
        _ => {}
    }
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            count if mode == Mode::Echo => stream.write_all(&buffer[..count]).await?,
            _ => {}
        }
    }
}

/// [`BODY`] bytes.
pub(crate) async fn send_body(stream: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
    let mut left = BODY;
    while left > 0 {
        let part = left.min(BLANK.len());
        stream.write_all(&BLANK[..part]).await?;
        left -= part;
    }
    Ok(())
}

static BLANK: [u8; 64 * 1024] = [0x5a; 64 * 1024];
