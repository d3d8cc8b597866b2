//! F05: thousands of connections at once, idle between two words.

use std::sync::Arc;

use tokio::{sync::Semaphore, task::JoinSet, time};

use super::client::{Echo, connect, echo, runtime};
use crate::{
    common::pair,
    faults::form::{Form, report},
    scene::PORT,
};

/// Being opened at the same time.
const AT_ONCE: usize = 1000;

#[test]
fn thousands_of_connections_echo_twice_with_a_pause_between() {
    let form = Form::now();
    let (_lab, client, server) = pair();
    let _echo = Echo::start(&server, PORT);
    let (from, to) = (client.ip(), server.at(PORT));
    let echoed = client.enter(|| {
        runtime().block_on(async {
            let opening = Arc::new(Semaphore::new(AT_ONCE));
            let mut all = JoinSet::new();
            for _ in 0..form.connections {
                let opening = opening.clone();
                all.spawn(async move {
                    let place = opening.acquire_owned().await.expect("never closed");
                    let mut stream = connect(from, to).await?;
                    echo(&mut stream).await?;
                    drop(place);
                    time::sleep(form.between).await;
                    echo(&mut stream).await
                });
            }
            all.join_all().await
        })
    });
    let failed: Vec<_> = echoed.iter().filter_map(|result| result.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of {}: {:?}", failed.len(), form.connections, &failed[..failed.len().min(5)]);
    assert_eq!(echoed.len(), form.connections);
    let between = form.between.as_secs();
    report("F05", &format!("{} connections echoed twice, {between} s apart, none failed", form.connections));
}
