//! Redis through the mesh: pipelined commands, and inline ones, which begin like requests of HTTP.

use std::{
    any::Any,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use hauberk_lab::Pod;

use crate::{
    applications::{Application, directory, run, serve, show_alone},
    common::dial,
};

const VALUE: &str = "a-value-of-redis-64b1";
const INLINE: &str = "an-inline-value-of-redis-d20e";
/// In one go: more than fits into any one buffer on the way.
const PIPELINED: usize = 20_000;

pub(crate) const REDIS: Application =
    Application { name: "redis", port: 6379, start, talk, connections: 3, markers: &[VALUE, INLINE] };

#[test]
fn redis_pipelining_and_inline_commands_work_through_the_mesh() {
    show_alone(&REDIS);
}

fn start(pod: &Pod, port: u16) -> Vec<Box<dyn Any>> {
    let (dir, port_text) = (directory(pod).display().to_string(), port.to_string());
    let listen = ["--port", &port_text, "--bind", "*", "-::*", "--protected-mode", "no"];
    vec![Box::new(serve(pod, port, &[&["redis-server"], &listen[..], &["--save", "", "--dir", &dir]].concat()))]
}

fn talk(client: &Pod, _server: &Pod, at: SocketAddr) {
    pipeline(&mut dial(client, at).expect("redis accepts"));
    pipe(client, at);
    inline(&mut dial(client, at).expect("redis accepts"));
}

/// All commands are sent before the first answer is read.
fn pipeline(redis: &mut TcpStream) {
    let value = |number: usize| format!("{VALUE}-{number:08}");
    let set = |number| command(&["SET", &format!("key-{number}"), &value(number)]);
    let get = |number| command(&["GET", &format!("key-{number}")]);
    let commands: String = (0..PIPELINED).map(set).chain((0..PIPELINED).map(get)).collect();
    redis.write_all(commands.as_bytes()).expect("redis reads");
    let got = |number| format!("${}\r\n{}\r\n", value(number).len(), value(number));
    expect(redis, &("+OK\r\n".repeat(PIPELINED) + &(0..PIPELINED).map(got).collect::<String>()));
}

/// The same by redis-cli's own way to insert many.
fn pipe(client: &Pod, at: SocketAddr) {
    let commands: String = (0..PIPELINED).map(|number| command(&["SET", &number.to_string(), VALUE])).collect();
    let file = client.dir().join("redis-commands");
    fs::write(&file, commands).expect("the pod's directory is writable");
    let redis_cli = format!("redis-cli -h {} -p {} --pipe < {}", at.ip(), at.port(), file.display());
    let said = run(client, &["sh", "-c", &redis_cli]);
    assert!(said.contains(&format!("errors: 0, replies: {PIPELINED}")), "{said}");
}

/// A line each, as people type them; the last three together.
fn inline(redis: &mut TcpStream) {
    let got = format!("${}\r\n{INLINE}\r\n", INLINE.len());
    for (line, answer) in [
        ("PING\r\n", "+PONG\r\n"),
        (&format!("SET k {INLINE}\r\n"), "+OK\r\n"),
        ("GET k\r\n", &got),
        ("GET k\r\nPING\r\nQUIT\r\n", &format!("{got}+PONG\r\n+OK\r\n")),
    ] {
        redis.write_all(line.as_bytes()).expect("redis reads");
        expect(redis, answer);
    }
}

fn expect(redis: &mut TcpStream, answer: &str) {
    let mut said = vec![0; answer.len()];
    redis.read_exact(&mut said).expect("redis answers");
    assert!(said == answer.as_bytes(), "not as expected: {}", String::from_utf8_lossy(&said));
}

/// As an array of bulk strings.
fn command(words: &[&str]) -> String {
    let words = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect::<Vec<_>>();
    format!("*{}\r\n{}", words.len(), words.concat())
}
