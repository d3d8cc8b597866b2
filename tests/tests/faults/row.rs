//! A row of `docs/faults.md`, and what a client saw, to be compared with it.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use hauberk_lab::{Pod, wait_for};
use hauberk_mesh::{Close, CloseCause, Connection, parse_duration};

use crate::common::{LIMIT, dial};

/// The document.
const DOCUMENT: &str = include_str!("../../../docs/faults.md");
/// What a machine may take that does other things too, beyond what a row says.
const SLACK: Duration = Duration::from_secs(3);

/// One fault, as the document has it.
#[derive(Debug)]
pub(crate) struct Row {
    /// The fault in words; with `_` for spaces, the test's name.
    fault: String,
    sees: String,
    within: Duration,
    causes: Vec<CloseCause>,
    recovers: Option<Duration>,
}

/// What a client saw.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) what: &'static str,
    pub(crate) after: Duration,
}

impl Row {
    /// All rows.
    pub(crate) fn all() -> Vec<Self> {
        let rows = DOCUMENT.lines().filter(|line| line.starts_with("| "));
        rows.filter(|line| !["| fault ", "| ---"].iter().any(|head| line.starts_with(head))).map(Self::parse).collect()
    }

    /// The row of the test with that name.
    pub(crate) fn of(test: &str) -> Self {
        let found = Self::all().into_iter().find(|row| row.test() == test);
        found.unwrap_or_else(|| panic!("docs/faults.md has no row for {test}"))
    }

    /// The test's name.
    pub(crate) fn test(&self) -> String {
        self.fault.replace(' ', "_")
    }

    /// `| fault | sees | within | cause | recovers within |`, `–` for what does not apply.
    fn parse(line: &str) -> Self {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [fault, sees, within, causes, recovers] = cells[..] else { panic!("five cells: {line}") };
        let duration = |text: &str| match text {
            "–" => None,
            "at once" => Some(Duration::ZERO),
            text => Some(parse_duration(&text.replace(' ', "")).unwrap_or_else(|error| panic!("{line}: {error}"))),
        };
        let causes = causes.split(" or ").filter(|cause| *cause != "–");
        Self {
            fault: fault.to_owned(),
            sees: sees.to_owned(),
            within: duration(within).unwrap_or_default(),
            causes: causes.map(|cause| cause.trim_matches('`').parse().expect(line)).collect(),
            recovers: duration(recovers),
        }
    }

    /// Checks what a client saw.
    pub(crate) fn check(&self, seen: &Seen) {
        assert_eq!(seen.what, self.sees, "{}: {seen:?}", self.fault);
        let most = self.within + SLACK;
        assert!(seen.after <= most, "{}: {seen:?}, which is later than {most:?}", self.fault);
    }

    /// Checks what a proxy says of it.
    pub(crate) fn check_cause(&self, record: &Connection) {
        let Close { cause, .. } = record.close.as_ref().expect("closed");
        assert!(self.causes.contains(cause), "{}: {record:#?}", self.fault);
    }

    /// Dials until it is served again; the fault has just been mended.
    pub(crate) fn check_recovery(&self, client: &Pod, to: SocketAddr) {
        let most =
            self.recovers.unwrap_or_else(|| panic!("{}: no time of recovery in the document", self.fault)) + SLACK;
        let what = format!("{}: {to} is served again", self.fault);
        wait_for(&what, most, || {
            let seen = try_echo(client, to, b"served again?");
            Ok(if seen.what == NOTHING { Ok(()) } else { Err(format!("{seen:?}")) })
        })
        .unwrap_or_else(|error| panic!("{error}"));
    }
}

pub(crate) const NOTHING: &str = "nothing";
pub(crate) const RESET: &str = "ECONNRESET";
pub(crate) const REFUSED: &str = "ECONNREFUSED";
pub(crate) const END: &str = "end of file";

/// What a client sees that connects to an echo, says `words` and wants them back.
pub(crate) fn try_echo(client: &Pod, to: SocketAddr, words: &[u8]) -> Seen {
    let begin = Instant::now();
    let echoed = dial(client, to).and_then(|mut stream| {
        stream.write_all(words)?;
        let mut back = vec![0; words.len()];
        stream.read_exact(&mut back).map(|()| back)
    });
    let what = match echoed {
        Ok(back) => {
            assert_eq!(back, words);
            NOTHING
        }
        Err(error) => errno(error.kind()),
    };
    Seen { what, after: begin.elapsed() }
}

/// What a client sees that waits on an open connection, from now on; `limit` is the longest that it waits.
pub(crate) fn next(mut stream: impl Read, begin: Instant) -> Seen {
    let what = match stream.read(&mut [0; 16]) {
        Ok(0) => END,
        Ok(_) => NOTHING,
        Err(error) => errno(error.kind()),
    };
    Seen { what, after: begin.elapsed() }
}

/// What a client sees that connects and waits for what the server says first; and the connection, if there is one.
pub(crate) fn greeting(client: &Pod, to: SocketAddr) -> (Seen, Option<TcpStream>) {
    let begin = Instant::now();
    match dial(client, to) {
        Ok(mut stream) => (next(&mut stream, begin), Some(stream)),
        // A reset may come before the kernel has told of the connection.
        Err(error) => (Seen { what: errno(error.kind()), after: begin.elapsed() }, None),
    }
}

fn errno(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => RESET,
        ErrorKind::ConnectionRefused => REFUSED,
        ErrorKind::UnexpectedEof => END,
        ErrorKind::WouldBlock | ErrorKind::TimedOut => panic!("nothing within {LIMIT:?}"),
        other => panic!("neither a reset nor an end: {other:?}"),
    }
}
