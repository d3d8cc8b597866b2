//! `Agent`: keeps a [`Store`] filled. Asks for a certificate and renews it, follows the trust bundle, keeps both in the
//! pod's volume. One task, one writer; whatever fails is tried again while what is held goes on serving.

mod certify;
mod trust;

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use hauberk_mesh::{IDENTITY_ACCOUNT, IdentityName, InvalidIdentity};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{Credentials, InvalidBundle, Store, TrustBundle, grpc, schedule, volume::Volume};

/// What an [`Agent`] is told.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Who we are.
    pub identity: IdentityName,
    /// Where the identity server answers.
    pub server: SocketAddr,
    /// The ServiceAccount token; read anew each time, kubelet replaces it.
    pub token_file: PathBuf,
    /// Where key, chain and trust bundle are kept for a restart; nowhere if absent.
    pub dir: Option<PathBuf>,
    /// The roots to believe until the identity server has told newer ones.
    pub trust_roots_pem: String,
    /// Longest wait for an answer.
    pub answer: Duration,
    /// Wait after the first failure; doubled with each.
    pub retry_first: Duration,
    /// Longest wait after a failure.
    pub retry_most: Duration,
}

impl AgentConfig {
    /// With the usual waits.
    pub fn new(
        identity: IdentityName,
        server: SocketAddr,
        token_file: PathBuf,
        dir: Option<PathBuf>,
        trust_roots_pem: String,
    ) -> Self {
        Self {
            identity,
            server,
            token_file,
            dir,
            trust_roots_pem,
            answer: Duration::from_secs(10),
            retry_first: Duration::from_millis(250),
            retry_most: Duration::from_secs(30),
        }
    }
}

/// Why an [`Agent`] cannot start. Always the configuration's fault.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The roots that it was given.
    #[error("trust roots: {0}")]
    Roots(#[from] InvalidBundle),
    /// The directory.
    #[error("identity directory {dir}: {source}; it must be writable, or left out")]
    Dir {
        /// Which.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The identity server would have no valid name.
    #[error("the identity server of this trust domain: {0}")]
    Server(#[from] InvalidIdentity),
}

/// Keeps a [`Store`] filled; see [`Agent::run`].
#[derive(Debug)]
pub struct Agent {
    config: AgentConfig,
    server: IdentityName,
    store: Store,
    volume: Option<Volume>,
}

impl Agent {
    /// Reads what the volume holds; the store has a certificate at once if that is still good.
    pub fn new(config: AgentConfig) -> Result<(Self, Store), AgentError> {
        let pinned = TrustBundle::from_pem(0, config.trust_roots_pem.as_bytes())?;
        let domain = config.identity.trust_domain();
        let server = domain.identity(IDENTITY_ACCOUNT, domain.control_namespace())?;
        let open =
            |dir: &PathBuf| Volume::open(dir, &pinned).map_err(|source| AgentError::Dir { dir: dir.clone(), source });
        let volume = config.dir.as_ref().map(open).transpose()?;
        let store = Store::empty(pinned, format!("no answer yet from the identity server at {}", config.server));
        let agent = Self { config, server, store: store.clone(), volume };
        agent.restore();
        Ok((agent, store))
    }

    /// Runs until `stop`. Whoever spawns it sees to its panics; it has no other way to end.
    pub async fn run(self, stop: CancellationToken) {
        let channel = grpc::channel(self.config.server, self.server.clone(), self.store.clone());
        let work =
            async { tokio::join!(self.keep_certified(&channel), self.follow_trust(&channel), self.drop_ended()) };
        tokio::select! {
            () = stop.cancelled() => {}
            _ = work => {}
        }
    }

    fn restore(&self) {
        let Some(volume) = &self.volume else { return };
        match volume.trust() {
            Ok(Some(bundle)) => self.store.put_trust(bundle),
            Ok(None) => {}
            Err(fault) => warn!(%fault, "the trust bundle in the volume is of no use; using the one given at start"),
        }
        let (key, chain) = match volume.credentials() {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(fault) => return warn!(%fault, "the certificate in the volume is of no use; asking for one"),
        };
        let (trust, now) = (self.store.trust(), SystemTime::now());
        match Credentials::new(&self.config.identity, &key, chain, &trust, 1, now) {
            Ok(credentials) => {
                info!(serial = credentials.serial(), "using the certificate in the volume");
                self.store.put(credentials.into());
            }
            Err(fault) => warn!(%fault, "the certificate in the volume is of no use; asking for one"),
        }
    }

    /// Takes the certificate out of the store when it ends: nobody would believe it.
    async fn drop_ended(&self) {
        let mut held = self.store.subscribe();
        loop {
            let current = held.borrow_and_update().clone();
            let ended = async {
                match &current {
                    Some(credentials) => until(credentials.not_after()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = held.changed() => {}
                () = ended => {
                    warn!(identity = %self.config.identity, "the certificate has ended and there is no new one");
                    self.store.take();
                }
            }
        }
    }

    async fn pause(&self, failures: u32) {
        let (first, most) = (self.config.retry_first, self.config.retry_most);
        tokio::time::sleep(schedule::backoff(failures, first, most, rand::random())).await;
    }

    fn volume(&self) -> Option<Volume> {
        self.volume.clone()
    }
}

/// Waits for a time of day. Looks at the clock again and again, because it may be set, and machines sleep.
pub(crate) async fn until(time: SystemTime) {
    while let Ok(left) = time.duration_since(SystemTime::now())
        && !left.is_zero()
    {
        tokio::time::sleep(left.min(Duration::from_secs(30))).await;
    }
}

/// An error with all that caused it: tonic hides the handshake's error behind "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}
