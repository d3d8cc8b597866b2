//! One GET as kubelet does it: its headers, no verification of certificates, its redirects, a bounded answer.

use std::{future::pending, io, sync::Arc, time::Duration};

use ::http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri,
    header::{ACCEPT, CONNECTION, CONTENT_LENGTH, HOST, LOCATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT},
};
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs::default_provider},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    location::{Place, request_path},
    perform::{Fault, connect},
};

/// Requests of one probe: the declared one, and those that redirects lead to.
const REQUESTS: usize = 10;
/// What is read of an answer's body before it is enough.
const BODY: usize = 10 * 1024;
/// What an answer's header may have.
const HEAD: usize = 64 * 1024;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Get<'a> {
    pub(super) https: bool,
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) path: &'a str,
    pub(super) headers: &'a [(String, String)],
    /// Who kubelet says it is.
    pub(super) agent: &'a str,
}

/// The status that the application answers in the end. The caller limits the time; `limit` is for one connect.
pub(super) async fn get(get: &Get<'_>, limit: Duration) -> Result<StatusCode, Fault> {
    let (mut headers, declared_host) = headers(get)?;
    let path = request_path(get.path);
    let mut place = Place { https: get.https, host: get.host.to_owned(), port: Some(get.port), path };
    let mut host = declared_host.clone();
    for _ in 0..REQUESTS {
        let authority = place.authority();
        headers.insert(HOST, value(host.as_deref().unwrap_or(&authority))?);
        let response = ask(&place, headers.clone(), limit).await?;
        let status = response.status;
        if status.is_informational() {
            return Err(Fault::Status(status.as_u16()));
        }
        let Some(location) = response.location.filter(|_| is_redirect(status)) else { return Ok(status) };
        let to = place.follow(&location).ok_or(Fault::Location)?;
        // Kubelet leaves it at that, and takes it for a success: another host says nothing of this pod.
        if to.place.host != get.host {
            return Ok(status);
        }
        host = declared_host.clone().filter(|_| to.relative);
        place = to.place;
    }
    Err(Fault::Redirects)
}

/// 304 has no place to go to, 300 leaves the choice to the client.
fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// The headers of every request but `Host`, and that one if it was declared. A name may stand twice, in order; names of
/// the connection's own are the connection's.
fn headers(get: &Get<'_>) -> Result<(HeaderMap, Option<String>), Fault> {
    let mut headers = HeaderMap::new();
    let mut host = None;
    for (name, text) in get.headers {
        let name: HeaderName = name.parse().map_err(|_| Fault::Request(format!("{name:?} is no header")))?;
        match name {
            HOST => drop(host.get_or_insert_with(|| text.clone())),
            CONNECTION | CONTENT_LENGTH | TE | TRAILER | TRANSFER_ENCODING | UPGRADE => {}
            _ => drop(headers.append(name, value(text)?)),
        }
    }
    // Declared without a value: not sent.
    for (name, default) in [(USER_AGENT, get.agent), (ACCEPT, "*/*")] {
        match headers.get(&name) {
            None => drop(headers.insert(name, value(default)?)),
            Some(declared) if declared.is_empty() => drop(headers.remove(name)),
            Some(_) => {}
        }
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok((headers, host.filter(|host| !host.is_empty())))
}

fn value(text: &str) -> Result<HeaderValue, Fault> {
    HeaderValue::from_str(text).map_err(|_| Fault::Request(format!("{text:?} is no value of a header")))
}

/// What matters of an answer.
struct Answer {
    status: StatusCode,
    location: Option<String>,
}

async fn ask(place: &Place, headers: HeaderMap, limit: Duration) -> Result<Answer, Fault> {
    let uri: Uri = place.path.parse().map_err(|_| Fault::Request(format!("{:?} is no path", place.path)))?;
    let mut request = Request::new(Empty::<Bytes>::new());
    (*request.uri_mut(), *request.headers_mut()) = (uri, headers);
    let tcp = connect(&place.host, place.port(), limit).await?;
    match place.https {
        true => exchange(tls(tcp, &place.host).await?, request).await,
        false => exchange(tcp, request).await,
    }
}

async fn exchange(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<Answer, Fault> {
    let (mut sender, connection) = http1::Builder::new()
        .title_case_headers(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .max_buf_size(HEAD)
        .handshake(TokioIo::new(io))
        .await?;
    let carry = async {
        // How it ends, the request is told.
        let _ = connection.await;
        pending().await
    };
    let talk = async {
        let response = sender.send_request(request).await?;
        let (status, location) = (response.status(), location(&response));
        read(response.into_body()).await?;
        Ok(Answer { status, location })
    };
    tokio::select! {
        answer = talk => answer,
        never = carry => never,
    }
}

fn location(response: &Response<Incoming>) -> Option<String> {
    let location = response.headers().get(LOCATION)?;
    Some(String::from_utf8_lossy(location.as_bytes()).into_owned()).filter(|location| !location.is_empty())
}

/// Reads the body as far as kubelet would: one that breaks off before is a failure.
async fn read(mut body: Incoming) -> Result<(), hyper::Error> {
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        read += frame?.data_ref().map_or(0, Bytes::len);
        if read >= BODY {
            break;
        }
    }
    Ok(())
}

async fn tls(tcp: TcpStream, host: &str) -> Result<TlsStream<TcpStream>, Fault> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| Fault::Request(format!("{host:?} is no host")))?;
    TlsConnector::from(config()).connect(name, tcp).await.map_err(not_tls)
}

/// Whether what came was no TLS at all, or TLS that failed.
fn not_tls(error: io::Error) -> Fault {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    match tls {
        Some(TlsError::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => Fault::NotTls,
        _ => Fault::Tls(error),
    }
}

/// TLS 1.2 or 1.3, HTTP/1.1, whoever the server is.
fn config() -> Arc<ClientConfig> {
    let provider = Arc::new(default_provider());
    let verifier = Arc::new(Anyone(provider.clone()));
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.expect("the provider has the suites of both versions").dangerous();
    let mut config = builder.with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// Takes every certificate, as kubelet does: a probe asks whether the application works, not who it is.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
