//! The certificate of a server that speaks TLS of its own.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
};

use hauberk_lab::Pod;

use crate::applications::{directory, give};

/// Paths of a certificate and of its key, in the pod's directory.
pub(crate) fn certificate(pod: &Pod) -> [String; 2] {
    let made = rcgen::generate_simple_self_signed([pod.name().to_owned()]).expect("a valid name");
    let files = [("cert.pem", made.cert.pem()), ("key.pem", made.signing_key.serialize_pem())];
    files.map(|(name, pem)| {
        let path = directory(pod).join(name);
        fs::write(&path, pem).expect("the pod's directory is writable");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is ours");
        give(&path);
        path.display().to_string()
    })
}
