//! The lab by itself, without a mesh: pods reach each other, and nothing is left behind.

use std::{
    env, fs,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use hauberk_lab::{Lab, Pod, PodOptions, Signal, WireOptions, wait_for};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn pods_reach_each_other_over_both_families() {
    let lab = Lab::new().expect("a lab");
    let a = lab.pod(PodOptions::new("a").dual_stack()).expect("a pod");
    let b = lab.pod(PodOptions::new("b").dual_stack()).expect("a pod");
    let c = lab.pod(PodOptions::new("c").ipv6_only()).expect("a pod");
    assert_eq!(say(&a, &b, SocketAddr::new(b.ips()[0], 80), "over IPv4"), "over IPv4");
    assert_eq!(say(&a, &b, SocketAddr::new(b.ips()[1], 80), "over IPv6"), "over IPv6");
    assert_eq!(say(&c, &a, SocketAddr::new(a.ips()[1], 80), "from an IPv6-only pod"), "from an IPv6-only pod");
}

#[test]
fn labs_stand_side_by_side_with_the_same_addresses() {
    let (one, two) = (Lab::new().expect("a lab"), Lab::new().expect("a lab"));
    let [a, b] = [&one, &two].map(|lab| lab.pod(PodOptions::new("a")).expect("a pod"));
    assert_eq!(a.ip(), b.ip());
    let _listener = a.enter(|| TcpListener::bind(a.at(80))).expect("binds");
    let refused = b.enter(|| TcpStream::connect(b.at(80))).expect_err("nothing listens in the other lab");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn an_address_that_nobody_has_is_unreachable_and_one_outside_the_cluster_is_not() {
    let lab = Lab::new().expect("a lab");
    let a = lab.pod(PodOptions::new("a").dual_stack()).expect("a pod");
    for nobody in ["10.2.0.10:80", "[fd00:2::10]:80", "192.0.2.1:80"] {
        let nobody: SocketAddr = nobody.parse().expect("an address");
        let error = a.enter(|| TcpStream::connect_timeout(&nobody, LIMIT)).expect_err("nobody is there");
        assert!(
            matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable),
            "{nobody}: {error:?}"
        );
    }
    let outside = lab.pod(PodOptions::new("outside").dual_stack().also_at("192.0.2.7").also_at("2001:db8::7"));
    let outside = outside.expect("a pod");
    for addr in ["192.0.2.7:80", "[2001:db8::7]:80"] {
        assert_eq!(say(&a, &outside, addr.parse().expect("an address"), addr), addr);
    }
}

#[test]
fn a_wire_keeps_what_is_said_and_ends_with_its_pod() {
    let lab = Lab::new().expect("a lab");
    let wire = WireOptions { delay: Duration::from_millis(20), ..WireOptions::default() };
    let a = lab.pod(PodOptions::new("a").dual_stack().wire(wire)).expect("a pod");
    let b = lab.pod(PodOptions::new("b").dual_stack()).expect("a pod");
    for (ip, text) in b.ips().iter().zip(["over IPv4", "over IPv6"]) {
        let begin = Instant::now();
        assert_eq!(say(&a, &b, SocketAddr::new(*ip, 80), text), text);
        assert!(begin.elapsed() >= 3 * wire.delay, "there, back and there: {:?}", begin.elapsed());
    }
    assert_eq!(threads_named("wire"), 2, "one for each direction");
    drop(a);
    // The kernel lists a thread for a moment longer than it lives.
    wait_for("its threads are gone", LIMIT, || match threads_named("wire") {
        0 => Ok(Ok(())),
        left => Ok(Err(format!("{left} threads"))),
    })
    .expect("they end");
}

#[test]
fn a_capture_on_the_bridge_sees_all_that_pods_say_and_nothing_of_what_they_keep() {
    let lab = Lab::new().expect("a lab");
    let a = lab.pod(PodOptions::new("a").dual_stack()).expect("a pod");
    let b = lab.pod(PodOptions::new("b").dual_stack()).expect("a pod");
    let capture = lab.capture().expect("captures");
    let long: String = (0..200_000).map(|i| format!("{i} ")).collect();
    say(&a, &b, b.at(80), &long);
    say(&b, &a, SocketAddr::new(a.ips()[1], 81), "a word over IPv6");
    say(&a, &a, a.at(82), "said to oneself");
    let captured = capture.stop().expect("stops");
    captured.check_whole().expect("whole");
    let said: Vec<_> = captured.between(a.ip(), b.ip()).collect();
    assert!(said.len() == 1 && said[0].syn_seen && said[0].accepted && said[0].to_server.ended);
    assert!(said[0].to_server.bytes == long.as_bytes(), "every byte, in order");
    assert_eq!(captured.between(b.ips()[1], a.ips()[1]).count(), 1);
    assert!(captured.contains(b"word over IPv6") && !captured.contains(b"oneself"));
    assert_eq!(captured.flows.len(), 2);
}

#[test]
fn a_process_is_stopped_signalled_and_read() {
    let lab = Lab::new().expect("a lab");
    let a = lab.pod(PodOptions::new("a")).expect("a pod");
    let script = "trap 'echo bye; exit 3' TERM; echo user $(id -u) $(id -G); env; while :; do sleep 0.01; done";
    let process = a.spawn("sh", a.command_as(2102, "sh").args(["-c", script])).expect("starts");
    wait_for("its first words", LIMIT, || {
        Ok(if process.log().contains("PATH=") { Ok(()) } else { Err(process.log()) })
    })
    .expect("it runs");
    assert!(process.log().starts_with("user 2102 2102\n"), "{}", process.log());
    assert!(!process.log().contains("CARGO"), "the environment is clean: {}", process.log());
    assert_eq!(process.stop().expect("ends").code(), Some(3));
    assert!(process.log().ends_with("bye\n"));
    assert!(process.signal(Signal::SIGHUP).expect_err("it has ended").to_string().contains("already ended"));
    assert!(process.check_running().expect_err("it has ended").to_string().contains("bye"));
}

#[test]
fn a_program_that_does_not_exist_is_named() {
    let lab = Lab::new().expect("a lab");
    let a = lab.pod(PodOptions::new("a")).expect("a pod");
    let process = a.spawn("nonesuch", &mut a.command("nonesuch")).expect("its wrapper starts");
    assert_eq!(process.wait_exit(LIMIT).expect("ends").code(), Some(127));
    assert!(process.log().contains("nonesuch"), "{}", process.log());
}

#[test]
fn a_dropped_lab_leaves_no_process_and_no_namespace() {
    let lab = Lab::new().expect("a lab");
    let (pod, _process) = with_grandchild(&lab);
    let namespace = namespace_of(&pod);
    let dir = lab.dir().to_owned();
    assert!(users_of(&namespace).len() >= 3, "two processes, and this one's handle");
    drop(lab);
    assert_eq!(users_of(&namespace), [std::process::id().to_string()], "only the pod's handle is left");
    drop((pod, _process));
    assert_eq!(users_of(&namespace), [""; 0]);
    assert!(!dir.exists());
}

#[test]
fn killing_the_owner_leaves_no_process_and_no_namespace() {
    const ROLE: &str = "LAB_TEST_OWNER";
    if env::var_os(ROLE).is_some() {
        let lab = Lab::new().expect("a lab");
        let (pod, _process) = with_grandchild(&lab);
        println!("\nowns {} {}", namespace_of(&pod), lab.dir().display());
        loop {
            thread::park();
        }
    }
    let this = env::current_exe().expect("a test binary");
    let mut owner = Command::new(this)
        .args(["--exact", "killing_the_owner_leaves_no_process_and_no_namespace", "--nocapture"])
        .env(ROLE, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let lines = BufReader::new(owner.stdout.take().expect("piped")).lines();
    let owns = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("owns ").map(str::to_owned));
    let owns = owns.expect("the owner says what it owns");
    let (namespace, dir) = owns.split_once(' ').expect("two words");
    assert!(users_of(namespace).len() >= 3, "two processes, and the owner's handle");
    owner.kill().expect("is there");
    owner.wait().expect("has ended");
    wait_for("the end of what it started", LIMIT, || {
        let users = users_of(namespace);
        Ok(if users.is_empty() { Ok(()) } else { Err(format!("{users:?}")) })
    })
    .expect("nothing is left");
    fs::remove_dir_all(dir).expect("files are all that a killed owner leaves");
}

/// Says `text` from `client` to `server` over TCP at `addr`; what the server heard.
fn say(client: &Pod, server: &Pod, addr: SocketAddr, text: &str) -> String {
    let listener = server.enter(|| TcpListener::bind(addr)).expect("binds");
    thread::scope(|scope| {
        let heard = scope.spawn(move || {
            let mut heard = String::new();
            listener.accept().expect("accepts").0.read_to_string(&mut heard).expect("reads");
            heard
        });
        client.enter(|| TcpStream::connect_timeout(&addr, LIMIT)?.write_all(text.as_bytes())).expect("is said");
        heard.join().expect("no panic")
    })
}

/// This process's threads of that name.
fn threads_named(name: &str) -> usize {
    let threads = fs::read_dir("/proc/self/task").expect("mounted").flatten();
    threads.filter(|entry| fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim() == name)).count()
}

/// A pod with a process that has a child that knows nothing of the lab.
fn with_grandchild(lab: &Lab) -> (Pod, hauberk_lab::Process) {
    let pod = lab.pod(PodOptions::new("a")).expect("a pod");
    let script = "setsid sleep 1000 & echo started; wait";
    let process = pod.spawn("sh", pod.command("sh").args(["-c", script])).expect("starts");
    wait_for("its child", LIMIT, || {
        Ok(if users_of(&namespace_of(&pod)).len() > 2 { Ok(()) } else { Err(process.log()) })
    })
    .expect("it starts");
    (pod, process)
}

/// The namespace as links in /proc name it.
fn namespace_of(pod: &Pod) -> String {
    format!("net:[{}]", fs::metadata(pod.netns_path()).expect("is open").ino())
}

/// Pids of the processes that are in the namespace or have it open.
fn users_of(namespace: &str) -> Vec<String> {
    let pids = fs::read_dir("/proc").expect("mounted").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().into_string().ok());
    let pids = pids.filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()));
    pids.filter(|pid| {
        let handles = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().map(|fd| fd.path());
        let mut all = handles.chain([format!("/proc/{pid}/ns/net").into()]);
        all.any(|link| fs::read_link(link).is_ok_and(|target| target.as_os_str() == namespace))
    })
    .collect()
}
