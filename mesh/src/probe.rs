//! Probes and lifecycle hooks that the application declared: the webhook re-points them at the proxy's probe listener
//! and puts them in the proxy's environment, the listener performs them on the pod's own address.

use std::time::Duration;

use serde::{Deserialize, Serialize};

terms! {
    /// What kubelet asks for.
    ProbeKind ("probe kind") {
        /// Whether the container gets traffic.
        Readiness = "readiness",
        /// Whether it is restarted.
        Liveness = "liveness",
        /// Whether it has started.
        Startup = "startup",
        /// The lifecycle hook after the start.
        PostStart = "postStart",
        /// The lifecycle hook before the end.
        PreStop = "preStop",
    }
}

impl ProbeKind {
    /// Whether it is a lifecycle hook. Kubelet takes every answer to a hook for a success.
    pub const fn is_hook(self) -> bool {
        matches!(self, Self::PostStart | Self::PreStop)
    }
}

/// One declared probe or hook. At most one for each container and kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Probe {
    /// The application's container.
    pub container: String,
    /// What it is asked for.
    pub kind: ProbeKind,
    /// What is done.
    pub action: ProbeAction,
    /// How long it may take: `timeoutSeconds`, at least 1. Hooks have none of their own: 0 is no limit but kubelet's.
    pub timeout_seconds: u32,
}

/// What a probe does, on the pod's own address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ProbeAction {
    /// Asks by HTTP/1.1; 200 to 399 is success.
    HttpGet {
        /// By TLS, without verification, as kubelet does.
        #[serde(default)]
        https: bool,
        /// Another host than the pod's own address, where it is declared.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        /// The port, resolved.
        port: u16,
        /// Path and query, starting with `/`.
        path: String,
        /// Headers in the order declared; a name may stand twice.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        headers: Vec<(String, String)>,
    },
    /// Opens a connection and closes it.
    TcpSocket {
        /// Another host than the pod's own address, where it is declared.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        /// The port, resolved.
        port: u16,
    },
    /// Asks `grpc.health.v1.Health/Check` in cleartext HTTP/2; SERVING is success.
    Grpc {
        /// The port.
        port: u16,
        /// The service to ask about; empty is the server as a whole.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        service: String,
    },
}

impl ProbeAction {
    /// The port that is asked.
    pub fn port(&self) -> u16 {
        match self {
            Self::HttpGet { port, .. } | Self::TcpSocket { port, .. } | Self::Grpc { port, .. } => *port,
        }
    }
}

impl Probe {
    /// How long it may take, if it says so.
    pub fn timeout(&self) -> Option<Duration> {
        (self.timeout_seconds > 0).then(|| Duration::from_secs(self.timeout_seconds.into()))
    }

    /// Where the listener answers for it: `/probe/<container>/<kind>`.
    pub fn path(&self) -> String {
        format!("/probe/{}/{}", self.container, self.kind)
    }
}
