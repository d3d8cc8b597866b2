//! Runs nft, iptables and ip: text in, text out, with a time limit. Knows nothing of rules.

use std::{fmt, io, process::Stdio, thread, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command, runtime, time::timeout};

use super::InitError;

/// One call of a tool: what `--dry-run` prints and a real run executes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) tool: &'static str,
    pub(super) args: Vec<&'static str>,
    pub(super) stdin: String,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "# {} {}\n{}", self.tool, self.args.join(" "), self.stdin)
    }
}

/// Longer than the wait for the lock of iptables-legacy, so that its own message is heard.
const LIMIT: Duration = Duration::from_secs(15);

/// What iptables-legacy ends with if it did not get its lock.
const LOCKED: i32 = 4;

/// Runs `call` to its end and gives back its output.
pub(super) fn run(call: &Call) -> Result<String, InitError> {
    let ended = within(LIMIT, call).map_err(|source| failed_to_run(call.tool, source))?;
    let output = ended.ok_or(InitError::ToolTimeout { tool: call.tool, seconds: LIMIT.as_secs() })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    if call.tool.contains("-legacy-") && output.status.code() == Some(LOCKED) {
        return Err(InitError::Lock { tool: call.tool, stderr });
    }
    let command = format!("{} {}", call.tool, call.args.join(" "));
    Err(InitError::ToolFailed { command, status: output.status, stderr })
}

/// On a thread of its own, which shares the network namespace: the caller may be inside a runtime.
fn within(limit: Duration, call: &Call) -> io::Result<Option<std::process::Output>> {
    let work = || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { timeout(limit, exchange(call)).await.ok().transpose() })
    };
    thread::scope(|scope| scope.spawn(work).join()).expect("running a tool does not panic")
}

async fn exchange(call: &Call) -> io::Result<std::process::Output> {
    let pipes = (Stdio::piped(), Stdio::piped(), Stdio::piped());
    let mut command = Command::new(call.tool);
    command.args(&call.args).stdin(pipes.0).stdout(pipes.1).stderr(pipes.2).kill_on_drop(true);
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let write = async {
        // A tool that ends without reading has said why on stderr.
        let _ = stdin.write_all(call.stdin.as_bytes()).await;
        drop(stdin);
    };
    tokio::join!(write, child.wait_with_output()).1
}

fn failed_to_run(tool: &'static str, source: io::Error) -> InitError {
    if source.kind() == io::ErrorKind::NotFound {
        let package = match tool {
            "nft" => "nftables",
            "ip" => "iproute2",
            _ => "iptables",
        };
        return InitError::ToolMissing { tool, package };
    }
    InitError::ToolBroken { tool, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(tool: &'static str, args: &[&'static str], stdin: &str) -> Call {
        Call { tool, args: args.to_vec(), stdin: stdin.to_owned() }
    }

    #[test]
    fn text_goes_in_and_comes_out_also_inside_a_runtime() {
        let large = "x".repeat(1 << 20);
        let runtime = runtime::Builder::new_current_thread().build().expect("a runtime");
        assert_eq!(runtime.block_on(async { run(&call("cat", &[], &large)) }).expect("cat works"), large);
    }

    #[test]
    fn a_tool_that_is_missing_is_named_with_its_package() {
        let error = run(&call("nft-that-is-not-there", &[], "")).expect_err("no such tool").to_string();
        assert!(error.contains("nft-that-is-not-there is not installed: add the Debian package"), "{error}");
    }

    #[test]
    fn a_tool_that_fails_is_quoted() {
        let error = run(&call("sh", &["-c", "echo one >&2; echo two >&2; exit 3"], "unread")).expect_err("fails");
        assert_eq!(error.to_string(), "`sh -c echo one >&2; echo two >&2; exit 3` failed (exit status: 3): one; two");
    }

    #[test]
    fn a_tool_that_hangs_is_killed() {
        let ended = within(Duration::from_millis(1), &call("sleep", &["1000"], "")).expect("sleep starts");
        assert_eq!(ended, None);
    }
}
