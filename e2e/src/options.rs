//! What a control plane is to be.

use anyhow::Result;

use crate::ControlPlane;

/// What a control plane is to be. Without more: one API server and a controller-manager.
#[derive(Debug, Clone)]
pub struct ControlPlaneOptions {
    pub(crate) api_servers: u16,
    pub(crate) audit: bool,
    pub(crate) scheduler: bool,
    pub(crate) api_flags: Vec<String>,
    pub(crate) manager_flags: Vec<String>,
}

impl Default for ControlPlaneOptions {
    fn default() -> Self {
        Self { api_servers: 1, audit: false, scheduler: false, api_flags: Vec::new(), manager_flags: Vec::new() }
    }
}

impl ControlPlaneOptions {
    /// So many API servers on one etcd: [`ControlPlane::url_of`], [`ControlPlane::client_of`].
    pub fn api_servers(mut self, count: u16) -> Self {
        self.api_servers = count;
        self
    }

    /// Every request is written down, without bodies: [`ControlPlane::audit`].
    pub fn audit(mut self) -> Self {
        self.audit = true;
        self
    }

    /// A scheduler too. There are no nodes unless the test makes some.
    pub fn scheduler(mut self) -> Self {
        self.scheduler = true;
        self
    }

    /// One more flag for every API server: `--name=value`.
    pub fn api_server_flag(mut self, flag: &str) -> Self {
        self.api_flags.push(flag.to_owned());
        self
    }

    /// One more flag for the controller-manager: `--name=value`.
    pub fn controller_manager_flag(mut self, flag: &str) -> Self {
        self.manager_flags.push(flag.to_owned());
        self
    }

    /// Starts it; returns once pods can be created in the namespace `default`.
    pub async fn start(self) -> Result<ControlPlane> {
        ControlPlane::with(self).await
    }
}
