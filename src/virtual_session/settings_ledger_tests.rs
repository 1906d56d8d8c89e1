//! What the settings of a client come to, statement by statement.

use super::super::statement_effects::classify;
use super::super::suspects::Suspects;
use super::super::{BackendState, Following, SharedLedger, VirtualSession};
use super::*;

fn client(startup: &[(&str, &str)]) -> VirtualSession {
    let startup = Settings::new(startup.iter().map(|(name, value)| ((*name).into(), (*value).into())));
    VirtualSession::new(1, Arc::new(SharedLedger::new(7)), startup, Lexing::default())
}

fn run(session: &mut VirtualSession, backend: &mut BackendState, text: &str) {
    let effects = classify(text.as_bytes(), session.lexing(), &Suspects::known([]));
    session.apply(&effects, backend, |name| match name {
        "timezone" | "standard_conforming_strings" => Following::ByReports,
        _ => Following::ByAsking,
    });
}

/// Trap 56: how a text is read is not known while a SET of that is under way.
#[test]
fn trap_56_a_text_behind_a_change_of_how_texts_are_read_is_read_only_if_it_is_the_same_both_ways() {
    for change in [
        "SET standard_conforming_strings = off",
        "SELECT set_config('client_encoding', $1, false)",
        "SELECT set_config($1, $2, false)",
        "RESET client_encoding",
    ] {
        let (mut session, mut backend) = (client(&[]), BackendState::default());
        run(&mut session, &mut backend, change);
        for (text, is_read) in [
            (&b"SELECT 'a\\'"[..], false),
            ("SELECT 'é'".as_bytes(), false),
            (b"SELECT 'a'", true),
        ] {
            let effects = classify(text, session.lexing(), &Suspects::known([]));
            assert_eq!(!effects.pins.contains(PinReason::Unlexable), is_read, "{change}");
        }
        session.all_reported();
        assert_eq!(session.lexing(), Lexing::default());
        // Its end may change it once more.
        run(&mut session, &mut backend, "ROLLBACK");
        assert_ne!(session.lexing(), Lexing::default());
        session.all_reported();
        session.transaction_ended();
        run(&mut session, &mut backend, "SET TimeZone = 'UTC'");
        assert_eq!(session.lexing(), Lexing::default());
    }
}

#[test]
fn what_takes_every_setting_back_changes_how_texts_are_read_only_where_that_was_changed() {
    for statement in ["RESET ALL", "DISCARD ALL"] {
        let (mut session, mut backend) = (client(&[]), BackendState::default());
        run(&mut session, &mut backend, statement);
        assert_eq!(session.lexing(), Lexing::default(), "{statement}");
        session.want(session.wanted.with("standard_conforming_strings", Some("off")));
        run(&mut session, &mut backend, statement);
        assert_eq!(
            session.lexing().strings,
            StandardConformingStrings::Uncertain,
            "{statement}"
        );
    }
}
