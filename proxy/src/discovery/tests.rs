//! Discovery against the real destination service over mutual TLS, and against one that says what a test tells it to.

mod real;
mod scripted;

use std::{fmt::Debug, future::Future, net::SocketAddr, time::Duration};

use tokio::{sync::watch, time::timeout};

/// Longer than anything here takes; a test that gets here has failed.
const LONG: Duration = Duration::from_secs(60);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(LONG, future).await.unwrap_or_else(|_| panic!("{what}: nothing within {LONG:?}"))
}

/// Waits until what is held is as `expected`.
async fn becomes<T: Debug + Clone>(held: &mut watch::Receiver<T>, what: &str, expected: impl Fn(&T) -> bool) -> T {
    within(what, held.wait_for(expected)).await.expect("the sender lives").clone()
}

fn addr(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}
