//! Applications that are probed: raw bytes over TCP or TLS, so that what they get and say is exactly what a test has.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use ::http::{HeaderMap, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Bytes, Frame},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ServerConfig, SupportedProtocolVersion, crypto::aws_lc_rs::default_provider, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::LOCAL;

/// An application, and what it was asked. Dropped, it is gone.
pub(super) struct Application {
    pub(super) port: u16,
    heads: Arc<Mutex<Vec<String>>>,
    accepted: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Application {
    /// Answers the n-th request with the n-th of `answers`, and every further one with the last; then closes.
    pub(super) async fn saying(answers: &[&str]) -> Self {
        Self::over(None, answers).await
    }

    /// The same by TLS of `version`, with a certificate that nobody would believe.
    pub(super) async fn saying_by_tls(version: &'static SupportedProtocolVersion, answers: &[&str]) -> Self {
        Self::over(Some(acceptor(version)), answers).await
    }

    async fn over(tls: Option<TlsAcceptor>, answers: &[&str]) -> Self {
        let answers: Vec<_> = answers.iter().map(|answer| (*answer).to_owned()).collect();
        Self::serve(move |tcp, heads| {
            let (tls, answers) = (tls.clone(), answers.clone());
            async move {
                match tls {
                    None => say(tcp, &heads, &answers).await,
                    Some(tls) => match tls.accept(tcp).await {
                        Ok(stream) => say(stream, &heads, &answers).await,
                        Err(_) => heads.lock().expect("no panic").push("no handshake".to_owned()),
                    },
                }
            }
        })
        .await
    }

    /// Answers each request once `released` says so.
    pub(super) async fn when(released: Arc<Notify>, answer: &'static str) -> Self {
        Self::serve(move |mut tcp, heads| {
            let released = released.clone();
            async move {
                let head = head(&mut tcp).await;
                heads.lock().expect("no panic").push(head);
                released.notified().await;
                tcp.write_all(answer.as_bytes()).await.expect("the probe waits");
            }
        })
        .await
    }

    /// gRPC's health service: `SERVING` for `serves`, `NOT_SERVING` for "", an error for anything else.
    pub(super) async fn health(serves: &'static str) -> Self {
        Self::serve(move |tcp, heads| async move {
            let service = service_fn(move |request: ::http::Request<hyper::body::Incoming>| {
                let heads = heads.clone();
                async move {
                    let agent = request.headers()["user-agent"].to_str().expect("text").to_owned();
                    let head = format!(
                        "{} {} {agent}",
                        request.uri(),
                        request.headers()["content-type"].to_str().expect("text")
                    );
                    heads.lock().expect("no panic").push(head);
                    let asked = request.into_body().collect().await.expect("whole").to_bytes();
                    // One field of a string, behind the five bytes of a message's header.
                    let name =
                        asked.get(7..).map(|name| String::from_utf8_lossy(name).into_owned()).unwrap_or_default();
                    Ok::<_, std::convert::Infallible>(health_answer(if name == serves {
                        Some(1)
                    } else if name.is_empty() {
                        Some(2)
                    } else {
                        None
                    }))
                }
            });
            let connection = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tcp), service);
            let _ = connection.await;
        })
        .await
    }

    async fn serve<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream, Arc<Mutex<Vec<String>>>) -> F + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(SocketAddr::new(LOCAL, 0)).await.expect("a free port");
        let port = listener.local_addr().expect("it listens").port();
        let (heads, accepted) = (Arc::new(Mutex::default()), Arc::new(AtomicUsize::new(0)));
        let (told, counted) = (heads.clone(), accepted.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.expect("descriptors are free");
                counted.fetch_add(1, Relaxed);
                open.spawn(serve(tcp, told.clone()));
            }
        });
        Self { port, heads, accepted, _task: task }
    }

    /// The heads of all requests so far.
    pub(super) fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("no panic").clone()
    }

    /// How many connections it has accepted.
    pub(super) fn accepted(&self) -> usize {
        self.accepted.load(Relaxed)
    }
}

async fn say(mut io: impl AsyncRead + AsyncWrite + Unpin, heads: &Mutex<Vec<String>>, answers: &[String]) {
    let head = head(&mut io).await;
    let number = {
        let mut heads = heads.lock().expect("no panic");
        heads.push(head);
        heads.len()
    };
    let answer = answers.get(number - 1).or(answers.last()).expect("an answer");
    // Who does not wait for it is the test's.
    let _ = io.write_all(answer.as_bytes()).await;
    let _ = io.shutdown().await;
}

async fn head(io: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match io.read_u8().await {
            // TLS, where nobody speaks it: servers of HTTP answer at once that they do not understand.
            Ok(22) if head.is_empty() => return "a ClientHello".to_owned(),
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).expect("text")
}

fn health_answer(
    status: Option<u8>,
) -> Response<impl hyper::body::Body<Data = Bytes, Error = std::convert::Infallible> + Send> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", if status.is_some() { "0" } else { "5" }.parse().expect("a value"));
    trailers.insert("grpc-message", "a-secret".parse().expect("a value"));
    let message = status.map(|status| Frame::data(Bytes::from(vec![0, 0, 0, 0, 2, 8, status])));
    let frames = message.into_iter().chain([Frame::trailers(trailers)]).map(Ok);
    let mut response = Response::new(StreamBody::new(tokio_stream::iter(frames)));
    response.headers_mut().insert("content-type", "application/grpc".parse().expect("a value"));
    response
}

/// A certificate of nobody, for somebody else, long expired.
fn acceptor(version: &'static SupportedProtocolVersion) -> TlsAcceptor {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec!["elsewhere.example".to_owned()]).expect("a name");
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(2000, 1, 1), rcgen::date_time_ymd(2001, 1, 1));
    let certificate = params.self_signed(&key).expect("signed").der().clone();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .expect("a pair");
    TlsAcceptor::from(Arc::new(config))
}
