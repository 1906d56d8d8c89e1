//! The usual `process_…` metrics, read when scraped. Open file descriptors are not among them: counting them means
//! listing a directory of as many entries as there are clients.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, Opts};

use super::must;
use super::names::{self, Family};

/// Reads this process's own use of the machine.
#[derive(Debug)]
pub(super) struct ProcessCollector {
    cpu: Counter,
    resident: Gauge,
    start: Gauge,
    max_fds: Gauge,
}

impl ProcessCollector {
    pub(super) fn new() -> Self {
        let gauge = |family: Family| must(Gauge::with_opts(Opts::new(family.name, family.help)));
        let start = gauge(names::PROCESS_START);
        start.set(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs_f64(),
        );
        Self {
            cpu: must(Counter::with_opts(Opts::new(
                names::PROCESS_CPU.name,
                names::PROCESS_CPU.help,
            ))),
            resident: gauge(names::PROCESS_RESIDENT),
            start,
            max_fds: gauge(names::PROCESS_MAX_FDS),
        }
    }

    fn read(&self) {
        if let Some(seconds) = cpu_seconds() {
            self.cpu.inc_by((seconds - self.cpu.get()).max(0.0));
        }
        if let Some(bytes) = resident_bytes() {
            #[allow(clippy::cast_precision_loss, reason = "a metric is a double")]
            self.resident.set(bytes as f64);
        }
        if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
            #[allow(clippy::cast_precision_loss, reason = "a metric is a double")]
            self.max_fds.set(soft as f64);
        }
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        [
            self.cpu.desc(),
            self.resident.desc(),
            self.start.desc(),
            self.max_fds.desc(),
        ]
        .concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read();
        [
            self.cpu.collect(),
            self.resident.collect(),
            self.start.collect(),
            self.max_fds.collect(),
        ]
        .concat()
    }
}

fn cpu_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let (user, system) = (usage.user_time(), usage.system_time());
    #[allow(clippy::cast_precision_loss, reason = "a metric is a double")]
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Some(seconds(user) + seconds(system))
}

/// From the `VmRSS` line, which is in kB whatever the page size is.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_has_a_start() {
        let collector = ProcessCollector::new();
        let families = collector.collect();
        let value = |name: &str| {
            let family = families.iter().find(|family| family.name() == name).expect("collected");
            family.get_metric()[0].get_gauge().get_value()
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_start_time_seconds") > 1.6e9);
        assert!(value("process_max_fds") >= 1.0);
    }
}
