//! The mesh as a whole: real processes in network namespaces, real packets. One binary, so that it links once.

#[path = "mesh/admin.rs"]
mod admin;
#[path = "mesh/affinity.rs"]
mod affinity;
#[path = "mesh/applications.rs"]
mod applications;
#[path = "mesh/away.rs"]
mod away;
#[path = "mesh/balance.rs"]
mod balance;
#[path = "mesh/basic.rs"]
mod basic;
#[path = "mesh/bypass.rs"]
mod bypass;
#[path = "mesh/certificate.rs"]
mod certificate;
#[path = "mesh/common.rs"]
mod common;
#[path = "mesh/drain.rs"]
mod drain;
#[path = "mesh/endings.rs"]
mod endings;
#[path = "mesh/evidence.rs"]
mod evidence;
#[path = "mesh/failover.rs"]
mod failover;
#[path = "faults/mod.rs"]
mod faults;
#[path = "mesh/grpc.rs"]
mod grpc;
#[path = "mesh/idle.rs"]
mod idle;
#[path = "mesh/ipv6.rs"]
mod ipv6;
#[path = "mesh/killed.rs"]
mod killed;
#[path = "mesh/labels.rs"]
mod labels;
#[path = "mesh/last_words.rs"]
mod last_words;
#[path = "mesh/linkerd.rs"]
mod linkerd;
#[path = "mesh/mariadb.rs"]
mod mariadb;
#[path = "mesh/memory.rs"]
mod memory;
#[path = "mesh/nginx.rs"]
mod nginx;
#[path = "mesh/peers.rs"]
mod peers;
#[path = "mesh/places.rs"]
mod places;
#[path = "mesh/postgresql.rs"]
mod postgresql;
#[path = "mesh/probes.rs"]
mod probes;
#[path = "mesh/reasons.rs"]
mod reasons;
#[path = "mesh/redis.rs"]
mod redis;
#[path = "mesh/required.rs"]
mod required;
#[path = "mesh/reuse.rs"]
mod reuse;
#[path = "mesh/rollout.rs"]
mod rollout;
#[path = "mesh/scene.rs"]
mod scene;
#[path = "mesh/series.rs"]
mod series;
#[path = "soak/mod.rs"]
mod soak;
#[path = "mesh/ssh.rs"]
mod ssh;
#[path = "mesh/stale.rs"]
mod stale;
#[path = "mesh/standalone.rs"]
mod standalone;
#[path = "mesh/streams.rs"]
mod streams;
#[path = "mesh/talk.rs"]
mod talk;
#[path = "mesh/threads.rs"]
mod threads;
#[path = "mesh/websocket.rs"]
mod websocket;
