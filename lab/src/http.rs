//! The least HTTP client that reads an admin port: one GET, the whole answer, bounded in size and time.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};

/// How long the server may be silent.
const SILENCE: Duration = Duration::from_secs(5);
/// A thousand closed connections of 1 KB each, and room.
const LARGEST_ANSWER: u64 = 16 << 20;

/// Status and body. HTTP/1.0, so that the answer is neither chunked nor kept open.
pub(crate) fn get(addr: SocketAddr, path: &str) -> Result<(u16, String)> {
    request(addr, path).with_context(|| format!("GET http://{addr}{path}"))
}

fn request(addr: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&addr, SILENCE)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(LARGEST_ANSWER).read_to_end(&mut answer)?;
    parse(&String::from_utf8(answer)?)
}

fn parse(answer: &str) -> Result<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| anyhow!("not an answer: {answer:?}"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(|| anyhow!("no status in {head:?}"))?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        let answer = "HTTP/1.0 503 Service Unavailable\r\ncontent-length: 7\r\n\r\nnot yet";
        assert_eq!(parse(answer).expect("an answer"), (503, "not yet".to_owned()));
        for broken in ["", "HTTP/1.0 200 OK\r\n", "HTTP/1.0\r\n\r\n", "HTTP/1.0 many\r\n\r\n"] {
            assert!(parse(broken).is_err(), "{broken:?}");
        }
    }
}
