//! What a process has used.

use anyhow::Context as _;

/// Processor time and memory of one process.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// User and system time in seconds, counted in ticks of 10 ms.
    pub cpu_seconds: f64,
    /// Resident memory in KiB.
    pub resident_kib: u64,
    /// The most it ever was.
    pub peak_kib: u64,
}

/// Ticks a second in `/proc/PID/stat` on every Linux the project runs on.
const TICKS_PER_SECOND: f64 = 100.0;

impl Usage {
    /// What the process `pid` has used so far.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: u32) -> anyhow::Result<Usage> {
        let stat =
            std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
        // The name in brackets may hold anything, so fields are counted from its end: state is field 3.
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        let cpu_seconds = (ticks(11) + ticks(12)) / TICKS_PER_SECOND;
        Ok(Usage { cpu_seconds, resident_kib: kib("VmRSS:"), peak_kib: kib("VmHWM:") })
    }
}
