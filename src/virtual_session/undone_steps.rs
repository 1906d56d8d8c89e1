//! What a text does and, further on, undoes itself: by ROLLBACK, or ROLLBACK TO a savepoint from before.
//!
//! Of a text that fails on the way all is undone, so what is told here holds whenever it matters.

use super::statement_effects::{Action, Name, Step, TransactionControl};

/// Whether the step at this place is undone by one behind it.
pub(super) fn is_undone(steps: &[Step], at: usize) -> bool {
    for (end, step) in steps.iter().enumerate().skip(at + 1) {
        let Action::Transaction(control, name) = &step.action else {
            continue;
        };
        match control {
            TransactionControl::Commit
            | TransactionControl::CommitAndChain
            | TransactionControl::PrepareTransaction => {
                return false;
            }
            TransactionControl::Rollback | TransactionControl::RollbackAndChain => return true,
            TransactionControl::RollbackTo if name.is_some() => {
                let savepoint = savepoint_of(steps.get(..end).unwrap_or_default(), name);
                if savepoint.is_none_or(|savepoint| savepoint < at) {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

/// Where the savepoint of this name stands that is in force behind these steps; `None` where it is older than they are.
fn savepoint_of(steps: &[Step], name: &Name) -> Option<usize> {
    let mut in_force: Vec<(usize, &Name)> = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        let Action::Transaction(control, name) = &step.action else {
            continue;
        };
        let known = in_force.iter().rposition(|(_, known)| *known == name);
        match (control, known) {
            (TransactionControl::Savepoint, _) => in_force.push((at, name)),
            (TransactionControl::Release, Some(known)) => in_force.truncate(known),
            // It stays; those behind it go.
            (TransactionControl::RollbackTo, Some(known)) => in_force.truncate(known + 1),
            (TransactionControl::Release | TransactionControl::RollbackTo, None) => in_force.clear(),
            (control, _) if control.ends_transaction() => in_force.clear(),
            _ => {}
        }
    }
    in_force.iter().rfind(|(_, known)| *known == name).map(|(at, _)| *at)
}

#[cfg(test)]
mod tests {
    use super::super::sql_lexer::Lexing;
    use super::super::statement_effects::classify;
    use super::super::suspects::Suspects;
    use super::*;

    #[test]
    fn a_step_is_undone_by_a_rollback_to_what_was_before_it() {
        for (text, expected) in [
            ("RESET x", &[false][..]),
            ("RESET x; ROLLBACK", &[true]),
            ("RESET x; COMMIT; RESET x; ROLLBACK", &[false, true]),
            ("BEGIN; SAVEPOINT s; RESET x; ROLLBACK TO s", &[true]),
            ("BEGIN; RESET x; SAVEPOINT s; RESET x; ROLLBACK TO s", &[false, true]),
            ("RESET x; ROLLBACK TO older", &[true]),
            (
                "BEGIN; SAVEPOINT s; SAVEPOINT s; RESET x; RELEASE s; ROLLBACK TO s",
                &[true],
            ),
            ("BEGIN; SAVEPOINT s; RESET x; SAVEPOINT s; ROLLBACK TO s", &[false]),
            (
                "BEGIN; SAVEPOINT s; RESET x; SAVEPOINT s; RELEASE s; ROLLBACK TO s",
                &[true],
            ),
            (
                "BEGIN; SAVEPOINT s; RESET x; SAVEPOINT t; ROLLBACK TO t; RESET x; ROLLBACK TO s",
                &[true, true],
            ),
            (
                "BEGIN; SAVEPOINT s; RESET x; RELEASE s; COMMIT AND CHAIN; ROLLBACK",
                &[false],
            ),
            ("BEGIN; RESET x; PREPARE TRANSACTION 't'", &[false]),
        ] {
            let effects = classify(text.as_bytes(), Lexing::default(), &Suspects::known(std::iter::empty()));
            let is_reset = |(at, step): (usize, &Step)| {
                matches!(step.action, Action::Setting(_)).then(|| is_undone(&effects.steps, at))
            };
            let undone: Vec<bool> = effects.steps.iter().enumerate().filter_map(is_reset).collect();
            assert_eq!(undone, expected, "{text}");
        }
    }
}
