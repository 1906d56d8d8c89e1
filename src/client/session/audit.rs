//! Whether a backend that is given back is asked first what it holds (`pool.audit`).

use std::sync::Arc;

use super::Session;
use crate::config::Audit;
use crate::pool::Lease;

/// Of so many backends that are given back, one is asked where `pool.audit` is `sampled`: a leak that happens again and again
/// is found within a few hundred transactions, at a hundredth of a round trip for each.
const ONE_IN: u32 = 100;

/// When the next one is asked.
#[derive(Debug, Default)]
pub struct AuditTurn {
    /// Backends that pass until then; `None` before the first was given back.
    left: Option<u32>,
}

impl AuditTurn {
    fn is_due(&mut self, audit: Audit) -> bool {
        match audit {
            Audit::Off => false,
            Audit::Always => true,
            Audit::Sampled => {
                let left = self.left.unwrap_or_else(|| until_next(random()));
                let is_due = left == 0;
                self.left = Some(match is_due {
                    true => until_next(random()),
                    false => left - 1,
                });
                is_due
            }
        }
    }
}

/// At random, so that no rhythm of an application's hides from it: 0 to 198, a hundredth of all on average.
const fn until_next(random: u32) -> u32 {
    random % (2 * ONE_IN - 1)
}

fn random() -> u32 {
    getrandom::u32().unwrap_or(ONE_IN - 1)
}

impl Session {
    /// Gives a backend back that nothing is left on, as far as the ledger knows.
    pub(super) fn part(&mut self, lease: Lease) {
        if lease.is_dedicated() || !self.audit_turn.is_due(self.settings.audit) {
            return lease.park();
        }
        let neutral = Arc::clone(lease.neutral_parameters());
        let login = neutral.text("session_authorization");
        let own_text = self.settings.connect_query.as_deref().unwrap_or_default();
        let question = self.ledger.audit_question(&lease.state, login, own_text);
        tokio::spawn(lease.audit(question, Arc::clone(&self.context.metrics)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_a_hundred_is_asked_where_it_is_sampled() {
        let mut turn = AuditTurn::default();
        assert!((0..1000).all(|_| turn.is_due(Audit::Always) && !turn.is_due(Audit::Off)));
        let asked = (0..100_000).filter(|_| turn.is_due(Audit::Sampled)).count();
        assert!((800..1250).contains(&asked), "{asked}");
        let longest = (0..=u32::from(u16::MAX)).map(until_next).max();
        assert_eq!(longest, Some(2 * ONE_IN - 2));
    }
}
