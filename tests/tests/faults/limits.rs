//! What is bounded: memory for slow readers, descriptors, patience with silence.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use hauberk_lab::{Pod, wait_for};
use hauberk_mesh::Direction;

use super::{
    form::{Form, report},
    row::{NOTHING, Row, Seen, greeting, try_echo},
};
use crate::{
    common::{LIMIT, Server, dial, pair, proxy_pid, resident},
    scene::PORT,
    streams::{End, Port, fill, last_outbound, metric, only, pass, pattern, rest},
};

#[test]
fn a_reader_is_slow() {
    const READERS: usize = 64;
    /// What a connection may hold in one direction, and what else a page or two is worth.
    const MOST_KIB: u64 = 64 + 16;
    let row = Row::of("a_reader_is_slow");
    let (_lab, client, server) = pair();
    let port = Port::listen(&server, PORT);
    let _echo = Server::echo(&server, PORT + 1);
    let open: Vec<_> = (0..READERS).map(|_| port.connection(&client)).collect();
    open.iter().for_each(|(at_client, at_server)| pass(at_client, at_server, b"awake"));
    let pids = [proxy_pid(&client), proxy_pid(&server)];
    let before = pids.map(resident);
    let sent = thread::scope(|scope| {
        let filling: Vec<_> = open.iter().map(|(at_client, _)| scope.spawn(move || fill(at_client))).collect();
        filling.into_iter().map(|one| one.join().expect("no panic")).collect::<Vec<_>>()
    });
    let after = pids.map(resident);
    let grown: Vec<_> = before.iter().zip(after).map(|(before, after)| after.saturating_sub(*before)).collect();
    assert!(sent.iter().all(|sent| *sent > 1_000_000), "the kernels' buffers are full: {sent:?}");
    for grown in &grown {
        assert!(grown / READERS as u64 <= MOST_KIB, "{grown} KiB more for {READERS} slow readers");
    }
    row.check(&try_echo(&client, server.at(PORT + 1), b"others go on"));
    report(
        "F04",
        &format!(
            "{READERS} slow readers: {} KiB more in the client's proxy, {} KiB in the server's",
            grown[0], grown[1]
        ),
    );
    // And nothing was lost.
    let whole: Vec<_> = open.into_iter().zip(sent).collect();
    thread::scope(|scope| {
        for ((at_client, mut at_server), sent) in whole {
            scope.spawn(move || {
                at_client.shutdown(Shutdown::Write).expect("open");
                let (got, end) = rest(&mut at_server);
                assert_eq!((got.len() as u64, end), (sent, End::Clean));
            });
        }
    });
}

#[test]
fn a_reader_reads_nothing_for_longer_than_a_peer_may_be_silent() {
    /// The bound on what nobody acknowledges is 30 s, and is looked at every 5 s.
    const PAUSE: Duration = Duration::from_secs(40);
    let row = Row::of("a_reader_reads_nothing_for_longer_than_a_peer_may_be_silent");
    let (_lab, client, server) = pair();
    let port = Port::listen(&server, PORT);
    let (up, down) = (port.connection(&client), port.connection(&client));
    [&up, &down].into_iter().for_each(|(at_client, at_server)| pass(at_client, at_server, b"awake"));
    // Every window on the way is closed, those of the legs within the pods too.
    let mut ways = [up, (down.1, down.0)];
    let sent = thread::scope(|scope| {
        let filling = ways.each_ref().map(|(writer, _)| scope.spawn(move || fill(writer)));
        filling.map(|one| one.join().expect("no panic"))
    });
    thread::sleep(PAUSE);
    let begin = Instant::now();
    for ((writer, reader), sent) in ways.iter_mut().zip(sent) {
        writer.shutdown(Shutdown::Write).expect("open");
        let (got, end) = rest(reader);
        assert_eq!((got.len() as u64, end), (sent, End::Clean));
        reader.shutdown(Shutdown::Write).expect("open");
        assert_eq!(rest(writer), (vec![], End::Clean));
    }
    row.check(&Seen { what: NOTHING, after: begin.elapsed() });
    row.check_cause(&last_outbound(&client, port.addr()));
}

/// Lets a pod's proxy have no more than `more` descriptors beyond what it has; gives back how to undo it.
fn limit_descriptors(pod: &Pod, more: usize) -> impl FnOnce() {
    let pid = pod.with_proxy(|proxy| Ok(proxy.pid())).expect("it runs");
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count();
    let (pod, set) = (pod.clone(), move |pod: &Pod, limit: String| {
        // As the proxy's own user, who may set its soft limit; the hard one stays, so that this can be undone.
        let mut prlimit = pod.command_as(pod.spec().redirection.proxy_uid, "prlimit");
        prlimit.args(["--pid".to_owned(), pid.to_string(), format!("--nofile={limit}:")]);
        assert!(prlimit.status().expect("util-linux").success());
    });
    set(&pod, (open + more).to_string());
    move || set(&pod, "4096".to_owned())
}

/// A server that greets each connection and gives back what comes.
fn greeter(pod: &Pod, port: u16) -> Server {
    Server::start(pod, port, |mut stream| {
        let _ = stream.write_all(b"hello");
        crate::common::give_back(stream);
    })
}

fn check_descriptors(row: &Row, client: &Pod, server: &Pod, limited: &Pod) {
    let (_greeter, _echo) = (greeter(server, PORT), Server::echo(server, PORT + 1));
    let to = server.at(PORT);
    let greeted = |stream: &mut TcpStream| {
        let mut greeting = [0; 5];
        stream.read_exact(&mut greeting).expect("served");
    };
    greeted(&mut dial(client, to).expect("the proxy accepts"));
    let undo = limit_descriptors(limited, 10);
    let mut open = Vec::new();
    let seen = loop {
        match greeting(client, to) {
            (seen, Some(stream)) if seen.what == NOTHING => open.push(stream),
            (seen, _) => break seen,
        }
        assert!(open.len() < 100, "there is no limit");
    };
    row.check(&seen);
    assert!(!open.is_empty());
    // Those that are open go on.
    for stream in &mut open {
        stream.write_all(b"still here?").expect("open");
        wait_for("the answer", LIMIT, || {
            let count = stream.peek(&mut [0; 16])?;
            Ok(if count > 0 { Ok(()) } else { Err("an end".to_owned()) })
        })
        .expect("it comes");
    }
    undo();
    let refused = metric(limited, "hauberk_limit_reached_total", &[]);
    let failed = limited.connections().expect("it answers").closed;
    let failed =
        failed.iter().filter(|it| it.close.as_ref().is_some_and(|it| it.cause != hauberk_mesh::CloseCause::Clean));
    let failed: Vec<_> = failed.collect();
    assert!(refused > 0.0 || !failed.is_empty(), "it is counted");
    failed.iter().for_each(|record| row.check_cause(record));
    drop(open);
    row.check_recovery(client, server.at(PORT + 1));
}

#[test]
fn the_clients_proxy_has_no_file_descriptor_left() {
    let row = Row::of("the_clients_proxy_has_no_file_descriptor_left");
    let (_lab, client, server) = pair();
    check_descriptors(&row, &client, &server, &client);
}

#[test]
fn the_servers_proxy_has_no_file_descriptor_left() {
    let row = Row::of("the_servers_proxy_has_no_file_descriptor_left");
    let (_lab, client, server) = pair();
    check_descriptors(&row, &client, &server, &server);
}

#[test]
fn a_client_says_nothing_for_a_minute() {
    let row = Row::of("a_client_says_nothing_for_a_minute");
    let form = Form::now();
    let (_lab, client, server) = pair();
    let port = Port::listen(&server, PORT);
    let begin = Instant::now();
    let (at_client, at_server) = port.connection(&client);
    // Only time can show that nothing happens in it.
    at_server.set_read_timeout(Some(form.silence)).expect("not zero");
    let nothing = (&at_server).read(&mut [0; 1]).expect_err("the client says nothing");
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    at_server.set_read_timeout(Some(LIMIT)).expect("not zero");
    let silence = begin.elapsed();
    pass(&at_client, &at_server, b"at last");
    pass(&at_server, &at_client, b"I was waiting");
    row.check(&Seen { what: NOTHING, after: begin.elapsed().saturating_sub(silence) });
    drop(at_client);
    drop(at_server);
    row.check_cause(&only(&client, Direction::Outbound, port.addr()));
    report("silence", &format!("a client that said nothing for {} s was served after it", form.silence.as_secs()));
}

#[test]
fn a_half_closed_connection_is_silent_for_three_minutes() {
    const SIZE: usize = 10_000_000;
    let row = Row::of("a_half_closed_connection_is_silent_for_three_minutes");
    let form = Form::now();
    let (_lab, client, server) = pair();
    let port = Port::listen(&server, PORT);
    let (mut at_client, mut at_server) = port.connection(&client);
    pass(&at_client, &at_server, b"a request");
    at_client.shutdown(Shutdown::Write).expect("open");
    assert_eq!(rest(&mut at_server), (vec![], End::Clean));
    at_client.set_read_timeout(Some(form.half_closed)).expect("not zero");
    let nothing = at_client.read(&mut [0; 1]).expect_err("the server says nothing");
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    at_client.set_read_timeout(Some(LIMIT)).expect("not zero");
    let (begin, sent) = (Instant::now(), pattern(SIZE));
    thread::scope(|scope| {
        scope.spawn(|| {
            at_server.write_all(&sent).expect("the other direction is open");
            at_server.shutdown(Shutdown::Write).expect("open");
        });
        let (got, end) = rest(&mut at_client);
        assert!(got == sent && end == End::Clean, "{} bytes, {end:?}", got.len());
    });
    row.check(&Seen { what: NOTHING, after: begin.elapsed() });
    drop((at_client, at_server));
    row.check_cause(&last_outbound(&client, port.addr()));
    let (silence, took) = (form.half_closed.as_secs(), begin.elapsed().as_millis());
    report("F07", &format!("half-closed, {silence} s of silence, then {SIZE} bytes, the same, in {took} ms"));
}
