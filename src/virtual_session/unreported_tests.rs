//! What becomes of settings in doubt, by what PostgreSQL answers.

use super::super::setting_change::{SettingChange, SettingName, SettingScope, SettingValue};
use super::super::sql_lexer::Lexing;
use super::super::statement_effects::{Action, Effects, Step, classify};
use super::super::suspects::Suspects;
use super::super::{SharedLedger, VirtualSession};
use super::*;

fn client(startup: &[(&str, &str)]) -> VirtualSession {
    let startup = Settings::new(startup.iter().map(|(name, value)| ((*name).into(), (*value).into())));
    VirtualSession::new(1, Arc::new(SharedLedger::new(7)), startup, Lexing::default())
}

fn run(session: &mut VirtualSession, backend: &mut BackendState, changes: &[SettingChange]) {
    let steps = changes.iter().map(|change| Step {
        statement: 0,
        action: Action::Setting(change.clone()),
    });
    let effects = Effects {
        steps: steps.collect(),
        statement_count: 1,
        ..Effects::NONE
    };
    session.apply(&effects, backend, |name| match is_portable(name) {
        true => Following::ByAsking,
        false => Following::Tied,
    });
}

fn set(name: &str) -> SettingChange {
    SettingChange::Set {
        name: SettingName::Known(name.as_bytes().into()),
        value: SettingValue::Text(b"x".as_slice().into()),
        scope: SettingScope::Session,
    }
}

fn reset(name: &str) -> SettingChange {
    SettingChange::Reset(name.as_bytes().into())
}

fn row(columns: &[Option<&str>]) -> Vec<u8> {
    let mut row = i16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
    for column in columns {
        let len = column.map_or(-1, |text| i32::try_from(text.len()).unwrap());
        row.extend(len.to_be_bytes());
        row.extend(column.unwrap_or_default().bytes());
    }
    row
}

fn answer(session: &mut VirtualSession, backend: &mut BackendState, columns: &[Option<&str>]) {
    let question = session.question().expect("something is in doubt");
    session.answered(question, &row(columns), backend, Some("app"), true);
}

#[test]
fn trap_56_a_setting_is_what_postgresql_says_that_it_has_become() {
    let (mut session, mut backend) = (client(&[]), BackendState::default());
    run(&mut session, &mut backend, &[set("work_mem"), set("app.x")]);
    assert!(session.is_in_doubt() && session.pins().is_empty());
    let sql = String::from_utf8(session.question().unwrap().sql()).unwrap();
    assert_eq!(
        sql,
        "SELECT pg_catalog.current_setting('work_mem', true), pg_catalog.current_setting('app.x', true), CASE WHEN \
         pg_catalog.current_setting('work_mem', true) IS NOT NULL THEN pg_catalog.set_config('work_mem', NULL, true) END"
    );
    let (mut session, mut backend) = (client(&[]), BackendState::default());
    run(&mut session, &mut backend, &[set("work_mem"), set("app.x")]);
    answer(&mut session, &mut backend, &[Some("7MB"), Some("one"), Some("4MB")]);
    assert!(!session.is_in_doubt() && !backend.unsure);
    assert_eq!(session.settings().value("work_mem"), Some("7MB"));
    assert!(Arc::ptr_eq(&backend.applied, &session.wanted) && session.prelude_for(&mut backend).is_none());
    // Taken back: equal to its default, and a custom one empty.
    run(&mut session, &mut backend, &[SettingChange::ResetAll]);
    answer(&mut session, &mut backend, &[Some(""), Some("4MB"), Some("4MB")]);
    assert_eq!(session.settings().entries(), [("app.x".into(), "".into())]);
}

/// Trap 60: equal to the server's default is not equal to what the client started with.
#[test]
fn trap_60_a_reset_and_a_set_to_the_default_are_told_apart_or_tie() {
    let startup = [("work_mem", "5MB")];
    for (changes, expected) in [
        (&[set("work_mem")][..], Some("4MB")),
        (&[reset("work_mem")], Some("5MB")),
    ] {
        let (mut session, mut backend) = (client(&startup), BackendState::default());
        run(&mut session, &mut backend, changes);
        answer(&mut session, &mut backend, &[Some("4MB"), Some("4MB")]);
        assert_eq!(session.settings().value("work_mem"), expected);
        assert!(session.pins().is_empty());
    }
    // Set to the default before, and then perhaps RESET.
    let (mut session, mut backend) = (client(&startup), BackendState::default());
    run(&mut session, &mut backend, &[set("work_mem")]);
    answer(&mut session, &mut backend, &[Some("4MB"), Some("4MB")]);
    run(&mut session, &mut backend, &[reset("work_mem")]);
    session.reset_decided(true);
    answer(&mut session, &mut backend, &[Some("4MB"), Some("4MB")]);
    assert_eq!(session.settings().value("work_mem"), Some("4MB"), "undone");
    run(&mut session, &mut backend, &[reset("work_mem")]);
    session.reset_decided(false);
    answer(&mut session, &mut backend, &[Some("4MB"), Some("4MB")]);
    assert_eq!(session.settings().value("work_mem"), Some("5MB"), "done");
    let (mut session, mut backend) = (client(&startup), BackendState::default());
    run(&mut session, &mut backend, &[reset("work_mem"), set("work_mem")]);
    answer(&mut session, &mut backend, &[Some("4MB"), Some("4MB")]);
    assert!(session.pins().contains(PinReason::Setting));
}

/// Trap 60: a RESET that its text undoes leaves what was said before it.
#[test]
fn trap_60_a_reset_that_is_undone_makes_no_set_of_the_one_ahead_of_it() {
    let (mut session, mut backend) = (client(&[("work_mem", "5MB")]), BackendState::default());
    let text = b"BEGIN; SET work_mem TO DEFAULT; SAVEPOINT s; RESET work_mem; ROLLBACK TO s; COMMIT";
    let effects = classify(text, Lexing::default(), &Suspects::known(std::iter::empty()));
    session.apply(&effects, &mut backend, |_| Following::ByAsking);
    session.reset_decided(false);
    answer(&mut session, &mut backend, &[Some("4MB"), Some("4MB")]);
    assert_eq!(session.settings().value("work_mem"), Some("5MB"));
    assert!(session.pins().is_empty());
}

/// Trap 60: a prelude that said it again would come behind what a block of code has made of it meanwhile.
#[test]
fn trap_60_a_setting_that_is_set_to_the_servers_default_is_not_said_again() {
    let (mut session, mut backend) = (client(&[("work_mem", "5MB")]), BackendState::default());
    session.prelude_for(&mut backend);
    run(&mut session, &mut backend, &[set("work_mem")]);
    answer(&mut session, &mut backend, &[Some("4MB"), Some("4MB")]);
    assert_eq!(session.settings().value("work_mem"), Some("4MB"));
    assert_eq!(session.prelude_for(&mut backend), None);
}

#[test]
fn what_is_in_doubt_ties_when_there_is_no_answer() {
    let (mut session, mut backend) = (client(&[]), BackendState::default());
    run(&mut session, &mut backend, &[set("work_mem")]);
    for failures in 0..FAILURES_MAX {
        assert!(session.pins().is_empty() && session.is_bound());
        let question = session.question().unwrap();
        assert_eq!(question.with_defaults, failures == 0);
        assert!(session.question().is_none() && session.is_in_doubt() && session.awaits_answer());
        session.unanswered(question);
    }
    assert!(session.pins().contains(PinReason::Setting) && !session.is_in_doubt());
    for (columns, is_unicode) in [
        (&[Some("é"), Some("x")][..], false),
        (&[Some("1ms"), Some("0")], true),
        (&[Some("1s")], true),
        (&[Some("1s"), Some("0"), Some("0")], true),
        (&[], true),
    ] {
        let (mut session, mut backend) = (client(&[]), BackendState::default());
        run(&mut session, &mut backend, &[set("statement_timeout")]);
        let question = session.question().unwrap();
        session.answered(question, &row(columns), &mut backend, None, is_unicode);
        assert!(session.pins().contains(PinReason::Setting), "{columns:?}");
    }
}

/// Trap 60: where the defaults were refused, the tag of a RESET is enough.
#[test]
fn trap_60_a_reset_returns_to_the_startup_value_though_a_question_has_failed() {
    for (is_undone, expected) in [(false, Some("5MB")), (true, Some("7MB"))] {
        let (mut session, mut backend) = (client(&[("work_mem", "5MB")]), BackendState::default());
        run(&mut session, &mut backend, &[set("work_mem")]);
        answer(&mut session, &mut backend, &[Some("7MB"), Some("4MB")]);
        run(&mut session, &mut backend, &[reset("work_mem")]);
        session.reset_decided(is_undone);
        let question = session.question().unwrap();
        session.unanswered(question);
        let here = if is_undone { "7MB" } else { "4MB" };
        answer(&mut session, &mut backend, &[Some(here)]);
        assert_eq!(session.settings().value("work_mem"), expected);
        assert!(session.pins().is_empty());
    }
}

/// Trap 61: what is asked for with a setting that ties its client is told all the same.
#[test]
fn trap_61_a_short_timeout_ties_and_a_reset_beside_it_returns_to_the_startup_value() {
    let (mut session, mut backend) = (client(&[("work_mem", "5MB")]), BackendState::default());
    run(&mut session, &mut backend, &[set("lock_timeout"), reset("work_mem")]);
    session.reset_decided(false);
    answer(
        &mut session,
        &mut backend,
        &[Some("5ms"), Some("4MB"), Some("0"), Some("4MB")],
    );
    assert!(session.pins().contains(PinReason::Setting) && !session.is_in_doubt());
    assert_eq!(session.settings().value("work_mem"), Some("5MB"));
    let prelude = String::from_utf8(session.prelude_for(&mut backend).unwrap()).unwrap();
    assert!(
        prelude.contains("'work_mem','5MB'") && !prelude.contains("lock_timeout"),
        "{prelude}"
    );
}

#[test]
fn a_name_that_could_not_be_said_again_ties() {
    for name in ["app.\u{fffd}", "idle_session_timeout", &"x".repeat(NAME_LEN_MAX + 1)] {
        let (mut session, mut backend) = (client(&[]), BackendState::default());
        run(&mut session, &mut backend, &[set(name)]);
        assert!(!session.pins().is_empty() && !session.is_in_doubt(), "{name}");
    }
}

/// A SET behind a question is asked for by another.
#[test]
fn what_was_touched_since_the_question_stays_in_doubt() {
    let (mut session, mut backend) = (client(&[]), BackendState::default());
    run(&mut session, &mut backend, &[set("work_mem")]);
    let question = session.question().unwrap();
    run(&mut session, &mut backend, &[set("work_mem")]);
    session.answered(question, &row(&[Some("1MB"), Some("4MB")]), &mut backend, None, true);
    assert!(session.is_in_doubt() && backend.unsure);
    answer(&mut session, &mut backend, &[Some("2MB"), Some("4MB")]);
    assert_eq!(session.settings().value("work_mem"), Some("2MB"));
    assert!(!session.is_in_doubt() && session.unseen_settings == 0);
}

/// A RESET ALL overtakes the answer to a question: what that tells was before it.
#[test]
fn trap_59_what_is_asked_for_is_taken_back_by_a_reset_behind_the_question() {
    let (mut session, mut backend) = (client(&[]), BackendState::default());
    run(&mut session, &mut backend, &[set("work_mem"), set("role")]);
    let question = session.question().unwrap();
    run(&mut session, &mut backend, &[SettingChange::ResetAll]);
    let columns = [Some("1MB"), Some("team"), Some("none"), Some("4MB"), Some("none")];
    session.answered(question, &row(&columns), &mut backend, None, true);
    assert!(session.is_in_doubt());
    answer(&mut session, &mut backend, &[Some("4MB"), Some("none"), Some("4MB")]);
    assert_eq!(session.settings().value("work_mem"), None);
    assert_eq!(session.settings().value("role"), Some("team"));
    assert!(!session.is_in_doubt());
}

#[test]
fn a_client_with_more_settings_than_are_kept_is_tied() {
    let (mut session, mut backend) = (client(&[]), BackendState::default());
    let names: Vec<_> = (0..=DOUBTS_MAX).map(|number| set(&format!("app.x{number}"))).collect();
    run(&mut session, &mut backend, &names);
    assert!(session.pins().contains(PinReason::Setting));
    let (mut session, mut backend) = (client(&[]), BackendState::default());
    run(&mut session, &mut backend, &[set("app.x")]);
    answer(&mut session, &mut backend, &[Some(&"x".repeat(SETTINGS_BYTES_MAX))]);
    assert!(session.pins().contains(PinReason::Setting));
    // Nor is there an end to the names that a backend could be made to remember.
    let (mut session, mut backend) = (client(&[]), BackendState::default());
    let names: Vec<_> = (0..2000).map(|number| set(&format!("app.x{number}"))).collect();
    run(&mut session, &mut backend, &names);
    assert!(session.pins().contains(PinReason::CustomSetting) && backend.placeholders.len() <= 1000);
}

/// Trap 58: the name stays on the backend, whatever becomes of the transaction.
#[test]
fn trap_58_a_backend_on_which_a_custom_setting_was_named_is_for_those_who_named_it() {
    let (mut session, mut backend) = (client(&[]), BackendState::default());
    let other = client(&[]);
    let local = SettingChange::Set {
        name: SettingName::Known(b"app.x".as_slice().into()),
        value: SettingValue::Unknown,
        scope: SettingScope::Local,
    };
    run(&mut session, &mut backend, std::slice::from_ref(&local));
    answer(&mut session, &mut backend, &[Some("")]);
    assert!(session.accepts(&backend) && !other.accepts(&backend));
    run(&mut session, &mut backend, &[local]);
    assert!(!session.is_in_doubt(), "it is asked once");
}
