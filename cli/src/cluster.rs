//! The cluster that a command talks to, found as kubectl finds it, and how it is asked: every answer is waited for with
//! a limit, and what the API server refuses is said in its own words.

use std::{future::Future, path::PathBuf, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use kube::{
    Client, Config, Error,
    config::{KubeConfigOptions, Kubeconfig},
};

/// An API server that has not answered after this is as good as away.
const ANSWER: Duration = Duration::from_secs(15);

/// Which cluster.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ClusterArgs {
    /// The kubeconfig's context.
    #[arg(long, value_name = "CONTEXT")]
    pub(crate) context: Option<String>,
    /// The kubeconfig; else $KUBECONFIG, else ~/.kube/config, else the pod's own account.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// A connection, and the namespace of the context.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

impl ClusterArgs {
    /// Reads the configuration. Nothing is asked yet.
    pub(crate) async fn connect(&self) -> Result<Cluster> {
        let mut config = self.config().await.context("no cluster to talk to: give --kubeconfig or --context")?;
        config.connect_timeout = Some(Duration::from_secs(5));
        config.read_timeout = Some(ANSWER);
        config.write_timeout = Some(ANSWER);
        let namespace = config.default_namespace.clone();
        Ok(Cluster { client: Client::try_from(config)?, namespace })
    }

    async fn config(&self) -> Result<Config> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        match &self.kubeconfig {
            Some(file) => {
                let text = std::fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
                let parsed = Kubeconfig::from_yaml(&text).with_context(|| format!("{}", file.display()))?;
                Ok(Config::from_custom_kubeconfig(parsed, &options).await?)
            }
            None if self.context.is_some() => Ok(Config::from_kubeconfig(&options).await?),
            None => Ok(Config::infer().await?),
        }
    }
}

/// Runs a command that talks to the cluster.
pub(crate) fn block_on<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}

/// What the API server answers; nothing where there is no such object, or no such kind.
pub(crate) async fn find<T>(what: &str, answer: impl Future<Output = kube::Result<T>>) -> Result<Option<T>> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(Ok(found)) => Ok(Some(found)),
        Ok(Err(Error::Api(status))) if status.is_not_found() => Ok(None),
        Ok(Err(error)) => Err(explain(error).context(format!("cannot read {what}"))),
        Err(_) => bail!("cannot read {what}: no answer from the API server within {} s", ANSWER.as_secs()),
    }
}

/// What the API server answers; an error where there is no such object.
pub(crate) async fn read<T>(what: &str, answer: impl Future<Output = kube::Result<T>>) -> Result<T> {
    find(what, answer).await?.ok_or_else(|| anyhow!("the cluster has no {what}"))
}

fn explain(error: Error) -> anyhow::Error {
    match error {
        Error::Api(status) => anyhow!(status.message),
        other => anyhow!(other),
    }
}
