//! A mesh that the tests of this crate share.

/// `web`: a dual-stack meshed pod and an unmeshed one; `empty`: nobody; and a pod whose proxy is disabled.
pub(crate) const MESH: &str = "\
networks: 10.1.0.0/16,10.2.0.0/16,fd01::/64,fd02::/64
pods:
  - name: web-0
    namespace: shop
    uid: u0
    serviceAccount: web
    ips: [10.1.0.2, 'fd01::2']
    proxy: {skipInboundPorts: '9000'}
    labels: {app: web, hauberk.dev/reason: loopback, pod: not-me}
    weight: 3
  - name: web-1
    namespace: shop
    uid: u1
    serviceAccount: old
    ips: [10.1.0.3]
  - name: open
    namespace: shop
    uid: u2
    serviceAccount: open
    ips: [10.1.0.4]
    proxy: {tls: disabled}
services:
  - name: web
    namespace: shop
    ips: [10.2.0.10, 'fd02::10']
    ports: [{port: 80, target: 8080}]
    endpoints: [web-0, web-1]
    affinitySeconds: 60
  - name: empty
    namespace: shop
    ips: [10.2.0.11]
    ports: [{port: 80}]
";
