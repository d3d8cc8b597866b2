//! What several of these tests need: small servers and clients inside pods, and meshes to run them in.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use hauberk_lab::{Lab, Pod, PodOptions};
use hauberk_mesh::{Connection, Connections};

/// Longer than anything that works takes; shorter than a person waits.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A server inside a pod, one thread for each connection; gone when dropped.
pub(crate) struct Server {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
    pod: Pod,
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
        let listener = pod.enter(|| TcpListener::bind(addr)).expect("the port is free");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let accepting = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if stopped.load(Relaxed) {
                    break;
                }
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream));
            }
        });
        Self { addr, stop, accepting: Some(accepting), pod: pod.clone() }
    }

    /// Gives back every byte, and ends when the client does.
    pub(crate) fn echo(pod: &Pod, port: u16) -> Self {
        Self::start(pod, port, give_back)
    }
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
        self.stop.store(true, Relaxed);
        // Wakes the accept; from inside the pod the proxy lets its own address pass or refuses it, either wakes us.
        let addr = self.addr;
        let _ = self.pod.enter(|| TcpStream::connect_timeout(&addr, Duration::from_secs(1)));
        drop(self.accepting.take());
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
