//! `hauberk inject` and `hauberk uninject`: manifests in, the same manifests with or without the mesh out. By default
//! only a label is set, and the cluster's webhook does the rest when the pods are made.

mod files;
mod plan;

use std::path::PathBuf;

use anyhow::Result;
use hauberk_mesh::TlsMode;

use plan::{Outcome, Wish};

/// Puts the workloads of manifests into the mesh.
///
/// Prints the manifests with the label hauberk.dev/inject=enabled on each pod, pod template and namespace: when the pods
/// are made, the webhook does the rest. Comments and order stay.
///
///   hauberk inject -f app.yaml | kubectl apply -f -
///   kubectl get deploy -o yaml | hauberk inject - | kubectl apply -f -
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct InjectOptions {
    #[command(flatten)]
    files: Files,
    /// Also set the mode: optional, required or disabled.
    #[arg(long, value_name = "MODE")]
    tls: Option<TlsMode>,
}

/// Takes the workloads of manifests out of the mesh.
///
/// Prints the manifests without the labels and annotations that `hauberk inject` sets. Comments and order stay.
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

/// Prints the manifests with the label.
pub(crate) fn inject(options: &InjectOptions) -> Result<bool> {
    options.files.change(&Wish::Join { tls: options.tls })
}

/// Prints the manifests without it.
pub(crate) fn uninject(options: &UninjectOptions) -> Result<bool> {
    options.files.change(&Wish::Leave)
}

impl Files {
    /// Everything is read and changed before anything is printed: kubectl gets all or nothing.
    fn change(&self, wish: &Wish) -> Result<bool> {
        let paths: Vec<_> = self.filename.iter().chain(&self.paths).cloned().collect();
        let mut printed = String::new();
        for file in files::read(&paths, self.recursive)? {
            let changed = plan::change(&file.text, wish).map_err(|why| why.context(file.name.clone()))?;
            report(&file.name, &changed.outcomes);
            plan::join(&mut printed, &changed.text);
        }
        print!("{printed}");
        Ok(true)
    }
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
