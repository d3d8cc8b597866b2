//! A process of the lab: its log, its end, and its end with the handle.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};

/// How long a dropped process may take after SIGTERM.
const DROP_GRACE: Duration = Duration::from_secs(2);
/// How long [`Process::stop`] waits after SIGTERM.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// How much of a log goes into an error.
const TAIL_LINES: usize = 40;

/// A running process. Dropped, it gets SIGTERM, and SIGKILL if that was not enough.
#[derive(Debug)]
pub struct Process(Arc<Shared>);

/// What the handle, the thread that waits for the end, and the lab share.
#[derive(Debug)]
pub(crate) struct Shared {
    name: String,
    pid: Pid,
    log: PathBuf,
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Set when its end was asked for.
    expected: bool,
    /// Set once it has been reaped; from then on its pid may be another's.
    status: Option<ExitStatus>,
}

impl Process {
    pub(crate) fn watch(name: String, child: Child, log: PathBuf) -> Self {
        let pid = Pid::from_raw(child.id().try_into().expect("pids are positive and fit"));
        let shared = Arc::new(Shared { name, pid, log, state: Mutex::default(), ended: Condvar::new() });
        let waiting = shared.clone();
        thread::spawn(move || waiting.reap(child));
        Self(shared)
    }

    /// The end of its log, for errors.
    pub(crate) fn tail(&self) -> String {
        self.0.tail()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// The name that it was started with.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its pid, as the lab's own process sees it.
    pub fn pid(&self) -> u32 {
        self.0.pid.as_raw().unsigned_abs()
    }

    /// What it has written to stdout and stderr so far.
    pub fn log(&self) -> String {
        read_lossy(&self.0.log)
    }

    /// Sends `signal`. An error if it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.0.signal(signal)
    }

    /// How it ended, if it has.
    pub fn exited(&self) -> Option<ExitStatus> {
        self.0.lock().status
    }

    /// Fails, with its log, if it has ended.
    pub fn check_running(&self) -> Result<()> {
        match self.exited() {
            None => Ok(()),
            Some(status) => Err(anyhow!("{} has ended: {status}\n{}", self.name(), self.0.tail())),
        }
    }

    /// Waits for its end.
    pub fn wait_exit(&self, limit: Duration) -> Result<ExitStatus> {
        self.0.lock().expected = true;
        let pending = || anyhow!("{} has not ended within {limit:?}\n{}", self.name(), self.0.tail());
        self.0.wait_exit(limit).ok_or_else(pending)
    }

    /// SIGTERM, and its end; an error if that takes more than 10 s.
    pub fn stop(&self) -> Result<ExitStatus> {
        self.0.lock().expected = true;
        self.signal(Signal::SIGTERM)?;
        self.wait_exit(STOP_GRACE)
    }

    /// SIGKILL, and its end.
    pub fn kill(&self) -> Result<ExitStatus> {
        self.0.lock().expected = true;
        self.signal(Signal::SIGKILL)?;
        self.wait_exit(STOP_GRACE)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.lock().expected = true;
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            if self.0.signal(signal).is_err() || self.0.wait_exit(DROP_GRACE).is_some() {
                return;
            }
        }
    }
}

impl Shared {
    /// Reaps under the lock, so that no signal can reach another process that was given the same pid.
    fn reap(&self, mut child: Child) {
        let _ = waitid(Id::Pid(self.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        let mut state = self.lock();
        state.status = Some(child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0)));
        self.ended.notify_all();
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let state = self.lock();
        match state.status {
            None => kill(self.pid, signal).with_context(|| format!("cannot send {signal} to {}", self.name)),
            Some(status) => Err(anyhow!("{} has already ended: {status}\n{}", self.name, self.tail())),
        }
    }

    fn wait_exit(&self, limit: Duration) -> Option<ExitStatus> {
        let wait = self.ended.wait_timeout_while(self.lock(), limit, |state| state.status.is_none());
        wait.expect("no one panics with the lock held").0.status
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no one panics with the lock held")
    }

    /// For people, when something went wrong: what became of it, and the end of its log.
    pub(crate) fn report(&self) -> String {
        let end = {
            let state = self.lock();
            match (state.status, state.expected) {
                (None, _) => "running".to_owned(),
                (Some(status), true) => format!("ended as asked: {status}"),
                (Some(status), false) => format!("DIED: {status}"),
            }
        };
        format!("{} ({end})\n{}", self.name, self.tail())
    }

    fn tail(&self) -> String {
        let log = read_lossy(&self.log);
        let lines: Vec<_> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        tail.iter().map(|line| format!("  {}: {line}\n", self.name)).collect()
    }
}

fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
