//! MariaDB through the mesh. Its server speaks first; then in the clear, or with TLS of its own inside ours.

use std::{
    any::Any,
    fs,
    io::Read,
    net::{Shutdown, SocketAddr},
};

use hauberk_lab::Pod;

use crate::{
    applications::{Application, USER, directory, run, serve, show_alone},
    certificate::certificate,
    common::dial,
};

const ROW: &str = "a-row-of-mariadb-b94d";
const PASSWORD: &str = "secret";

pub(crate) const MARIADB: Application =
    Application { name: "mariadb", port: 3306, start, talk, connections: 3, markers: &[ROW, GREETING] };

/// In the server's first packet, in the clear even with its own TLS.
const GREETING: &str = "10.99.7-a-greeting-of-mariadb-5c11";

#[test]
fn mariadb_speaks_first_through_the_mesh_then_with_and_without_its_own_tls() {
    show_alone(&MARIADB);
}

fn start(pod: &Pod, port: u16) -> Vec<Box<dyn Any>> {
    let dir = directory(pod).display().to_string();
    let (data, grants) = (format!("--datadir={dir}/data"), format!("{dir}/grants.sql"));
    // Each removes at its start what it takes for left over: not another's.
    let temporary = format!("--tmpdir={dir}");
    let mut install = pod.command_as(USER, "mariadb-install-db");
    install.args(["--no-defaults", &data, &temporary, "--skip-test-db", "--auth-root-authentication-method=normal"]);
    let made = install.output().expect("mariadb-install-db is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let sql = format!("create user app@'%' identified by '{PASSWORD}';\n");
    fs::write(&grants, sql).expect("the pod's directory is writable");
    let [cert, key] = certificate(pod);
    let settings = [
        data,
        temporary,
        format!("--port={port}"),
        format!("--init-file={grants}"),
        format!("--ssl-cert={cert}"),
        format!("--ssl-key={key}"),
        format!("--socket={dir}/socket"),
        format!("--pid-file={dir}/pid"),
        format!("--version={GREETING}"),
    ];
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let always = ["mariadbd", "--no-defaults", "--bind-address=*", "--skip-name-resolve"];
    vec![Box::new(serve(pod, port, &[&always[..], &settings].concat()))]
}

/// One connection on which the client says nothing, one in the clear, one with TLS; the server says which is which.
fn talk(client: &Pod, server: &Pod, at: SocketAddr) {
    hear_greeting(client, at);
    let [host, port] = [format!("--host={}", at.ip()), format!("--port={}", at.port())];
    let password = format!("--password={PASSWORD}");
    let query = format!(
        "select concat('{ROW}-', 6 * 7, ' ', variable_value) from information_schema.session_status \
         where variable_name = 'Ssl_version'"
    );
    let roots = format!("--ssl-ca={}", directory(server).join("cert.pem").display());
    for (mode, tls) in [("--skip-ssl", ""), (&roots, "TLSv1.3")] {
        let to = ["mariadb", "--no-defaults", "--user=app", &password, &host, &port, mode];
        let said = run(client, &[&to[..], &["--batch", "--skip-column-names", "--execute", &query]].concat());
        assert_eq!(said.trim_end_matches('\n'), format!("{ROW}-42 {tls}"), "{mode}");
    }
}

/// The client ends without a word; the server has spoken all the same.
fn hear_greeting(client: &Pod, at: SocketAddr) {
    let mut silent = dial(client, at).expect("mariadbd accepts");
    let mut start = [0; 5 + GREETING.len()];
    silent.read_exact(&mut start).expect("mariadbd speaks first");
    // Three bytes of length, one of sequence, one of the protocol's version.
    assert!(start.ends_with(GREETING.as_bytes()), "{}", String::from_utf8_lossy(&start));
    silent.shutdown(Shutdown::Write).expect("mariadbd waits for an answer");
    silent.read_to_end(&mut Vec::new()).expect("a clean end");
}
