//! PostgreSQL through the mesh: psql, with a password, in the clear and with TLS of its own inside ours.

use std::{any::Any, fs, net::SocketAddr};

use hauberk_lab::Pod;

use crate::{
    applications::{Application, USER, directory, run, serve, show_alone},
    certificate::certificate,
};

const ROW: &str = "a-row-of-postgresql-08f5";
const PASSWORD: &str = "secret";

pub(crate) const POSTGRESQL: Application =
    Application { name: "postgresql", port: 5432, start, talk, connections: 2, markers: &[ROW] };

#[test]
fn postgresql_answers_through_the_mesh_with_and_without_its_own_tls() {
    show_alone(&POSTGRESQL);
}

fn start(pod: &Pod, port: u16) -> Vec<Box<dyn Any>> {
    let dir = directory(pod).display().to_string();
    let (data, password) = (format!("{dir}/data"), format!("{dir}/password"));
    fs::write(&password, PASSWORD).expect("the pod's directory is writable");
    let programs = run(pod, &["pg_config", "--bindir"]);
    let program = |name: &str| format!("{}/{name}", programs.trim());
    let mut initdb = pod.command_as(USER, program("initdb"));
    initdb.args(["--no-sync", "--no-locale", "--encoding=UTF8", "--auth=scram-sha-256", "--username=app"]);
    initdb.args(["--pgdata", &data, "--pwfile", &password]);
    let made = initdb.output().expect("initdb is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let [cert, key] = certificate(pod);
    let hba = format!("{data}/pg_hba.conf");
    fs::write(hba, "host all all all scram-sha-256\n").expect("the pod's directory is writable");
    let settings = [
        "listen_addresses=*".to_owned(),
        "unix_socket_directories=".to_owned(),
        "fsync=off".to_owned(),
        "ssl=on".to_owned(),
        format!("ssl_cert_file={cert}"),
        format!("ssl_key_file={key}"),
    ];
    let settings = settings.iter().flat_map(|setting| ["-c", setting]).collect::<Vec<_>>();
    let (postgres, port_text) = (program("postgres"), port.to_string());
    vec![Box::new(serve(pod, port, &[&[&postgres, "-D", &data, "-p", &port_text], &settings[..]].concat()))]
}

/// One connection in the clear, one with TLS; the server itself says which is which.
fn talk(client: &Pod, server: &Pod, at: SocketAddr) {
    let query = format!("select ssl, '{ROW}-' || 6 * 7 from pg_stat_ssl where pid = pg_backend_pid()");
    let roots = directory(server).join("cert.pem").display().to_string();
    for (mode, ssl) in [("disable", "f"), ("verify-ca", "t")] {
        let (ip, port) = (at.ip(), at.port());
        let to = format!(
            "host={ip} port={port} user=app password={PASSWORD} dbname=postgres sslmode={mode} sslrootcert={roots}"
        );
        let said = run(client, &["psql", "--no-psqlrc", "--tuples-only", "--no-align", "--command", &query, &to]);
        assert_eq!(said.trim(), format!("{ssl}|{ROW}-42"), "sslmode={mode}");
    }
}
