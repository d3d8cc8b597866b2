//! `MeshStream`: the encrypted byte stream between two proxies, by our own record layer or, as the reference, by rustls'.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
};

use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::{
    leg::Carrier,
    records::{self, Negotiated, RecordStream},
};

/// Which code carries the data once the handshake is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RecordLayer {
    /// Ours.
    #[default]
    Own,
    /// That of rustls.
    Rustls,
}

impl FromStr for RecordLayer {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "own" => Ok(Self::Own),
            "rustls" => Ok(Self::Rustls),
            other => Err(format!("{other:?} is not a record layer: use own or rustls")),
        }
    }
}

/// An encrypted stream whose handshake is over.
pub(crate) enum MeshStream {
    Own(Box<RecordStream>),
    Rustls(Box<TlsStream<TcpStream>>),
}

impl MeshStream {
    /// Shakes hands as the client.
    pub(crate) async fn connect(
        layer: RecordLayer,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        tcp: TcpStream,
    ) -> io::Result<(Self, Negotiated)> {
        match layer {
            RecordLayer::Own => Self::own(records::connect(config, name, tcp).await?),
            RecordLayer::Rustls => Self::rustls(TlsConnector::from(config).connect(name, tcp).await?.into()),
        }
    }

    /// Shakes hands as the server.
    pub(crate) async fn accept(
        layer: RecordLayer,
        config: Arc<ServerConfig>,
        tcp: TcpStream,
    ) -> io::Result<(Self, Negotiated)> {
        match layer {
            RecordLayer::Own => Self::own(records::accept(config, tcp).await?),
            RecordLayer::Rustls => Self::rustls(TlsAcceptor::from(config).accept(tcp).await?.into()),
        }
    }

    fn own((stream, negotiated): (RecordStream, Negotiated)) -> io::Result<(Self, Negotiated)> {
        Ok((Self::Own(Box::new(stream)), negotiated))
    }

    fn rustls(stream: TlsStream<TcpStream>) -> io::Result<(Self, Negotiated)> {
        let common: &rustls::CommonState = match &stream {
            TlsStream::Client(client) => client.get_ref().1,
            TlsStream::Server(server) => server.get_ref().1,
        };
        let negotiated = Negotiated::of(common)?;
        Ok((Self::Rustls(Box::new(stream)), negotiated))
    }
}

impl Carrier for MeshStream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Own(stream) => stream.tcp(),
            Self::Rustls(stream) => stream.get_ref().0,
        }
    }
}

impl AsyncRead for MeshStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Own(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Rustls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for MeshStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Own(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Rustls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Own(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Rustls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Own(stream) => Pin::new(stream).poll_flush(cx),
            Self::Rustls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Own(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Rustls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
