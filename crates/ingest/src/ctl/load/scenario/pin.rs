//! Who runs on which CPU: the server on one, the load on another, so that neither takes the other's time.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use super::{report::float, server::Server};
use crate::ctl::{fault::Fault, load::stats::cpu_seconds};

/// How the processes of a run are pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pins {
    /// Each to a CPU of its own.
    Apart {
        /// The server's.
        server: usize,
        /// The load's.
        load: usize,
    },
    /// Not at all.
    Free {
        /// Why not.
        why: String,
    },
}

impl Pins {
    /// Pins this process, with threads that are still to come; the server is pinned when it starts.
    ///
    /// # Errors
    /// [`Fault::Failed`] where the system refuses that.
    pub fn set(wanted: bool) -> Result<Self, Fault> {
        let free = |why: &str| Ok(Self::Free { why: why.to_owned() });
        if !wanted {
            return free("as asked");
        }
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let &[server, load, ..] = &cpus(allowed.unwrap_or_default())[..] else {
            return free("there is one CPU only");
        };
        let list = load.to_string();
        let process = std::process::id().to_string();
        let done = Command::new("taskset")
            .args(["--all-tasks", "--cpu-list", "--pid", &list, &process])
            .stdout(Stdio::null())
            .output();
        match done {
            Ok(done) if done.status.success() => Ok(Self::Apart { server, load }),
            Ok(done) => Err(Fault::failed(
                format!("cannot pin: {}", String::from_utf8_lossy(&done.stderr).trim()),
                "--no-pin goes without",
            )),
            Err(e) => Err(Fault::failed(
                format!("cannot pin: taskset: {e}"),
                "install util-linux, or go without with --no-pin",
            )),
        }
    }

    /// The words before a server's own command line.
    #[must_use]
    pub fn before(&self) -> Vec<String> {
        match self {
            Self::Apart { server, .. } => {
                ["taskset", "--cpu-list", &server.to_string()].map(str::to_owned).to_vec()
            }
            Self::Free { .. } => Vec::new(),
        }
    }

    /// As the report says it.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::Apart { server, load } => format!("server on CPU {server}, load on CPU {load}"),
            Self::Free { why } => format!("not pinned ({why})"),
        }
    }
}

/// What the CPUs of a run, the server and the load had used when it began.
#[derive(Debug)]
pub struct Watch {
    start: Instant,
    used: Option<f64>,
}

impl Watch {
    /// From now on.
    #[must_use]
    pub fn start(pins: &Pins, server: &Server) -> Self {
        Self { start: Instant::now(), used: used_by_others(pins, server) }
    }

    /// Cores that others took since then, on average; time stolen from a virtual machine is theirs too.
    #[must_use]
    pub fn others(&self, pins: &Pins, server: &Server) -> Option<f64> {
        let used = used_by_others(pins, server)? - self.used?;
        Some((used / self.start.elapsed().as_secs_f64().max(0.001)).max(0.0))
    }
}

fn used_by_others(pins: &Pins, server: &Server) -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let all = match pins {
        Pins::Apart { server, load } => {
            busy(&stat, &format!("cpu{server}"))? + busy(&stat, &format!("cpu{load}"))?
        }
        Pins::Free { .. } => busy(&stat, "cpu")?,
    };
    Some(all - server.cpu_seconds()? - cpu_seconds()?)
}

/// Seconds that a CPU of `/proc/stat` was not idle.
fn busy(stat: &str, cpu: &str) -> Option<f64> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let line = stat.lines().find(|line| line.split_ascii_whitespace().next() == Some(cpu))?;
    // user nice system idle iowait irq softirq steal
    let fields = line.split_ascii_whitespace().skip(1).take(8).enumerate();
    let busy = fields.filter(|(place, _)| !matches!(place, 3 | 4));
    let ticks: u64 = busy.filter_map(|(_, n)| n.parse::<u64>().ok()).sum();
    Some(float(ticks) / TICKS_PER_SECOND)
}

/// The CPUs of a list such as `0-2,5`.
fn cpus(list: &str) -> Vec<usize> {
    let mut found = Vec::new();
    for part in list.trim().split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(from), Ok(to)) = (from.parse::<usize>(), to.parse::<usize>()) {
            found.extend(from..=to.min(from + 4_096));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read_as_the_kernel_writes_them() {
        assert_eq!(cpus("\t0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(cpus("3"), [3]);
        assert!(cpus("").is_empty());
    }

    #[test]
    fn a_cpu_is_busy_when_it_neither_idles_nor_waits() {
        let stat = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu1 100 200 300 9000 800 50 25 25 7 7\n";
        assert_eq!(busy(stat, "cpu1"), Some(7.0));
        assert_eq!(busy(stat, "cpu2"), None);
    }
}
