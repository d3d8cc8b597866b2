//! Real Kubernetes for tests.
