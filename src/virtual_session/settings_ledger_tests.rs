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

/// Trap 60: RESET ALL is not of who one is; RESET SESSION AUTHORIZATION is, and of the role besides.
#[test]
fn trap_60_a_startup_role_comes_back_with_the_session_authorization_only() {
    let (mut session, mut backend) = (client(&[("role", "team")]), BackendState::default());
    session.want(session.wanted.with("role", Some("admin")));
    run(&mut session, &mut backend, "RESET ALL");
    assert_eq!(session.settings().value("role"), Some("admin"));
    run(&mut session, &mut backend, "RESET SESSION AUTHORIZATION");
    assert_eq!(session.settings().value("role"), Some("team"));
    session.reset_decided(true);
    assert_eq!(session.settings().value("role"), Some("admin"), "undone");
}

/// Trap 60: a report that comes behind a RESET is not the RESET's, where it is of another setting, or of a SET before it.
#[test]
fn trap_60_a_report_is_taken_for_a_reset_of_that_setting_only() {
    let startup = [("TimeZone", "Berlin"), ("work_mem", "5MB")];
    let (mut session, mut backend) = (client(&startup), BackendState::default());
    run(&mut session, &mut backend, "RESET work_mem");
    assert!(
        session.reported(&mut backend, "TimeZone", "UTC", Some("UTC")),
        "it is news"
    );
    assert_eq!(session.settings().value("TimeZone"), None);
    let (mut session, mut backend) = (client(&startup), BackendState::default());
    run(&mut session, &mut backend, "RESET ALL");
    assert!(!session.reported(&mut backend, "TimeZone", "UTC", Some("UTC")));
    session.reset_decided(true);
    assert_eq!(
        session.settings().value("TimeZone"),
        None,
        "a SET before it has made this"
    );
}

/// Trap 60: a SET behind a RESET in one block, to what the server's own default is.
#[test]
fn trap_60_a_set_to_the_servers_default_behind_a_reset_holds() {
    let (mut session, mut backend) = (client(&[("TimeZone", "Berlin")]), BackendState::default());
    run(&mut session, &mut backend, "RESET TimeZone");
    assert!(!session.reported(&mut backend, "TimeZone", "UTC", Some("UTC")));
    session.restore_for(&mut backend);
    session.reported(&mut backend, "TimeZone", "Berlin", Some("UTC"));
    run(&mut session, &mut backend, "SET TimeZone = 'UTC'");
    assert!(session.reported(&mut backend, "TimeZone", "UTC", Some("UTC")));
    assert_eq!(session.settings().value("TimeZone"), None);
}

/// Trap 60: one RESET behind another, and what was made again in between is told late.
#[test]
fn trap_60_a_second_reset_takes_back_what_was_made_again_behind_the_first() {
    let (mut session, mut backend) = (client(&[("TimeZone", "Berlin")]), BackendState::default());
    session.prelude_for(&mut backend);
    run(&mut session, &mut backend, "RESET ALL");
    session.reported(&mut backend, "TimeZone", "UTC", Some("UTC"));
    assert!(session.restore_for(&mut backend).is_some());
    run(&mut session, &mut backend, "RESET ALL");
    session.reported(&mut backend, "TimeZone", "Berlin", Some("UTC"));
    session.reported(&mut backend, "TimeZone", "UTC", Some("UTC"));
    assert!(session.restore_for(&mut backend).is_some());
}

/// Trap 60: a client that keeps its backend has there what no text told.
#[test]
fn trap_60_what_is_in_force_behind_a_pin_is_not_made_again_for_a_reset_of_something_else() {
    let (mut session, mut backend) = (client(&[("work_mem", "5MB")]), BackendState::default());
    session.prelude_for(&mut backend);
    run(&mut session, &mut backend, "DO 'x'");
    run(&mut session, &mut backend, "RESET TimeZone");
    session.reset_decided(false);
    assert_eq!(session.prelude_for(&mut backend), None);
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

/// Trap 57: what stands far behind in a call is not looked for, and taken for anything.
#[test]
fn trap_57_an_argument_too_long_to_be_read_may_be_any_value_for_ever() {
    let long = "1 + ".repeat(1000);
    for (text, is_known) in [
        (format!("SELECT set_config('app.x', {long} 1, true)"), true),
        (format!("SELECT set_config({long} 'app.x', 'y', true)"), false),
    ] {
        let (mut session, mut backend) = (client(&[]), BackendState::default());
        run(&mut session, &mut backend, &text);
        assert_eq!(session.is_in_doubt(), is_known);
        assert_eq!(session.pins().contains(PinReason::CustomSetting), !is_known);
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
