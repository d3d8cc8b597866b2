//! A server that answers and resets while its client is still sending: over TCP the client can read the answer, and so
//! it must through the mesh. Servers refuse uploads like that.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
};

use hauberk_lab::{Lab, PodOptions};

use crate::streams::{Port, lab_of, meshed};

const ANSWER: &[u8] = b"413, and not a byte more";
const ROUNDS: usize = 20;

#[test]
fn without_a_mesh_a_client_that_is_still_sending_reads_the_answer_before_the_reset() {
    let lab = Lab::new().expect("root and iproute2");
    let [client, server] = ["client", "server"].map(|name| lab.pod(PodOptions::new(name)).expect("a pod"));
    let port = Port::listen(&server, 7000);
    (0..ROUNDS).for_each(|_| refuse(port.connection(&client)));
}

#[test]
fn through_the_mesh_a_client_that_is_still_sending_reads_the_answer_before_the_reset() {
    let (_lab, [client, server]) = lab_of([meshed("client"), meshed("server")]);
    let port = Port::listen(&server, 7000);
    (0..ROUNDS).for_each(|_| refuse(port.connection(&client)));
}

#[test]
fn from_a_meshed_pod_to_an_unmeshed_one_it_reads_it_too() {
    let (_lab, [client, server]) = lab_of([meshed("client"), PodOptions::new("server")]);
    let port = Port::listen(&server, 7000);
    (0..ROUNDS).for_each(|_| refuse(port.connection(&client)));
}

/// The client sends until it is told not to; the server has read one byte when it answers and closes.
fn refuse((mut client, mut server): (TcpStream, TcpStream)) {
    std::thread::scope(|scope| {
        let reader = client.try_clone().expect("descriptors are free");
        scope.spawn(move || {
            let chunk = [7; 100_000];
            while client.write_all(&chunk).is_ok() {}
        });
        let mut byte = [0];
        server.read_exact(&mut byte).expect("the client sends");
        // What is there unread makes the close a reset.
        server.peek(&mut byte).expect("the client sends on");
        server.write_all(ANSWER).expect("the client has room");
        drop(server);
        let mut answer = vec![0; ANSWER.len()];
        (&reader).read_exact(&mut answer).expect("the answer comes before the reset");
        assert_eq!(answer, ANSWER);
        // Ends the sender, if the reset has not.
        let _ = reader.shutdown(Shutdown::Both);
    });
}
