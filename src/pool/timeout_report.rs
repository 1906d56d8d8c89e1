//! What a client is told whose wait was too long, and what the operator reads beside it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use super::backends::Pool;
use super::holder::HolderState;
use crate::wire::{Report, SqlState};

/// Holders that one log line names, those who have held longest first.
const HOLDERS_LOGGED_MAX: usize = 20;

#[derive(Default)]
struct Holding {
    active: usize,
    idle_in_transaction: usize,
    pinned: BTreeMap<&'static str, usize>,
    longest: Duration,
}

/// The 53300 of `pool.acquire_timeout`: counts and durations, no names. The log gets the names.
pub(super) fn timed_out(pool: &Pool, limit: Duration) -> Report {
    pool.core.tick();
    let now = pool.core.now();
    let mut holding = Holding::default();
    let mut holders = Vec::new();
    for record in pool.core.records() {
        let Some(holder) = record.holder() else {
            continue;
        };
        let held = Duration::from_millis(now.saturating_sub(record.since()));
        holding.longest = holding.longest.max(held);
        match holder.state() {
            HolderState::Active => holding.active += 1,
            HolderState::IdleInTransaction => holding.idle_in_transaction += 1,
            HolderState::Pinned(reason) => *holding.pinned.entry(reason).or_default() += 1,
        }
        holders.push((held, holder, record.fingerprint()));
    }
    holders.sort_by_key(|(held, ..)| std::cmp::Reverse(*held));
    let named: Vec<String> = holders
        .iter()
        .take(HOLDERS_LOGGED_MAX)
        .map(|(held, holder, fingerprint)| {
            let held = held.as_secs_f64();
            match fingerprint {
                Some(fingerprint) => format!("{holder} for {held:.1} s, last statement {fingerprint:?}"),
                None => format!("{holder} for {held:.1} s"),
            }
        })
        .collect();
    let detail = detail(pool, &holding);
    tracing::warn!(pool = %pool.key(), %detail, holders = named.join("; "), "a client got no backend in time");
    Report::error(
        SqlState::TOO_MANY_CONNECTIONS,
        format!("no connection to the database became free within {}", seconds(limit)),
    )
    .with_detail(detail)
    .with_hint(hint(pool))
}

fn detail(pool: &Pool, holding: &Holding) -> String {
    let status = pool.status();
    let mut text = format!(
        "Pool size {}, open {}: {} active, {} idle in transaction, {} pinned",
        status.max_size,
        status.open,
        holding.active,
        holding.idle_in_transaction,
        holding.pinned.values().sum::<usize>(),
    );
    if !holding.pinned.is_empty() {
        let reasons: Vec<String> = holding
            .pinned
            .iter()
            .map(|(reason, count)| format!("{reason}: {count}"))
            .collect();
        let _ = write!(text, " ({})", reasons.join(", "));
    }
    let _ = write!(
        text,
        ", {} idle, {} connecting; {} clients waiting",
        status.idle, status.connecting, status.waiting
    );
    if holding.longest > Duration::ZERO {
        let _ = write!(text, "; the longest hold is {:.1} s", holding.longest.as_secs_f64());
    }
    text.push('.');
    if let Some(report) = pool.core.failures.last() {
        let _ = write!(
            text,
            " The last login to the database server failed: {} ({}).",
            report.message, report.sqlstate
        );
    }
    text
}

fn hint(pool: &Pool) -> String {
    let status = pool.status();
    let full = usize::try_from(pool.core.total_cap.width()).unwrap_or(usize::MAX);
    if pool.core.failures.last().is_some() && status.open == 0 {
        "Check that the database server is up; pool.acquire_timeout says how long it is waited for.".to_owned()
    } else if status.open < usize::try_from(status.max_size).unwrap_or(0) && full > 0 {
        "All backends of pool.max_total may be in use by other pools: raise it, or lower pool.max_size elsewhere."
            .to_owned()
    } else if pool.is_all_pinned() {
        "Every backend is kept by one client because of what it left in its session; the log names the statements. Do without what pins, or raise pool.max_size."
            .to_owned()
    } else {
        "End transactions sooner, or raise pool.max_size or pool.acquire_timeout.".to_owned()
    }
}

fn seconds(limit: Duration) -> String {
    format!("{} s", limit.as_secs_f64())
}
