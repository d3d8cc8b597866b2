//! On what it was measured, asked of the machine itself.

use std::{fs, process::Command};

/// Lines for people: name and value.
pub(crate) fn facts() -> Vec<(&'static str, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or_else(|_| "?".to_owned(), |cores| cores.to_string());
    vec![
        ("Processor", format!("{}, {cores} cores for this process", model(&read("/proc/cpuinfo")))),
        ("Memory", memory(&read("/proc/meminfo"))),
        ("Kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("Load before the run", read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")),
        ("haproxy", first_line("haproxy", &["-v"])),
        ("nginx", first_line("nginx", &["-v"])),
        ("OpenSSL of both", first_line("openssl", &["version"])),
        ("MariaDB", first_line("mariadbd", &["--version"])),
        ("Hauberk", first_line("git", &["describe", "--always", "--dirty", "--abbrev=12"])),
    ]
}

fn model(cpuinfo: &str) -> String {
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or("unknown", |(_, name)| name).to_owned()
}

fn memory(meminfo: &str) -> String {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let total: Option<u64> = total.and_then(|kilobytes| kilobytes.parse().ok());
    total.map_or("unknown".to_owned(), |kilobytes| format!("{:.1} GiB", kilobytes as f64 / 1024.0 / 1024.0))
}

/// What the program says first, on stdout or stderr.
fn first_line(program: &str, args: &[&str]) -> String {
    let Ok(output) = Command::new(program).args(args).output() else { return "not there".to_owned() };
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        assert_eq!(model("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n"), "Some CPU @ 2 GHz");
        assert_eq!(memory("MemTotal:       24684592 kB\nMemFree: 1 kB\n"), "23.5 GiB");
        assert_eq!((model(""), memory("")), ("unknown".to_owned(), "unknown".to_owned()));
    }
}
