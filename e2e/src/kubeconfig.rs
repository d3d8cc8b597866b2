//! Files that tell a client where the API server is, whom to trust and who to be.

use std::{fs, path::Path, path::PathBuf};

use anyhow::Result;
use serde_json::json;

/// Writes `<name>.kubeconfig` in `dir` for the client certificate of that name there. JSON, which is YAML too.
pub(crate) fn write(dir: &Path, name: &str, url: &str) -> Result<PathBuf> {
    let path = dir.join(format!("{name}.kubeconfig"));
    let file = |name: String| dir.join(name).display().to_string();
    let user = json!({ "client-certificate": file(format!("{name}.crt")), "client-key": file(format!("{name}.key")) });
    let document = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": name } }],
        "clusters": [{ "name": "test", "cluster": { "server": url, "certificate-authority": file("ca.crt".into()) } }],
        "users": [{ "name": name, "user": user }],
    });
    fs::write(&path, document.to_string())?;
    Ok(path)
}
