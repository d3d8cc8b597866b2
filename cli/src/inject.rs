//! `hauberk inject` and `hauberk uninject`: manifests in, the same manifests with or without the mesh out. By default
//! only a label is set, and the cluster's webhook does the rest when the pods are made.

mod files;
mod known;
mod manual;
mod plan;
mod settings;
mod undo;

use std::path::PathBuf;

use anyhow::{Context, Result};
use hauberk_mesh::{CONTROL_NAMESPACE, TlsMode};

use crate::cluster::{ClusterArgs, block_on};
use files::File;
pub(crate) use known::gather;
use plan::{Changed, Outcome, Wish};

/// Puts the workloads of manifests into the mesh.
///
/// Prints the manifests with the label hauberk.dev/inject=enabled on each pod, pod template and namespace: when the pods
/// are made, the webhook does the rest. Comments and order stay.
///
///   hauberk inject -f app.yaml | kubectl apply -f -
///   kubectl get deploy -o yaml | hauberk inject - | kubectl apply -f -
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, after_long_help = settings::help())]
pub(crate) struct InjectOptions {
    #[command(flatten)]
    files: Files,
    /// Also set the mode: optional, required or disabled.
    #[arg(long, value_name = "MODE")]
    tls: Option<TlsMode>,
    /// Write the whole injection into the manifests, as the webhook would make it now: comments do not stay. The mesh's
    /// settings, addresses and trust roots are read from the cluster.
    #[arg(long)]
    manual: bool,
    /// With --manual: the namespace of objects that name none; else that of the context.
    #[arg(short, long, value_name = "NAMESPACE", requires = "manual")]
    namespace: Option<String>,
    /// With --manual: the namespace of the control plane.
    #[arg(long, value_name = "NAMESPACE", default_value = CONTROL_NAMESPACE)]
    control_namespace: String,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Takes the workloads of manifests out of the mesh.
///
/// Prints the manifests without what `hauberk inject` puts in: the labels and annotations, and the whole injection where
/// --manual wrote it. Where it is labels only, comments and order stay.
///
///   hauberk uninject -f app.yaml | kubectl apply -f -
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct UninjectOptions {
    #[command(flatten)]
    files: Files,
}

/// Which manifests.
#[derive(Debug, clap::Args)]
struct Files {
    /// Files and directories with manifests; - is standard input.
    #[arg(value_name = "FILE", required_unless_present = "filename")]
    paths: Vec<PathBuf>,
    /// The same, as kubectl is told; may be given several times.
    #[arg(short = 'f', long, value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// Also directories in directories.
    #[arg(short = 'R', long)]
    recursive: bool,
}

/// Prints the manifests with the label, or with the whole injection.
pub(crate) fn inject(options: &InjectOptions) -> Result<bool> {
    let wish = Wish::Join { tls: options.tls };
    let files = options.files.read()?;
    if !options.manual {
        return print(&files, |text| plan::change(text, &wish));
    }
    let known = block_on(options.known(&files))?;
    print(&files, |text| {
        let labelled = plan::change(text, &wish)?;
        manual::inject_all(&labelled.text, &known)
    })
}

/// Prints the manifests without the label.
pub(crate) fn uninject(options: &UninjectOptions) -> Result<bool> {
    print(&options.files.read()?, |text| plan::change(text, &Wish::Leave))
}

impl InjectOptions {
    async fn known(&self, files: &[File]) -> Result<manual::Known> {
        let cluster = self.cluster.connect().await?;
        let default = self.namespace.clone().unwrap_or_else(|| cluster.namespace.clone());
        let mut names: Vec<_> = files.iter().flat_map(|file| manual::namespaces(&file.text, &default)).collect();
        names.sort();
        names.dedup();
        gather(&cluster, &self.control_namespace, &default, &names).await
    }
}

impl Files {
    fn read(&self) -> Result<Vec<File>> {
        let paths: Vec<_> = self.filename.iter().chain(&self.paths).cloned().collect();
        files::read(&paths, self.recursive)
    }
}

/// Everything is changed before anything is printed: kubectl gets all or nothing.
fn print(files: &[File], change: impl Fn(&str) -> Result<Changed>) -> Result<bool> {
    let mut printed = String::new();
    for file in files {
        let changed = change(&file.text).with_context(|| file.name.clone())?;
        report(&file.name, &changed.outcomes);
        plan::join(&mut printed, &changed.text);
    }
    print!("{printed}");
    Ok(true)
}

/// What was done goes to stderr: stdout is kubectl's.
fn report(file: &str, outcomes: &[Outcome]) {
    if outcomes.is_empty() {
        eprintln!("{file}: holds no pod, workload or namespace");
    }
    for outcome in outcomes {
        eprintln!("{outcome}");
    }
}
