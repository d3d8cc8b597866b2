//! The one table of ports, names and keys.

/// Redirected outbound traffic arrives here, on loopback.
pub const OUTBOUND_PORT: u16 = 4140;
/// Redirected inbound traffic (whatever does not come from a mesh proxy) arrives here.
pub const INBOUND_PORT: u16 = 4141;
/// All traffic from mesh proxies arrives here, on the pod's address.
pub const MESH_PORT: u16 = 4143;
/// The probe listener.
pub const PROBES_PORT: u16 = 4190;
/// `/live`, `/ready`, `/metrics` on the pod's address.
pub const ADMIN_PORT: u16 = 4191;
/// `/connections` and the rest, on loopback only.
pub const LOCAL_ADMIN_PORT: u16 = 4192;
/// Every port of the proxy: never a target, never an application's.
pub const PROXY_PORTS: [u16; 6] = [OUTBOUND_PORT, INBOUND_PORT, MESH_PORT, PROBES_PORT, ADMIN_PORT, LOCAL_ADMIN_PORT];

/// gRPC port of the identity server.
pub const IDENTITY_PORT: u16 = 8080;
/// gRPC port of the destination service.
pub const DESTINATION_PORT: u16 = 8086;
/// HTTPS port of the webhook's pods (its Service answers on 443).
pub const WEBHOOK_PORT: u16 = 8443;
/// Admin port of identity, destination and webhook.
pub const CONTROL_ADMIN_PORT: u16 = 9990;

/// The uid that the proxy runs as; redirection lets its packets pass.
pub const PROXY_UID: u32 = 2102;
/// The namespace of the control plane, unless it is installed elsewhere.
pub const CONTROL_NAMESPACE: &str = "hauberk";
/// The trust domain, unless it is installed with another.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// ServiceAccount of the identity server.
pub const IDENTITY_ACCOUNT: &str = "hauberk-identity";
/// ServiceAccount of the destination service.
pub const DESTINATION_ACCOUNT: &str = "hauberk-destination";
/// ServiceAccount of the webhook.
pub const WEBHOOK_ACCOUNT: &str = "hauberk-webhook";
/// The init container.
pub const INIT_CONTAINER: &str = "hauberk-init";
/// The sidecar container.
pub const PROXY_CONTAINER: &str = "hauberk-proxy";
/// Audience of the ServiceAccount tokens that identity accepts.
pub const TOKEN_AUDIENCE: &str = "identity.hauberk.dev";

/// ALPN of the protocol between our proxies (`docs/wire.md`).
pub const ALPN_HAUBERK: &[u8] = b"hauberk/1";
/// ALPN of Linkerd's transport header.
pub const ALPN_LINKERD: &[u8] = b"transport.l5d.io/v1";

/// Prefix of the keys that discovery sends in `metric_labels` and that never reach metrics.
pub const RESERVED_LABEL_PREFIX: &str = "hauberk.dev/";
/// Reserved key: why an endpoint is not meshed; a [`crate::Reason`].
pub const LABEL_REASON: &str = "hauberk.dev/reason";
/// Reserved key: seconds of `sessionAffinity: ClientIP`.
pub const LABEL_AFFINITY_SECONDS: &str = "hauberk.dev/affinity-seconds";
/// Reserved key: the protocol that a port was declared to speak.
pub const LABEL_PROTOCOL: &str = "hauberk.dev/protocol";
/// Reserved key: `true` once the endpoint's pod has a deletion timestamp.
pub const LABEL_TERMINATING: &str = "hauberk.dev/terminating";

/// Label of namespaces and pods (and, on pods, annotation): `enabled` or `disabled`.
pub const INJECT_KEY: &str = "hauberk.dev/inject";
/// Label of namespaces, annotation of pods: a [`crate::TlsMode`].
pub const TLS_KEY: &str = "hauberk.dev/tls";
/// Prefix of every label and annotation that sets something.
pub const KEY_PREFIX: &str = "hauberk.dev/";
/// The ConfigMap of the control namespace that holds the mesh's effective values; written by install, read by the webhook.
pub const CONFIG_MAP: &str = "hauberk-config";
/// Its one key.
pub const CONFIG_KEY: &str = "config.json";
/// The ConfigMap of the control namespace in which identity publishes the trust roots.
pub const TRUST_MAP: &str = "hauberk-trust";
/// Its key: the roots, PEM.
pub const TRUST_ROOTS_KEY: &str = "ca-bundle.pem";
/// Its key: the bundle's generation.
pub const TRUST_GENERATION_KEY: &str = "generation";
/// Name of the webhook's configuration in the API server.
pub const WEBHOOK_CONFIGURATION: &str = "hauberk-webhook";
/// The Secret of the control namespace that holds the root's key: only identity's leader reads it, while it signs.
pub const ROOT_SECRET: &str = "hauberk-identity-root";
/// The Secret of the control namespace that holds the issuer's key and chain, and the state of rotation.
pub const ISSUER_SECRET: &str = "hauberk-identity-issuer";
/// The Secret of the control namespace that holds the webhook's CA and certificates.
pub const WEBHOOK_SECRET: &str = "hauberk-webhook-tls";
