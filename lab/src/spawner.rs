//! Starts the lab's processes from one thread that lives as long as the lab, in a PID namespace of their own.
//!
//! The namespace's first process waits for the end of a pipe that only the lab holds. When the lab ends, however it
//! ends, that process ends, and the kernel kills every other process of the namespace with it, grandchildren too.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Mutex,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};

/// A command to start, and where to say what became of it.
type Request = (Command, SyncSender<io::Result<Child>>);

#[derive(Debug)]
pub(crate) struct Spawner {
    requests: SyncSender<Request>,
    /// Gone once the namespace has ended.
    first: Mutex<Option<(Child, ChildStdin)>>,
}

impl Spawner {
    pub(crate) fn new() -> Result<Self> {
        // One request at a time: callers wait for the answer.
        let (requests, incoming) = sync_channel(0);
        let (ready, first) = sync_channel(1);
        thread::Builder::new().name("lab-spawner".to_owned()).spawn(move || serve(&ready, &incoming))?;
        let first = first.recv().expect("the thread answers first of all")?;
        Ok(Self { requests, first: Mutex::new(Some(first)) })
    }

    pub(crate) fn spawn(&self, command: Command) -> io::Result<Child> {
        let (reply, answer) = sync_channel(1);
        self.requests.send((command, reply)).expect("the thread lives as long as this sender");
        answer.recv().expect("the thread answers every request")
    }

    /// Kills every process that was started here, and what these started; waits until all are gone.
    pub(crate) fn end(&self) {
        if let Some((mut first, pipe)) = self.first.lock().expect("no one panics with the lock held").take() {
            drop(pipe);
            let _ = first.wait();
        }
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        self.end();
    }
}

fn serve(ready: &SyncSender<Result<(Child, ChildStdin)>>, incoming: &Receiver<Request>) {
    let _ = ready.send(first_process());
    while let Ok((mut command, reply)) = incoming.recv() {
        let _ = reply.send(command.spawn());
    }
}

fn first_process() -> Result<(Child, ChildStdin)> {
    unshare(CloneFlags::CLONE_NEWPID).context("cannot make a PID namespace: run this as root")?;
    let mut first = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0).spawn()?;
    let pipe = first.stdin.take().expect("stdin is piped");
    Ok((first, pipe))
}
