//! Counters by a label that comes from outside, bounded in number.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{PoisonError, RwLock};

use prometheus::{IntCounter, IntCounterVec};

/// One counter per key up to a bound; what comes after counts as `other`. Without the bound, a client could make as
/// many series as there are values (`RAISE … USING ERRCODE` makes any SQLSTATE).
#[derive(Debug)]
pub(super) struct BoundedCounters<K> {
    family: IntCounterVec,
    children: RwLock<HashMap<K, IntCounter>>,
    distinct_max: usize,
}

impl<K: Eq + Hash + Copy> BoundedCounters<K> {
    pub(super) fn new(family: IntCounterVec, distinct_max: usize) -> Self {
        Self {
            family,
            children: RwLock::default(),
            distinct_max,
        }
    }

    /// Adds one under `key`, whose label is `label`.
    pub(super) fn inc(&self, key: K, label: &str) {
        self.child(key, label).inc();
    }

    /// Makes the series at zero, so that its first increment is seen by `rate()`.
    pub(super) fn declare(&self, key: K, label: &str) {
        self.child(key, label);
    }

    fn child(&self, key: K, label: &str) -> IntCounter {
        if let Some(counter) = self.children.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return counter.clone();
        }
        let mut children = self.children.write().unwrap_or_else(PoisonError::into_inner);
        if children.len() >= self.distinct_max && !children.contains_key(&key) {
            return self.family.with_label_values(&["other"]);
        }
        children
            .entry(key)
            .or_insert_with(|| self.family.with_label_values(&[label]))
            .clone()
    }

    /// Every series that has counted something, the most frequent first.
    pub(super) fn counts(&self, label: impl Fn(&K) -> String) -> Vec<(String, u64)> {
        let children = self.children.read().unwrap_or_else(PoisonError::into_inner);
        let mut counts: Vec<_> = children
            .iter()
            .map(|(key, counter)| (label(key), counter.get()))
            .collect();
        if children.len() >= self.distinct_max {
            counts.push(("other".to_owned(), self.family.with_label_values(&["other"]).get()));
        }
        counts.retain(|(_, count)| *count > 0);
        counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        counts
    }
}
