//! One task per pool that looks after it while nobody does: the coarse clock, idle backends, `min_idle`.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::backends::Pool;
use super::manager::millis;
use super::record::Record;
use super::registry::Registry;
use crate::metrics::CloseReason;

/// How often idle backends are looked at: losses are noticed, and `min_idle` refilled, well within a second.
const TICK: Duration = Duration::from_millis(250);
/// Backends that one tick begins to open.
const OPENED_PER_TICK: usize = 8;
/// A tick that comes this late means that the process or the machine slept; peers may have forgotten us (trap 95).
const LATE: Duration = Duration::from_secs(30);

/// A clock that goes on while the machine is suspended, as the one that everything else is timed by does not.
pub(super) fn since_boot() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// Runs until the pool is closed or dropped. `clock` is [`since_boot`], or what a test says.
pub(super) async fn keep(pool: Weak<Pool>, registry: Weak<Registry>, clock: impl Fn() -> Duration + Send) {
    let mut was_unused_since = Instant::now();
    let mut last_look = clock();
    // Whoever the pool was made for asks first: its backend is one of those that stay idle afterwards.
    sleep(MIN_PAUSE).await;
    loop {
        let pause = match pool.upgrade() {
            Some(pool) if !pool.core.is_closed() => {
                // Asked anew each time: a reload may name another upstream.
                let registry = registry.upgrade();
                let stays_warm = registry
                    .as_ref()
                    .is_some_and(|registry| registry.is_default(pool.key()));
                let look = clock();
                let has_slept = look.saturating_sub(std::mem::replace(&mut last_look, look)) > LATE;
                tick(&pool, stays_warm, has_slept);
                if Arc::strong_count(&pool) > 2 || pool.core.open_count() > idle_count(&pool) {
                    was_unused_since = Instant::now();
                }
                let unused = was_unused_since.elapsed();
                let pause = pause(&pool);
                if let Some(registry) = registry.filter(|_| !stays_warm && is_over(&pool, unused)) {
                    registry.remove_unused(&pool);
                }
                pause
            }
            _ => return,
        };
        sleep(pause).await;
    }
}

const MIN_PAUSE: Duration = Duration::from_millis(5);

/// Until somebody's time in line is over, or who joins it now could have waited too long.
fn pause(pool: &Pool) -> Duration {
    let settings = pool.core.settings.load();
    let pause = if pool.has_parked() {
        settings.park.clamp(MIN_PAUSE, TICK)
    } else {
        TICK
    };
    let now = Instant::now();
    let overdue_next = pool.core.line.ring_overdue(now);
    let overdue_next = overdue_next.map(|at| at.saturating_duration_since(now));
    let newcomers = settings.acquire_timeout.map(|limit| limit.max(MIN_PAUSE));
    [overdue_next, newcomers]
        .into_iter()
        .flatten()
        .fold(pause, Duration::min)
}

/// A pool that no client refers to goes: after `idle_timeout`, or soon where no login ever succeeded.
fn is_over(pool: &Pool, unused: Duration) -> bool {
    if pool.core.has_logged_in() {
        pool.core
            .settings
            .load()
            .idle_timeout
            .is_some_and(|limit| unused >= limit)
    } else {
        unused >= Duration::from_secs(10)
    }
}

fn tick(pool: &Arc<Pool>, stays_warm: bool, has_slept: bool) {
    pool.core.tick();
    pool.sweep_parked();
    let now = pool.core.now();
    let records = pool.core.records();
    let mut unfit = has_slept;
    for record in &records {
        if record.lifetime_end <= now {
            record.retire(CloseReason::Lifetime);
        }
        if has_slept && record.is_idle() {
            record.retire(CloseReason::Broken);
        }
        unfit |= record.is_idle() && (record.retired().is_some() || record.speaks_while_idle());
    }
    unfit |= retire_surplus(pool, now);
    if unfit {
        pool.close_unfit();
    }
    refill(pool, stays_warm);
    if let Some(limit) = pool.core.settings.load().catalog_refresh {
        pool.renew_catalog(limit);
    }
}

/// Retires what was idle longest, down to `min_idle`; and everything above a size that a reload made smaller.
fn retire_surplus(pool: &Pool, now: u64) -> bool {
    let settings = pool.core.settings.load();
    let records = pool.core.records();
    let mut idle: Vec<_> = records
        .iter()
        .filter(|record| record.is_idle() && record.retired().is_none())
        .collect();
    idle.sort_by_key(|record| record.since());
    let above_size = records.len().saturating_sub(usize_of(settings.max_size));
    let above_idle = idle.len().saturating_sub(usize_of(settings.min_idle));
    let idle_limit = settings.idle_timeout.map_or(u64::MAX, millis);
    let mut retired = false;
    for (index, record) in idle.into_iter().enumerate() {
        let reason = if index < above_size {
            CloseReason::Reload
        } else if index < above_idle && now.saturating_sub(record.since()) >= idle_limit {
            CloseReason::IdleTimeout
        } else {
            continue;
        };
        record.retire(reason);
        retired = true;
    }
    retired
}

/// Opens what `min_idle` lacks, several at a time; one at a time while the server is not reached (trap 79).
fn refill(pool: &Arc<Pool>, stays_warm: bool) {
    let core = &pool.core;
    if core.vacancies.is_held(&core.connector.load()) {
        return;
    }
    if !(stays_warm || core.has_logged_in()) || core.demand.is_some() || !core.failures.is_calm(Instant::now()) {
        return;
    }
    let settings = core.settings.load();
    let open = core.open_count() + core.connecting_count();
    let idle = idle_count(pool) + core.connecting_count();
    let wanted = usize_of(settings.min_idle)
        .saturating_sub(idle)
        .min(usize_of(settings.max_size).saturating_sub(open))
        .min(if core.failures.is_unreached() {
            1
        } else {
            OPENED_PER_TICK
        });
    for _ in 0..wanted {
        let Some(admitted) = pool.try_admit() else {
            return;
        };
        tokio::spawn(Arc::clone(pool).warm(admitted));
    }
}

/// Idle ones, and those that are lent to pgsidecar itself for a moment.
fn idle_count(pool: &Pool) -> usize {
    let is_ours = |record: &Record| record.holder().is_some_and(|holder| holder.is_internal());
    let records = pool.core.records();
    records
        .iter()
        .filter(|record| record.is_idle() || is_ours(record))
        .count()
}

fn usize_of(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
