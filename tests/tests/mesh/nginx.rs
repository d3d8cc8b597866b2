//! HTTP through the mesh: nginx and curl, one connection for many requests, and a hundred megabytes each way.

use std::{
    any::Any,
    fs::{self, File},
    io::{BufWriter, Write},
    net::SocketAddr,
    path::Path,
};

use hauberk_lab::{Pod, Process};

use crate::{
    applications::{Application, directory, run, serve, show_alone},
    common::pair,
    evidence::{assert_mtls_both_ends, assert_only_tls13, assert_unseen},
};

const ASKED: &str = "asked-over-http-51d0";
const ANSWERED: &str = "answered-over-http-9c27";
const BULK: &str = "bulk-over-http-3ae8";
const MEGABYTE: usize = 1_000_000;
/// Of the capture's buffer: all that passes finds room even if tcpdump gets no turn meanwhile, twice over because each
/// of its blocks ends where the next packet does not fit.
const BUFFER_MIB: u32 = 512;

pub(crate) const HTTP: Application =
    Application { name: "http", port: 8080, start, talk, connections: 1, markers: &[ASKED, ANSWERED] };

#[test]
fn http_requests_share_one_connection_as_both_ends_and_nginx_say() {
    show_alone(&HTTP);
}

#[test]
fn a_hundred_megabytes_up_and_down_arrive_by_hash_and_only_as_tls_on_the_wire() {
    let (lab, client, server) = pair();
    let dir = directory(&server);
    let store = "client_max_body_size 0; location / { dav_methods PUT; }";
    let _nginx = nginx(&server, 8080, &format!("root {}; {store}", dir.display()));
    let [sent, stored, received] = [client.dir().join("sent"), dir.join("stored"), client.dir().join("received")];
    write_bulk(&sent);
    let url = format!("http://{}/stored", server.at(8080));

    let capture = lab.capture_with_buffer(BUFFER_MIB).expect("tcpdump starts");
    let path = |path: &Path| path.display().to_string();
    run(&client, &["curl", "--silent", "--show-error", "--fail", "--upload-file", &path(&sent), &url]);
    run(&client, &["curl", "--silent", "--show-error", "--fail", "--output", &path(&received), &url]);
    let ends = assert_mtls_both_ends(&client, &server, server.at(8080));
    let captured = capture.stop().expect("tcpdump ends");

    let hashes = run(&client, &["sha256sum", &path(&sent), &path(&stored), &path(&received)]);
    let hashes: Vec<_> = hashes.lines().map(|line| &line[..64]).collect();
    assert_eq!(hashes, [hashes[0]; 3], "what was sent, what nginx stored, what came back");
    for file in [&stored, &received] {
        assert_eq!(fs::metadata(file).expect("is there").len(), 100 * MEGABYTE as u64);
    }
    assert_eq!(ends.client.len(), 2, "one connection up, one down");
    assert!(ends.bytes() > 200 * MEGABYTE as u64);
    assert_only_tls13(&captured, &client, &server, ends.bytes());
    assert_unseen(&captured, &[BULK]);
}

/// nginx at every address of the pod, with these directives in its `server` block.
pub(crate) fn nginx(pod: &Pod, port: u16, directives: &str) -> Process {
    let dir = directory(pod);
    let temporary = |kind: &str| format!("{kind}_temp_path tmp-{kind};\n");
    let config = format!(
        "daemon off; worker_processes 1; pid nginx.pid; error_log stderr; events {{}}\n\
         http {{\naccess_log off;\n{}server {{ listen {port}; listen [::]:{port}; {directives} }}\n}}\n",
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(temporary).concat(),
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, config).expect("the pod's directory is writable");
    let [dir, file] = [dir, file].map(|path| path.display().to_string());
    serve(pod, port, &["nginx", "-p", &dir, "-e", "stderr", "-c", &file])
}

fn start(pod: &Pod, port: u16) -> Vec<Box<dyn Any>> {
    let answer = format!("return 200 \"{ANSWERED} $request_uri $connection $connection_requests\\n\";");
    vec![Box::new(nginx(pod, port, &answer))]
}

/// Three requests. curl says how many connections it opened for each; nginx the number of the connection, and of the
/// request on it.
fn talk(client: &Pod, _server: &Pod, at: SocketAddr) {
    let url = format!("http://{at}/{ASKED}");
    let curl = ["curl", "--silent", "--show-error", "--fail", "--write-out", "%{num_connects}\n"];
    let said = run(client, &[&curl[..], &[url.as_str(); 3]].concat());
    let words: Vec<Vec<_>> = said.lines().map(|line| line.split(' ').collect()).collect();
    let connection = words[0][2];
    for (request, opened) in [("1", "1"), ("2", "0"), ("3", "0")] {
        let at = request.parse::<usize>().expect("a number") * 2 - 2;
        assert_eq!(words[at], [ANSWERED, &format!("/{ASKED}"), connection, request], "{said}");
        assert_eq!(words[at + 1], [opened], "{said}");
    }
}

/// A hundred megabytes that no pattern lets shrink, with a marker in every kilobyte.
fn write_bulk(path: &Path) {
    let mut file = BufWriter::new(File::create(path).expect("the pod's directory is writable"));
    let mut state: u64 = 1;
    let mut block = [0; 1000];
    for _ in 0..100 * MEGABYTE / block.len() {
        for word in block.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        block[..BULK.len()].copy_from_slice(BULK.as_bytes());
        file.write_all(&block).expect("there is room");
    }
    file.flush().expect("there is room");
}
