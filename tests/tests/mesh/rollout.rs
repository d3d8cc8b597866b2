//! F10: rolling updates under load, with native and with plain sidecars. Every pod of a service is replaced, one after the
//! other, while clients ask without a pause; none of them sees anything of it.
//!
//! The short form runs in `make test`; with `HAUBERK_SOAK` set it is the full one: 10 updates of three replicas each.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use hauberk_lab::{Lab, Pod, wait_for};
use hauberk_mesh::SidecarKind;

use crate::{
    common::{LIMIT, Server, dial},
    probes::wait_draining,
    scene::{PORT, at, meshed, name_of, scene, service},
};

const SHOP: &str = "10.2.0.10";
/// Requests of one connection, where clients keep it.
const KEPT: usize = 20;
/// How long a slow answer takes: some are always under way when their pod is told to stop.
const SLOW: Duration = Duration::from_millis(300);
/// An application that is told to stop goes on accepting until nobody has come for so long, as Kubernetes advises.
const QUIET: Duration = Duration::from_millis(300);
/// Longer than a drain takes: a slow answer, a plain sidecar's wait, and a machine that is busy.
const ENDS: Duration = Duration::from_secs(60);

/// How much is rolled out.
struct Form {
    updates: usize,
    replicas: usize,
}

fn form() -> Form {
    match std::env::var_os("HAUBERK_SOAK") {
        Some(_) => Form { updates: 10, replicas: 3 },
        None => Form { updates: 2, replicas: 2 },
    }
}

#[test]
fn rolling_updates_with_native_sidecars_fail_no_request() {
    roll_out(SidecarKind::Native, "native");
}

#[test]
fn rolling_updates_with_plain_sidecars_fail_no_request() {
    roll_out(SidecarKind::Plain, "plain");
}

fn roll_out(kind: SidecarKind, name: &str) {
    let Form { updates, replicas } = form();
    let client = meshed("client").spec(|spec| spec.sidecar = kind);
    let (lab, [client]) = scene([client], [service(SHOP, [])]);
    let mut deployment = Deployment { lab: &lab, kind, made: 0, replicas: Vec::new() };
    (0..replicas).for_each(|_| deployment.add());
    let load = Load::default();
    let began = Instant::now();
    thread::scope(|scope| {
        for ask in [brief, brief, kept, kept, slow, slow] {
            let (client, load) = (&client, &load);
            scope.spawn(move || load.run(|| ask(client)));
        }
        // Whatever fails here, the clients end.
        let _stop = Stop(&load);
        for _ in 0..updates {
            for _ in 0..replicas {
                deployment.add();
                deployment.newest().application.wait_served();
                deployment.remove_oldest();
            }
        }
        assert_eq!(load.failures(), Vec::<String>::new());
    });
    assert_eq!(load.failures(), Vec::<String>::new());
    let asked = load.asked.load(SeqCst);
    let replaced = updates * replicas;
    report(
        &format!("{updates} updates, {replaced} pods ({name}): {asked} requests in {:?}, none failed", began.elapsed()),
        name,
    );
    // Every client kept on asking while each pod came and went.
    assert!(asked > replaced * 10, "{asked}");
}

fn report(line: &str, name: &str) {
    eprintln!("F10: {line}");
    if let Some(dir) = std::env::var_os("HAUBERK_SOAK").filter(|dir| Path::new(dir).is_dir()) {
        fs::write(Path::new(&dir).join(format!("F10-{name}")), format!("{line}\n")).expect("the directory is writable");
    }
}

/// Clients at work.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    asked: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Load {
    fn run(&self, ask: impl Fn() -> std::io::Result<usize>) {
        while !self.stop.load(SeqCst) {
            match ask() {
                Ok(requests) => drop(self.asked.fetch_add(requests, SeqCst)),
                Err(error) => self.failures.lock().expect("no panic").push(error.to_string()),
            }
        }
    }

    fn failures(&self) -> Vec<String> {
        self.failures.lock().expect("no panic").clone()
    }
}

struct Stop<'a>(&'a Load);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, SeqCst);
    }
}

/// A connection for one request, ended by the client first. The answer must come whole.
fn brief(client: &Pod) -> std::io::Result<usize> {
    one(client, "brief")
}

/// The same, and the answer takes its time.
fn slow(client: &Pod) -> std::io::Result<usize> {
    one(client, "slow")
}

fn one(client: &Pod, what: &str) -> std::io::Result<usize> {
    let mut stream = dial(client, at(SHOP))?;
    writeln!(stream, "{what}")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.as_str() {
        "keep\n" | "last\n" => Ok(1),
        other => Err(std::io::Error::other(format!("{what}: cut off after {other:?}"))),
    }
}

/// Many requests over one connection, until enough or until the server says that it was the last.
fn kept(client: &Pod) -> std::io::Result<usize> {
    let stream = dial(client, at(SHOP))?;
    let (mut reader, mut writer) = (BufReader::new(stream.try_clone()?), stream);
    for requests in 1.. {
        writeln!(writer, "kept")?;
        let mut answer = String::new();
        reader.read_line(&mut answer)?;
        match answer.as_str() {
            "keep\n" if requests < KEPT => {}
            "keep\n" | "last\n" => return Ok(requests),
            other => return Err(std::io::Error::other(format!("kept: cut off after {other:?}"))),
        }
    }
    unreachable!("the loop returns")
}

/// The pods behind the service.
struct Deployment<'a> {
    lab: &'a Lab,
    kind: SidecarKind,
    made: usize,
    replicas: Vec<Replica>,
}

impl Deployment<'_> {
    /// Makes a pod, waits until it is ready, and sends it traffic.
    fn add(&mut self) {
        let name = format!("shop-{}", self.made);
        self.made += 1;
        let kind = self.kind;
        let options = meshed(&name).account("shop").spec(|spec| spec.sidecar = kind);
        let pod = self.lab.pod(options).expect("a pod");
        self.lab.start_proxy(&pod).expect("the proxy starts");
        let application = Application::start(&pod);
        self.replicas.push(Replica { pod, application });
        self.publish(None);
    }

    fn newest(&self) -> &Replica {
        self.replicas.last().expect("there is one")
    }

    /// Deletes the oldest pod as Kubernetes does: it leaves the service and is told to stop at the same time.
    fn remove_oldest(&mut self) {
        let old = self.replicas.remove(0);
        self.publish(Some(&old.pod));
        match self.kind {
            // Its sidecar is told once the application has ended.
            SidecarKind::Native => {
                old.application.stop();
                old.pod.terminate_proxy().expect("it runs");
            }
            SidecarKind::Plain => {
                old.pod.terminate_proxy().expect("it runs");
                wait_draining(&old.pod);
                old.application.stop();
            }
        }
        let status = old.pod.with_proxy(|proxy| proxy.wait_exit(ENDS)).expect("it ends");
        assert!(status.success(), "{}: {status}", old.pod.name());
        let key = old.pod.key();
        self.lab.edit(|mesh| mesh.pods.remove(&key)).expect("valid");
    }

    /// Tells discovery who is behind the service, and who is going.
    fn publish(&self, leaves: Option<&Pod>) {
        let endpoints = self.replicas.iter().map(|replica| replica.pod.name().to_owned()).collect();
        let shop = format!("shop/{}", name_of(SHOP));
        let edit = self.lab.edit(|mesh| {
            mesh.services.get_mut(&shop).expect("there").endpoints = endpoints;
            if let Some(pod) = leaves {
                mesh.pods.get_mut(&pod.key()).expect("listed").terminating = true;
            }
        });
        edit.expect("valid");
    }
}

struct Replica {
    pod: Pod,
    application: Application,
}

/// An application that ends in order: it finishes what was asked, says on connections that are kept which answer is the
/// last, and accepts until nobody comes any more.
struct Application {
    state: Arc<State>,
    server: Server,
}

#[derive(Default)]
struct State {
    stopping: AtomicBool,
    served: AtomicUsize,
    open: AtomicUsize,
    last_came: Mutex<Option<Instant>>,
}

impl Application {
    fn start(pod: &Pod) -> Self {
        let state = Arc::new(State::default());
        let shared = state.clone();
        let server = Server::start(pod, PORT, move |stream| {
            *shared.last_came.lock().expect("no panic") = Some(Instant::now());
            shared.open.fetch_add(1, SeqCst);
            shared.serve(stream);
            shared.open.fetch_sub(1, SeqCst);
        });
        Self { state, server }
    }

    fn wait_served(&self) {
        let served = || if self.state.served.load(SeqCst) > 0 { Ok(()) } else { Err("nothing yet".to_owned()) };
        wait_for("a request comes", LIMIT, || Ok(served())).expect("the new pod gets traffic");
    }

    /// SIGTERM, and its end.
    fn stop(self) {
        self.state.stopping.store(true, SeqCst);
        let told = Instant::now();
        let quiet = || {
            let last = self.state.last_came.lock().expect("no panic").map_or(told, |came| came.max(told));
            let open = self.state.open.load(SeqCst);
            if last.elapsed() >= QUIET && open == 0 { Ok(()) } else { Err(format!("{open} open")) }
        };
        wait_for("the application finishes", ENDS, || Ok(quiet())).expect("its connections end");
        drop(self.server);
    }
}

impl State {
    fn serve(&self, stream: TcpStream) {
        let mut writer = stream.try_clone().expect("descriptors are free");
        let mut lines = BufReader::new(stream).lines();
        // A client that breaks off is one that failed: it says so itself.
        while let Some(Ok(line)) = lines.next() {
            if line == "slow" {
                thread::sleep(SLOW);
            }
            let answer = if self.stopping.load(SeqCst) { "last" } else { "keep" };
            let sent = writeln!(writer, "{answer}");
            self.served.fetch_add(1, SeqCst);
            if answer == "last" || sent.is_err() {
                return;
            }
        }
    }
}
