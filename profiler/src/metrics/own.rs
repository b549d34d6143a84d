//! The standard figures of the profiler's own process, read at the scrape. Never of a target.

use std::collections::BTreeMap;

use procfs::WithCurrentSystemInfo as _;
use procfs::process::{LimitValue, Process};

use super::table::Id;

/// What has come of pushing.
#[derive(Clone, Debug, Default)]
pub struct PushFigures {
    /// Requests by what came of them: `taken`, `later`, `refused`.
    pub requests: BTreeMap<&'static str, u64>,
    /// Data points that were taken.
    pub points: u64,
    /// Data points that were dropped, by why: `queue_full`, `refused`, `rejected`, `end`.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Bytes that wait to be sent.
    pub queue_bytes: u64,
    /// When a request was taken last, seconds since the epoch.
    pub last_success_seconds: Option<f64>,
    /// What is wrong, since it last went well.
    pub why: Option<String>,
}

/// Figures of this process; `None` where one could not be read.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// How long the last scrape took, seconds.
    pub last_scrape_seconds: Option<f64>,
    /// Whether the file that protects the endpoint is used as it is now; `None` where there is none.
    pub web_config_is_good: Option<bool>,
    /// What has come of pushing; `None` where nothing is pushed.
    pub push: Option<PushFigures>,
    cpu_seconds: Option<f64>,
    resident_bytes: Option<f64>,
    virtual_bytes: Option<f64>,
    open_fds: Option<f64>,
    max_fds: Option<f64>,
    start_seconds: Option<f64>,
}

impl Own {
    /// Reads them.
    pub fn read(last_scrape_seconds: Option<f64>) -> Own {
        let mut own = Own { last_scrape_seconds, ..Own::default() };
        let Ok(process) = Process::myself() else { return own };
        if let Ok(stat) = process.stat() {
            own.cpu_seconds = Some((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64);
            own.resident_bytes = Some(stat.rss_bytes().get() as f64);
            own.virtual_bytes = Some(stat.vsize as f64);
            own.start_seconds = procfs::boot_time_secs()
                .ok()
                .map(|boot| boot as f64 + stat.starttime as f64 / procfs::ticks_per_second() as f64);
        }
        own.open_fds = process.fd_count().ok().map(|count| count as f64);
        own.max_fds = process.limits().ok().and_then(|limits| match limits.max_open_files.soft_limit {
            LimitValue::Value(value) => Some(value as f64),
            LimitValue::Unlimited => None,
        });
        own
    }

    /// When this process began, seconds since the epoch.
    pub fn start_seconds(&self) -> Option<f64> {
        self.start_seconds
    }

    pub(super) fn figures(&self) -> [(Id, Option<f64>); 8] {
        [
            (Id::ScrapeDurationSeconds, self.last_scrape_seconds),
            (Id::WebConfigLastReloadSuccessful, self.web_config_is_good.map(|good| f64::from(u8::from(good)))),
            (Id::ProcessCpuSecondsTotal, self.cpu_seconds),
            (Id::ProcessResidentMemoryBytes, self.resident_bytes),
            (Id::ProcessVirtualMemoryBytes, self.virtual_bytes),
            (Id::ProcessOpenFds, self.open_fds),
            (Id::ProcessMaxFds, self.max_fds),
            (Id::ProcessStartTimeSeconds, self.start_seconds),
        ]
    }
}
