//! What a reload can't change.

use super::Config;

/// The keys that differ and take effect at the next start only: sockets and threads exist already.
#[must_use]
pub fn reload_difference(old: &Config, new: &Config) -> Vec<&'static str> {
    let differences = [
        ("listen", old.listen != new.listen),
        ("metrics.listen", old.metrics != new.metrics),
        ("log.format", old.log.format != new.log.format),
        ("log.stats_interval", old.log.stats_interval != new.log.stats_interval),
        ("runtime.threads", old.runtime != new.runtime),
    ];
    differences
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(key, _)| key)
        .collect()
}
