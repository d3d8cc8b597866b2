//! What passes between the pods, captured by tcpdump on the bridge, outside the pods.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use memchr::memmem;

use crate::{
    Lab, Process, Processes, Signal,
    flows::{Flow, flows},
    lab::BRIDGE,
    wait_for,
};

/// MiB of the kernel's buffer: what passes while tcpdump waits for the disk, or for its turn.
const BUFFER_MIB: u32 = 64;
const START_LIMIT: Duration = Duration::from_secs(10);
/// tcpdump may have hundreds of megabytes to write.
const FLUSH_LIMIT: Duration = Duration::from_secs(60);
/// Every host hears it, none listens: the capture has it after all that was sent before.
const LAST_WORD: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 1, 255, 255), 9);

/// A capture on the lab's bridge that is running.
#[derive(Debug)]
pub struct Capture<'a> {
    lab: &'a Lab,
    tcpdump: Tcpdump,
}

/// A capture on any device that is running.
#[derive(Debug)]
pub struct Tcpdump {
    process: Process,
    file: PathBuf,
}

/// A capture that has ended.
#[derive(Debug)]
pub struct Captured {
    /// Every connection, in the order of their first packets.
    pub flows: Vec<Flow>,
    /// Packets that the kernel had to drop because tcpdump was too slow. Unless 0, the capture proves nothing.
    pub dropped: u64,
    pcap: Vec<u8>,
}

impl Lab {
    /// Begins to capture every packet between the pods; returns once it does.
    pub fn capture(&self) -> Result<Capture<'_>> {
        self.capture_with_buffer(BUFFER_MIB)
    }

    /// [`Lab::capture`], with so many MiB for what passes faster than tcpdump writes it down. If all fits in twice,
    /// nothing can be missed, however slow the machine.
    pub fn capture_with_buffer(&self, mib: u32) -> Result<Capture<'_>> {
        let name = format!("tcpdump-{}", self.inner.next_capture());
        let tcpdump = Tcpdump::start(&self.inner.processes, &name, self.command("tcpdump"), BRIDGE, mib)?;
        Ok(Capture { lab: self, tcpdump })
    }
}

impl Capture<'_> {
    /// Waits until all packets so far are in the file, ends the capture and reads it.
    pub fn stop(self) -> Result<Captured> {
        let lab = self.lab;
        self.tcpdump.stop(|word| {
            lab.enter(|| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.set_broadcast(true)?;
                socket.send_to(word, LAST_WORD)?;
                Ok(())
            })
        })
    }
}

impl Tcpdump {
    /// Begins to capture every packet on `device`; returns once it does. `command` runs tcpdump where the device is,
    /// `mib` is the kernel's buffer: what passes while tcpdump waits for the disk, or for its turn.
    pub fn start(processes: &Processes, name: &str, mut command: Command, device: &str, mib: u32) -> Result<Self> {
        let file = processes.dir().join(format!("{name}.pcap"));
        let buffer_kib = (mib * 1024).to_string();
        command.args(["-i", device, "-n", "-s", "0", "-U", "-B", &buffer_kib, "-Z", "root", "-w"]).arg(&file);
        let process = processes.spawn(name, &mut command)?;
        wait_for("tcpdump listens", START_LIMIT, || {
            process.check_running()?;
            let log = process.log();
            Ok(if log.contains("listening on") { Ok(()) } else { Err(log) })
        })?;
        Ok(Self { process, file })
    }

    /// Lets `say` send a packet with that text over the device; when it has been written, all packets before it have
    /// been. Then ends the capture and reads it.
    pub fn stop(self, say: impl FnOnce(&[u8]) -> Result<()>) -> Result<Captured> {
        let word = format!("the last word of {}", self.process.name());
        say(word.as_bytes())?;
        self.wait_for_word(word.as_bytes())?;
        self.process.signal(Signal::SIGINT)?;
        self.process.wait_exit(FLUSH_LIMIT)?;
        let pcap = fs::read(&self.file)?;
        Ok(Captured { flows: flows(&pcap)?, dropped: drops(&self.process.log())?, pcap })
    }

    fn wait_for_word(&self, word: &[u8]) -> Result<()> {
        let mut file = File::open(&self.file)?;
        let mut read = 0;
        wait_for("tcpdump has written all packets", FLUSH_LIMIT, || {
            self.process.check_running()?;
            // The word may have been written by halves.
            file.seek(SeekFrom::Start(read))?;
            let mut new = Vec::new();
            file.read_to_end(&mut new)?;
            read += new.len().saturating_sub(word.len()) as u64;
            Ok(if memmem::find(&new, word).is_some() { Ok(()) } else { Err(format!("{read} bytes so far")) })
        })
    }
}

impl Captured {
    /// Whether `marker` was anywhere on the wire: in a packet of any protocol, or in a connection's bytes.
    pub fn contains(&self, marker: &[u8]) -> bool {
        memmem::find(&self.pcap, marker).is_some() || self.flows.iter().any(|flow| flow.contains(marker))
    }

    /// The connections from one address to another.
    pub fn between(&self, client: IpAddr, server: IpAddr) -> impl Iterator<Item = &Flow> {
        self.flows.iter().filter(move |flow| flow.client.ip() == client && flow.server.ip() == server)
    }

    /// Fails if the capture is not whole: the kernel dropped packets, or bytes of a connection are missing.
    pub fn check_whole(&self) -> Result<()> {
        ensure!(self.dropped == 0, "the capture missed {} packets", self.dropped);
        for flow in &self.flows {
            for (gap, from, to) in
                [(flow.to_server.gap, flow.client, flow.server), (flow.to_client.gap, flow.server, flow.client)]
            {
                ensure!(gap.is_none(), "{from} to {to}: bytes are missing at {}", gap.unwrap_or_default());
            }
        }
        Ok(())
    }
}

/// The sum of tcpdump's drop counters, from its last words: `3 packets dropped by kernel`.
fn drops(log: &str) -> Result<u64> {
    let counts = log.lines().filter(|line| line.contains(" dropped by ")).map(|line| {
        let number = line.split(' ').next().and_then(|number| number.parse::<u64>().ok());
        number.ok_or_else(|| anyhow!("not a drop counter: {line:?}"))
    });
    let counts = counts.collect::<Result<Vec<_>>>()?;
    ensure!(!counts.is_empty(), "tcpdump did not say how many packets it dropped:\n{log}");
    counts.into_iter().reduce(u64::saturating_add).context("there is at least one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_counters_are_added_and_never_assumed() {
        let log = "tcpdump: listening on br0\n9 packets captured\n3 packets dropped by kernel\n1 packet dropped by interface\n";
        assert_eq!(drops(log).expect("counters"), 4);
        assert!(drops("9 packets captured\n").is_err());
        assert!(drops("many packets dropped by kernel\n").is_err());
    }
}
