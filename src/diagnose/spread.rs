//! First, median, worst of a series of waits.

use std::time::Duration;

use serde::Serialize;

/// A series of waits, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// How many there were.
    pub count: usize,
    /// The one that came first.
    pub first: f64,
    /// The median.
    pub p50: f64,
    /// The 99th percentile by nearest rank: of fewer than 100, the worst.
    pub p99: f64,
    /// The worst.
    pub max: f64,
}

impl Spread {
    /// Of at least one wait; all zero of none.
    pub(super) fn of(waits: impl IntoIterator<Item = Duration>) -> Self {
        let waits: Vec<Duration> = waits.into_iter().collect();
        let mut sorted = waits.clone();
        sorted.sort_unstable();
        let rank = |percent: usize| {
            let position = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
            sorted.get(position).copied().map_or(0.0, milliseconds)
        };
        Self {
            count: waits.len(),
            first: waits.first().copied().map_or(0.0, milliseconds),
            p50: rank(50),
            p99: rank(99),
            max: rank(100),
        }
    }
}

/// To the microsecond.
pub(super) fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let spread = Spread::of((1..=200).rev().map(Duration::from_millis));
        assert_eq!(
            (spread.first, spread.p50, spread.p99, spread.max),
            (200.0, 100.0, 198.0, 200.0)
        );
        let one = Spread::of([Duration::from_micros(1500)]);
        assert_eq!((one.count, one.p50, one.p99, one.max), (1, 1.5, 1.5, 1.5));
        assert_eq!(Spread::of([]).max, 0.0);
    }
}
