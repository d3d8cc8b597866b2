//! `hauberk demo` as people run it, the real binaries beside it: it passes, and it can fail.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Output, Stdio},
};

fn demo(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hauberk")).arg("demo").args(args).output().expect("the binary is there")
}

#[test]
fn the_demo_passes() {
    let output = demo(&[]);
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{errors}");
    assert!(said.contains("All as it must be."), "{said}");
    assert_eq!(said.lines().filter(|line| line.contains(" mtls ") && line.contains(" none ")).count(), 5, "{said}");
    assert_eq!(said.lines().filter(|line| line.contains(" cleartext ")).count(), 3, "{said}");
    assert!(!said.contains('\x1b'), "no colours where there is no terminal");
}

#[test]
fn a_hole_in_the_redirection_makes_the_demo_fail() {
    let output = demo(&["--skip-outbound-ports", "8081"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("FAILED  shopper to web-0, HTTP to the pod's address: in the clear on the wire: "), "{said}");
    assert!(said.contains("YES: hello-to-a-pod"), "{said}");
}

#[test]
fn a_demo_that_stays_ends_with_the_signal_and_leaves_nothing() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hauberk"));
    let mut demo = command.args(["demo", "--stay"]).stdout(Stdio::piped()).spawn().expect("the binary is there");
    let mut lines = BufReader::new(demo.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let logs =
        lines.find_map(|line| line.split_once("Logs: ").map(|(_, logs)| logs.trim_end_matches("/*.log").to_owned()));
    let logs = logs.expect("it says what can be tried");
    assert!(std::fs::metadata(&logs).is_ok_and(|dir| dir.is_dir()), "{logs}");
    let kill = Command::new("sh").args(["-c", &format!("kill -INT {}", demo.id())]).status().expect("there is a shell");
    assert!(kill.success() && demo.wait().expect("ends").success());
    assert!(std::fs::metadata(&logs).is_err(), "{logs} is still there");
}
