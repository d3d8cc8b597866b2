//! What several of these tests need: small servers and clients inside pods, and meshes to run them in.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use hauberk_lab::{Lab, Pod, PodOptions};
use hauberk_mesh::{Connection, Connections};
use socket2::SockRef;

/// Longer than anything that works takes; shorter than a person waits.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A server inside a pod, one thread for each connection. Dropped, it listens no more.
pub(crate) struct Server {
    listener: Arc<TcpListener>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves every connection to `port` of `pod` by `serve`.
    pub(crate) fn start(pod: &Pod, port: u16, serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> Self {
        Self::listen(pod, pod.at(port), serve)
    }

    /// The same at any address of the pod.
    pub(crate) fn listen(
        pod: &Pod,
        addr: SocketAddr,
        serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static,
    ) -> Self {
        let listener = Arc::new(pod.enter(|| TcpListener::bind(addr)).expect("the port is free"));
        let accepts = listener.clone();
        let accepting = std::thread::spawn(move || {
            while let Ok((stream, _)) = accepts.accept() {
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream));
            }
        });
        Self { listener, accepting: Some(accepting) }
    }

    /// Gives back every byte, and ends when the client does.
    pub(crate) fn echo(pod: &Pod, port: u16) -> Self {
        Self::start(pod, port, give_back)
    }
}

/// Anonymous memory of a process that is resident, in KiB.
pub(crate) fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("the kernel says");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// The process of a pod's proxy.
pub(crate) fn proxy_pid(pod: &Pod) -> u32 {
    pod.with_proxy(|proxy| Ok(proxy.pid())).expect("it runs")
}

/// [`Server::echo`], for [`Server::listen`].
pub(crate) fn give_back(mut writer: TcpStream) {
    let mut reader = writer.try_clone().expect("descriptors are free");
    // A client that breaks off is the client's test.
    let _ = std::io::copy(&mut reader, &mut writer);
    let _ = writer.shutdown(std::net::Shutdown::Write);
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ends the accept. Were the thread still there, it would take one more connection.
        let stopped = SockRef::from(&*self.listener).shutdown(Shutdown::Both).is_ok();
        if let Some(accepting) = self.accepting.take().filter(|_| stopped) {
            let _ = accepting.join();
        }
    }
}

/// Connects from inside `pod`, with a limit on every wait.
pub(crate) fn dial(pod: &Pod, to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = pod.enter(|| TcpStream::connect_timeout(&to, LIMIT))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends `message`, ends, and reads all that comes back.
pub(crate) fn exchange(pod: &Pod, to: SocketAddr, message: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = dial(pod, to)?;
    stream.write_all(message)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// A lab with its control plane, and two meshed pods of namespace `shop`: `client` and `server`.
pub(crate) fn pair() -> (Lab, Pod, Pod) {
    let lab = Lab::new().expect("root and iproute2");
    let client = lab.pod(PodOptions::new("client").namespace("shop").account("client").meshed()).expect("a pod");
    let server = lab.pod(PodOptions::new("server").namespace("shop").account("server").meshed()).expect("a pod");
    lab.start_control_plane().expect("the control plane starts");
    lab.start_proxy(&client).expect("the client's proxy starts");
    lab.start_proxy(&server).expect("the server's proxy starts");
    (lab, client, server)
}

/// The identity of an account of namespace `shop`.
pub(crate) fn identity(account: &str) -> String {
    hauberk_mesh::TrustDomain::default().identity(account, "shop").expect("valid").to_string()
}

/// The first closed connection that `wanted` accepts, once there is one.
pub(crate) fn closed(pod: &Pod, what: &str, wanted: impl Fn(&Connection) -> bool) -> Connection {
    let find = |all: &Connections| all.closed.iter().find(|connection| wanted(connection)).cloned();
    pod.wait_connections(what, find).expect(what)
}
