//! Statements that were parsed, or read again, under settings that the ledger could not see, until it is known what these
//! came to (trap 28).

use std::sync::{Arc, Weak};

use super::parameters::Settings;
use super::settings_ledger::Until;
use super::statements::Statement;

/// Nearly always none.
#[derive(Debug, Default)]
pub(super) struct Unresolved(Vec<Waiting>);

#[derive(Debug)]
struct Waiting {
    /// Of the settings that were in force.
    number: u64,
    until: Until,
    statement: Weak<Statement>,
    /// What they were as far as PostgreSQL had reported them: what counts where no answer is about these very settings.
    reported: Option<Arc<Settings>>,
}

impl Waiting {
    fn settle(self, settings: Option<Arc<Settings>>) {
        if let (Some(statement), Some(settings)) = (self.statement.upgrade(), settings.or(self.reported)) {
            statement.resolve(settings);
        }
    }
}

impl Unresolved {
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn push(
        &mut self,
        (number, until): (u64, Until),
        statement: &Arc<Statement>,
        reported: Option<Arc<Settings>>,
    ) {
        let statement = Arc::downgrade(statement);
        self.0.push(Waiting {
            number,
            until,
            statement,
            reported,
        });
    }

    /// The settings of this number were reported, and with them those before, or never.
    pub(super) fn reported(&mut self, number: u64, settings: &Arc<Settings>) {
        let of_these = |waiting: &Waiting| (waiting.number == number).then(|| settings.clone());
        let is_due = |waiting: &mut Waiting| waiting.until == Until::Reported && waiting.number <= number;
        for waiting in self.0.extract_if(.., is_due) {
            let settings = of_these(&waiting);
            waiting.settle(settings);
        }
        for waiting in self.0.iter_mut().filter(|waiting| waiting.reported.is_none()) {
            waiting.reported = of_these(waiting);
        }
    }

    /// Nothing more will be reported.
    pub(super) fn all_reported(&mut self) {
        for waiting in self.0.extract_if(.., |waiting| waiting.until != Until::Asked) {
            waiting.settle(None);
        }
    }

    /// PostgreSQL has answered for the settings of this number; `None` where that told nothing.
    pub(super) fn answered(&mut self, number: u64, settings: Option<&Arc<Settings>>) {
        let is_due = |waiting: &mut Waiting| waiting.until == Until::Asked && waiting.number <= number;
        for waiting in self.0.extract_if(.., is_due) {
            let settings = settings.filter(|_| waiting.number == number).cloned();
            waiting.settle(settings);
        }
    }
}
