//! The one choice of algorithms, for every TLS configuration that Hauberk makes.

use std::sync::{Arc, LazyLock};

use rustls::{
    SupportedProtocolVersion,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{self, cipher_suite, kx_group},
    },
    version::TLS13,
};

/// TLS 1.3 and nothing else.
pub(crate) const VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13];

/// AES-128-GCM first (it is the fastest, and no weaker here), the post-quantum hybrid first.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519],
            ..aws_lc_rs::default_provider()
        })
    });
    PROVIDER.clone()
}
