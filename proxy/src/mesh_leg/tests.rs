//! Two legs, and a pipe between them.

use super::*;
use crate::wire::{OPENED, Open};
use std::io;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, duplex};

type Duplex = MeshLeg<Gathering>;

/// A pipe of a size, which takes what several slices hold in one write, as TLS does.
struct Gathering(DuplexStream, usize);

impl AsyncRead for Gathering {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gathering {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).take(self.1).collect();
        self.poll_write(cx, &all)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}

impl Carrier for Gathering {
    fn tcp(&self) -> &TcpStream {
        unreachable!("nobody asks a pipe for it")
    }
}

/// Two ends with an open stream between them, over a pipe of `size` bytes.
async fn open(size: usize) -> (Duplex, Duplex) {
    let (client, server) = duplex(size);
    let mut client = MeshLeg::client(Gathering(client, size));
    let mut server = MeshLeg::server(Gathering(server, size));
    let asked = Open::bytes(80).expect("a port").encode();
    let (sent, got) = tokio::join!(client.send_control(&asked), poll_fn(|cx| server.poll_control(cx)));
    sent.expect("there is room");
    assert_eq!(got.expect("whole"), Event::Open(Open::bytes(80).expect("a port")));
    let (sent, got) = tokio::join!(server.send_control(&OPENED), poll_fn(|cx| client.poll_control(cx)));
    sent.expect("there is room");
    assert_eq!(got.expect("whole"), Event::Opened);
    (client, server)
}

async fn send(leg: &mut Duplex, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let taken = poll_fn(|cx| leg.poll_send(cx, bytes, false)).await.expect("the peer is there");
        bytes = &bytes[taken..];
    }
    poll_fn(|cx| leg.poll_flush(cx)).await.expect("the peer is there");
}

async fn end(leg: &mut Duplex) {
    poll_fn(|cx| leg.poll_end(cx)).await.expect("the peer is there");
}

/// Everything up to the end, read `step` bytes at a time.
async fn receive(leg: &mut Duplex, step: usize) -> Result<Vec<u8>, LegError> {
    let (mut all, mut buf) = (Vec::new(), vec![0; step]);
    loop {
        match poll_fn(|cx| leg.poll_recv(cx, &mut buf)).await? {
            Received::Data(count) => all.extend_from_slice(&buf[..count]),
            Received::End => return Ok(all),
        }
    }
}

#[tokio::test]
async fn the_end_goes_with_the_last_bytes_and_only_behind_all_of_them() {
    // Pipes that take everything at once, a byte at a time, and anything between.
    for size in [1, 3, 4, 5, 7, 64, 100_000, 1_000_000] {
        let (mut client, mut server) = open(size).await;
        let bytes: Vec<u8> = (0..3 * wire::MAX_DATA_SENT + 5).map(|i| i as u8).collect();
        let sending = async {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let taken = poll_fn(|cx| client.poll_send(cx, rest, true)).await.expect("the peer is there");
                rest = &rest[taken..];
            }
            let with_them = client.writing.ending;
            end(&mut client).await;
            with_them
        };
        let (with_them, got) = tokio::join!(sending, receive(&mut server, 70_000));
        assert!(got.expect("whole") == bytes, "over {size} bytes");
        assert!(with_them || size <= bytes.len(), "where there is room, the end goes with the last of them");
        assert!(client.writing.between_frames() && server.reading.ended());
    }
}

#[tokio::test]
async fn bytes_arrive_as_sent_through_any_pipe_and_any_buffer() {
    let sent: Vec<u8> = (0..100_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
    for (pipe, step) in [(1, 4096), (64, 3), (70_000, 65_536), (5000, 17)] {
        let (mut client, mut server) = open(pipe).await;
        let up = async {
            send(&mut client, &sent).await;
            end(&mut client).await;
        };
        let ((), got) = tokio::join!(up, receive(&mut server, step));
        assert!(got.expect("a clean end") == sent, "pipe {pipe}, step {step}");
    }
}

#[tokio::test]
async fn after_a_clean_end_both_ways_another_stream_may_begin() {
    let (mut client, mut server) = open(1000).await;
    end(&mut client).await;
    assert!(!client.next_stream(), "the server has not ended");
    assert_eq!(receive(&mut server, 10).await.expect("clean"), b"");
    send(&mut server, b"late").await;
    end(&mut server).await;
    assert_eq!(receive(&mut client, 10).await.expect("clean"), b"late");
    assert!(client.is_quiet() && client.next_stream() && server.next_stream() && server.before_stream());
}

#[tokio::test]
async fn a_stream_that_is_cut_is_truncated_never_ended() {
    let (mut client, mut server) = open(1000).await;
    send(&mut client, b"half").await;
    drop(client);
    let error = receive(&mut server, 10).await.expect_err("no END came");
    assert!(matches!(error, LegError::Truncated), "{error}");
}

#[tokio::test]
async fn a_reset_crosses_as_a_reset() {
    let (mut client, mut server) = open(1000).await;
    send(&mut client, b"some").await;
    client.reset();
    let error = receive(&mut server, 4).await.expect_err("reset");
    assert!(matches!(error, LegError::Reset), "{error}");
    assert!(!server.next_stream());
}

/// The client has ended its direction, and the server knows; nothing more has come.
async fn half_ended() -> (Duplex, Duplex) {
    let (mut client, mut server) = open(1000).await;
    end(&mut client).await;
    assert_eq!(receive(&mut server, 10).await.expect("clean"), b"");
    assert!(server.poll_broken(&mut Context::from_waker(Waker::noop())).is_pending());
    (client, server)
}

async fn broken(leg: &mut Duplex) -> LegError {
    poll_fn(|cx| leg.poll_broken(cx)).await
}

#[tokio::test]
async fn after_the_peers_end_a_break_is_still_told() {
    let (mut client, mut server) = half_ended().await;
    client.reset();
    assert!(matches!(broken(&mut server).await, LegError::Reset));
    let (client, mut server) = half_ended().await;
    drop(client);
    assert!(matches!(broken(&mut server).await, LegError::Truncated));
    let (mut client, mut server) = half_ended().await;
    client.writing = Writing::IDLE;
    end(&mut client).await;
    assert!(matches!(broken(&mut server).await, LegError::Protocol(_)), "a second END");
}

#[tokio::test]
async fn what_came_before_a_reset_is_handed_out_before_it() {
    let (mut client, mut server) = open(1000).await;
    send(&mut server, b"the last ").await;
    send(&mut server, b"word").await;
    server.reset();
    let mut buf = [0; 100];
    let received = poll_fn(|cx| client.poll_recv(cx, &mut buf)).await.expect("bytes first");
    assert_eq!((received, &buf[..13]), (Received::Data(13), &b"the last word"[..]));
    let error = receive(&mut client, 100).await.expect_err("then the reset");
    assert!(matches!(error, LegError::Reset), "{error}");
}

#[tokio::test]
async fn a_byte_on_an_idle_connection_is_noticed() {
    let (mut client, mut server) = open(1000).await;
    assert!(client.is_quiet());
    send(&mut server, b"x").await;
    assert!(!client.is_quiet());
}
