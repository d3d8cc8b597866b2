//! Two meshed pods talk: mTLS, both identities named by both ends.

use hauberk_mesh::{CloseCause, TransportState};

use crate::common::{Server, closed, exchange, identity, pair};

#[test]
fn two_meshed_pods_talk_mtls_and_both_ends_name_both_identities() {
    let (_lab, client, server) = pair();
    let _echo = Server::echo(&server, 7000);
    let answer = exchange(&client, server.at(7000), b"hello").expect("the echo answers");
    assert_eq!(answer, b"hello");
    for pod in [&client, &server] {
        let connection = closed(pod, "the connection closes", |connection| connection.target == server.at(7000));
        assert_eq!(connection.state, Some(TransportState::Mtls));
        assert_eq!(connection.client_identity, Some(identity("client")));
        assert_eq!(connection.server_identity, Some(identity("server")));
        assert_eq!((connection.bytes_to_server, connection.bytes_to_client), (5, 5));
        assert_eq!(connection.close.map(|close| close.cause), Some(CloseCause::Clean));
    }
}
