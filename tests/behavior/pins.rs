//! What a client leaves in its session ties its backend to it, is seen there and nowhere else, and is gone with it.

use pgsidecar::wire::SqlState;

use crate::support::eventually;
use crate::support::postgres::{Database, PASSWORD, Postgres, SUPERUSER_PASSWORD, USER};
use crate::support::process::psql;
use crate::support::raw_client::{RawClient, bind, execute, function_call, parse, query, sync, tags, together};
use crate::support::sidecar::Sidecar;

/// Who uses a sidecar, with how many backends.
async fn sidecar_as(database: &Database, user: &str, password: &str, max_size: &str) -> Sidecar {
    crate::support::sidecar::Builder::default()
        .upstream(database.url_as(user, password))
        .set("POOL__MAX_SIZE", max_size)
        .start_ready()
        .await
}

/// One kind of session state.
struct Case {
    /// Leaves the state.
    leaves: &'static str,
    /// Yields `mine` where the state is.
    shows: &'static str,
    /// The pin's reason.
    reason: &'static str,
}

const fn case(reason: &'static str, leaves: &'static str, shows: &'static str) -> Case {
    Case { leaves, shows, reason }
}

const IDLE: &str = "SELECT CASE current_setting('idle_session_timeout') WHEN '7h' THEN 'mine' ELSE 'neutral' END";
const TIMEOUT: &str = "SELECT CASE current_setting('statement_timeout') WHEN '999ms' THEN 'mine' ELSE 'neutral' END";
const WORK_MEM: &str = "SELECT CASE current_setting('work_mem') WHEN '7MB' THEN 'mine' ELSE 'neutral' END";
/// A custom setting that was ever set reads '' after RESET: only NULL is neutral.
const TENANT: &str = "SELECT coalesce(nullif(current_setting('app.tenant_id', true), ''), CASE WHEN current_setting('app.tenant_id', true) IS NULL THEN 'neutral' ELSE 'trace' END)";
const LOCKS: &str = "SELECT CASE count(*) WHEN 0 THEN 'neutral' ELSE 'mine' END FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Runs every case on a backend that the client shares with nobody, and looks for its traces afterwards.
async fn nothing_reaches_the_next(user: &str, password: &str, cases: &[Case]) {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_as(&database, user, password, "1").await;
    for Case { leaves, shows, reason } in cases {
        let labels = [("reason", *reason)];
        let before = sidecar.metric("pgsidecar_pins_total", &labels).await.expect(reason);
        let mut first = RawClient::login(sidecar.port, user, password, &database.name).await;
        assert_eq!(first.value(shows).await, "neutral", "{leaves}");
        let backend = first.value("SELECT pg_backend_pid()").await;
        let answer = first.ask(leaves).await;
        assert!(!tags(&answer).contains('E'), "{leaves}: {}", answer[0].report());
        sidecar
            .wait_metric("pgsidecar_pins_total", &labels, |count| count == before + 1.0)
            .await;
        sidecar
            .wait_metric("pgsidecar_backends", &[("state", "pinned")], |count| count == 1.0)
            .await;
        // Somebody else wants the backend meanwhile, and does not get it.
        let mut second = RawClient::login(sidecar.port, user, password, &database.name).await;
        second.query(shows).await;
        sidecar
            .wait_metric("pgsidecar_clients", &[("state", "waiting")], |count| count == 1.0)
            .await;
        assert_eq!(first.value(shows).await, "mine", "{leaves}");
        assert_eq!(first.value("SELECT pg_backend_pid()").await, backend);
        drop(first);
        assert_eq!(
            second.until_ready().await[1].row(),
            [Some("neutral".to_owned())],
            "{leaves}"
        );
        sidecar
            .wait_metric("pgsidecar_backends", &[("state", "pinned")], |count| count == 0.0)
            .await;
    }
    sidecar.wait_for_log("a client is pinned").await;
    assert!(!sidecar.log().contains("'7h'"), "the log tells no literal");
}

#[tokio::test]
async fn trap_54_settings_that_can_not_be_moved() {
    nothing_reaches_the_next(
        USER,
        PASSWORD,
        &[
            case("setting", "SET idle_session_timeout = '7h'", IDLE),
            case("setting", "/* a */ SET SESSION idle_session_timeout TO '7h' -- b", IDLE),
            case("setting", "SELECT 1; SET idle_session_timeout = '7h'", IDLE),
            case(
                "setting",
                "SELECT set_config('idle_session_timeout', '7h', false)",
                IDLE,
            ),
            case(
                "setting",
                "SET statement_timeout = '7ms'; SELECT 1; RESET statement_timeout; SET statement_timeout = '999ms'",
                TIMEOUT,
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn trap_58_custom_settings_leave_not_even_a_placeholder() {
    nothing_reaches_the_next(
        USER,
        PASSWORD,
        &[
            case(
                "custom_setting",
                "WITH n AS (SELECT 'app.tenant_id' AS name) SELECT set_config(name, 'mine', false) FROM n",
                TENANT,
            ),
            case(
                "unknown",
                "DO $$ BEGIN PERFORM set_config('app.tenant_id', 'mine', false); END $$",
                TENANT,
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn trap_65_session_advisory_locks_of_every_form() {
    nothing_reaches_the_next(
        USER,
        PASSWORD,
        &[
            case("advisory_lock", "SELECT pg_advisory_lock(1)", LOCKS),
            case("advisory_lock", "SELECT pg_advisory_lock(1, 2)", LOCKS),
            case("advisory_lock", "SELECT pg_advisory_lock_shared(1)", LOCKS),
            case("advisory_lock", "SELECT pg_advisory_lock_shared(1, 2)", LOCKS),
            case("advisory_lock", "SELECT pg_try_advisory_lock(length('abc'))", LOCKS),
            case("advisory_lock", "SELECT pg_catalog.pg_try_advisory_lock(1, 2)", LOCKS),
            case("advisory_lock", "SELECT pg_try_advisory_lock_shared(1)", LOCKS),
            case("advisory_lock", "SELECT \"pg_try_advisory_lock_shared\" (1, 2)", LOCKS),
        ],
    )
    .await;
}

#[tokio::test]
async fn traps_64_66_67_what_a_session_holds() {
    nothing_reaches_the_next(
        USER,
        PASSWORD,
        &[
            case(
                "listen",
                // Who hears only plain names for all can't hear this one.
                "LISTEN \"kanäle\"",
                "SELECT CASE count(*) WHEN 0 THEN 'neutral' ELSE 'mine' END FROM pg_listening_channels()",
            ),
            case(
                "prepare",
                "SELECT 1; PREPARE kept AS SELECT 1",
                "SELECT CASE count(*) WHEN 0 THEN 'neutral' ELSE 'mine' END FROM pg_prepared_statements WHERE name = 'kept'",
            ),
            case(
                "temporary_table",
                "CREATE TEMP TABLE kept (x int)",
                "SELECT CASE WHEN to_regclass('pg_temp.kept') IS NULL THEN 'neutral' ELSE 'mine' END",
            ),
            case(
                "temporary_table",
                "SELECT 1 AS x INTO TEMPORARY kept",
                "SELECT CASE WHEN to_regclass('pg_temp.kept') IS NULL THEN 'neutral' ELSE 'mine' END",
            ),
            case(
                "temporary_table",
                "CREATE VIEW pg_temp.kept AS SELECT 1",
                "SELECT CASE WHEN to_regclass('pg_temp.kept') IS NULL THEN 'neutral' ELSE 'mine' END",
            ),
            case(
                "hold_cursor",
                "DECLARE kept CURSOR WITH HOLD FOR SELECT 1",
                "SELECT CASE count(*) WHEN 0 THEN 'neutral' ELSE 'mine' END FROM pg_cursors WHERE name = 'kept'",
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn trap_68_what_discard_all_does_not_reach_closes_the_backend() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_as(&database, USER, PASSWORD, "1").await;
    for (reason, leaves) in [
        ("setseed", "SELECT setseed(0.5)"),
        ("setseed", "SET seed = 0.5"),
        ("unknown", "DO $$ BEGIN END $$"),
    ] {
        let mut first = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
        let backend = first.value("SELECT pg_backend_pid()").await;
        let before = sidecar
            .metric("pgsidecar_pins_total", &[("reason", reason)])
            .await
            .expect(reason);
        first.ask(leaves).await;
        sidecar
            .wait_metric("pgsidecar_pins_total", &[("reason", reason)], |count| {
                count == before + 1.0
            })
            .await;
        assert_eq!(first.value("SELECT pg_backend_pid()").await, backend);
        drop(first);
        let mut next = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
        assert_ne!(next.value("SELECT pg_backend_pid()").await, backend, "{leaves}");
    }
}

#[tokio::test]
async fn what_only_a_superuser_may_leave() {
    nothing_reaches_the_next(
        "postgres",
        SUPERUSER_PASSWORD,
        &[case(
            "load",
            "LOAD 'auto_explain'",
            "SELECT CASE WHEN current_setting('auto_explain.log_analyze', true) IS NULL THEN 'neutral' ELSE 'mine' END",
        )],
    )
    .await;
}

#[tokio::test]
async fn trap_55_what_ends_with_the_transaction_pins_nothing() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_as(&database, USER, PASSWORD, "1").await;
    let mut first = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let mut second = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    first.ask("CREATE TABLE plain (x int)").await;
    for harmless in [
        "SET LOCAL work_mem = '7MB'",
        "BEGIN; SET LOCAL app.tenant_id = '1'; COMMIT",
        "BEGIN; SET TRANSACTION READ ONLY; COMMIT",
        "BEGIN; SET CONSTRAINTS ALL DEFERRED; COMMIT",
        "BEGIN; SELECT set_config('app.tenant_id', '1', true); COMMIT",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT pg_try_advisory_xact_lock_shared(1, 2)",
        "BEGIN; DECLARE c CURSOR FOR SELECT 1; FETCH c; COMMIT",
        "NOTIFY channel",
        "INSERT INTO plain VALUES (1)",
        "SELECT lower('A'), count(*), now() FROM plain",
    ] {
        let answer = first.ask(harmless).await;
        assert!(!tags(&answer).contains('E'), "{harmless}");
        // With one backend the second client would wait for ever.
        second.value("SELECT 1").await;
    }
    assert_eq!(sidecar.metric("pgsidecar_pins_total", &[]).await, Some(0.0));
}

#[tokio::test]
async fn trap_57_a_bound_value_decides_what_set_config_does() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_as(&database, USER, PASSWORD, "1").await;
    let mut first = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let call = [
        parse("", "SELECT set_config($1, $2, $3::bool)"),
        bind("", "", &["app.tenant_id", "mine", "false"]),
        execute("", 0),
        sync(),
    ];
    first.send(&together(&call)).await;
    first.expect("1 2 D C Z").await;
    assert_eq!(first.value(TENANT).await, "mine");
    drop(first);
    let mut second = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(second.value(TENANT).await, "neutral");
}

#[tokio::test]
async fn trap_61_timeouts_of_one_client_are_no_one_elses() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_as(&database, USER, PASSWORD, "1").await;
    let mut first = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let backend = first.value("SELECT pg_backend_pid()").await;
    for sql in [
        "SET lock_timeout = 1",
        "SET idle_in_transaction_session_timeout = 60000",
        "SET statement_timeout = 1",
    ] {
        first.query(sql).await;
        first.until_ready().await;
    }
    drop(first);
    let mut second = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(second.value("SHOW statement_timeout").await, "0");
    assert_eq!(second.value("SHOW lock_timeout").await, "0");
    assert_eq!(
        second.value("SELECT pg_backend_pid()").await,
        backend,
        "it was reset, not closed"
    );
}

#[tokio::test]
async fn trap_70_discard_all_gives_the_backend_back() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_as(&database, USER, PASSWORD, "1").await;
    let mut first = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    first.ask("SET work_mem = '7MB'").await;
    first.ask("CREATE TEMP TABLE kept (x int)").await;
    sidecar
        .wait_metric("pgsidecar_backends", &[("state", "pinned")], |count| count == 1.0)
        .await;
    let answer = first.ask("BEGIN").await;
    assert_eq!(answer[0].command(), "BEGIN");
    assert_eq!(first.ask("DISCARD ALL").await[0].sqlstate(), "25001");
    first.ask("ROLLBACK").await;
    assert_eq!(first.ask("DISCARD ALL").await[0].command(), "DISCARD ALL");
    let mut second = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(second.value(WORK_MEM).await, "neutral");
    assert_eq!(first.value(WORK_MEM).await, "neutral");
    sidecar
        .wait_metric("pgsidecar_backends", &[("state", "pinned")], |count| count == 0.0)
        .await;
}

#[tokio::test]
async fn trap_57_what_routines_triggers_and_views_do_unseen_stays_with_their_caller() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_as(&database, USER, PASSWORD, "1").await;
    let mut owner = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    for sql in [
        "CREATE FUNCTION leave() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN set_config('app.tenant_id', 'mine', false); END $$",
        "CREATE FUNCTION leave_by_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM leave(); RETURN new; END $$",
        "CREATE TABLE watched (x int)",
        "CREATE TRIGGER watching BEFORE INSERT ON watched FOR EACH ROW EXECUTE FUNCTION leave_by_trigger()",
        "CREATE VIEW looking AS SELECT leave()",
    ] {
        let answer = owner.ask(sql).await;
        assert_eq!(tags(&answer), "CZ", "{sql}");
    }
    // The first knew the catalog's changes as its own; another learns them from the catalog.
    for leaves in [
        "SELECT leave()",
        "INSERT INTO watched VALUES (1)",
        "SELECT * FROM looking",
    ] {
        for mut first in [
            RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await,
            RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await,
        ] {
            assert!(!tags(&first.ask(leaves).await).contains('E'), "{leaves}");
            assert_eq!(first.value(TENANT).await, "mine", "{leaves}");
        }
        let mut second = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
        assert_eq!(second.value(TENANT).await, "neutral", "{leaves}");
    }
    drop(owner);
}

#[tokio::test]
async fn trap_57_a_trigger_made_by_another_way_is_known_after_catalog_refresh() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .set("POOL__CATALOG_REFRESH", "100ms")
        .start_ready()
        .await;
    let mut first = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    first.ask("CREATE TABLE watched (x int)").await;
    let directly = [
        "CREATE FUNCTION leave() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM set_config('work_mem', '7MB', false); RETURN new; END $$",
        "CREATE TRIGGER watching BEFORE INSERT ON watched FOR EACH ROW EXECUTE FUNCTION leave()",
    ];
    psql(&database.url(), &directly).await.ok();
    eventually("a pin by the trigger", async || {
        first.ask("INSERT INTO watched VALUES (1)").await;
        sidecar
            .metric("pgsidecar_pins_total", &[("reason", "suspect")])
            .await
            .filter(|count| *count > 0.0)
    })
    .await;
    drop(first);
    let mut second = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(second.value("SHOW work_mem").await, "4MB");
}

#[tokio::test]
async fn trap_57_a_routine_made_by_a_pinned_client_is_known_to_the_others_at_once() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_as(&database, USER, PASSWORD, "2").await;
    let mut owner = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let mut first = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    first.ask("SELECT 1").await;
    owner.ask("SET idle_session_timeout = '7h'").await;
    owner
        .ask("CREATE FUNCTION leave() RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant_id', 'mine', false) $$")
        .await;
    first.ask("SELECT leave()").await;
    assert_eq!(first.value(TENANT).await, "mine");
    drop(first);
    let mut second = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(second.value(TENANT).await, "neutral");
    drop(owner);
    let mut third = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(third.value(TENANT).await, "neutral");
}

#[tokio::test]
async fn what_ties_a_backend_behind_a_discard_all_under_way_ties_it_still_when_that_is_answered() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_as(&database, USER, PASSWORD, "1").await;
    let extended = |sql| [parse("", sql), bind("", "", &[]), execute("", 0), sync()];
    for (leaves, shows) in [
        ("SET idle_session_timeout = '7h'", IDLE),
        ("SELECT pg_advisory_lock(5)", LOCKS),
    ] {
        let simple = together(&[query("DISCARD ALL"), query(leaves)]);
        let prepared = together(&[together(&extended("DISCARD ALL")), together(&extended(leaves))]);
        for sent in [simple, prepared] {
            let mut first = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
            first.send(&sent).await;
            for _ in 0..2 {
                let answer = first.until_ready().await;
                assert!(!tags(&answer).contains('E'), "{leaves}: {}", answer[0].report());
            }
            assert_eq!(first.value(shows).await, "mine");
            sidecar
                .wait_metric("pgsidecar_backends", &[("state", "pinned")], |count| count == 1.0)
                .await;
            drop(first);
            let mut second = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
            assert_eq!(second.value(shows).await, "neutral", "{leaves}");
        }
    }
}

/// Trap 57: what was known of a routine before it was replaced counts no more, not even for who replaced it.
#[tokio::test]
async fn trap_57_a_routine_that_is_replaced_is_not_called_as_if_it_were_the_old_one() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_as(&database, USER, PASSWORD, "1").await;
    let mut owner = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let harmless = "CREATE OR REPLACE FUNCTION named() RETURNS text LANGUAGE sql AS $$ SELECT 'a' || 'b' $$";
    let leaving = "CREATE OR REPLACE FUNCTION named() RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant_id', 'mine', false) $$";
    for how in ["one transaction", "pipelined", "prepared before", "unnamed before"] {
        assert_eq!(tags(&owner.ask(harmless).await), "CZ", "{how}");
        let mut first = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
        assert_eq!(first.value("SELECT named()").await, "ab");
        // It is known, and so its calls don't pin.
        assert_eq!(owner.value("SELECT 1").await, "1", "{how}");
        let call = together(&[bind("", "s", &[]), execute("", 0), sync()]);
        match how {
            "one transaction" => {
                for sql in ["BEGIN", leaving, "SELECT named()", "COMMIT"] {
                    assert!(!tags(&first.ask(sql).await).contains('E'), "{sql}");
                }
            }
            "pipelined" => {
                first.send(&together(&[query(leaving), query("SELECT named()")])).await;
                first.expect("C Z T D C Z").await;
            }
            "prepared before" => {
                first.send(&together(&[parse("s", "SELECT named()"), sync()])).await;
                first.expect("1 Z").await;
                assert_eq!(tags(&owner.ask(leaving).await), "CZ");
                first.send(&call).await;
                first.expect("2 D C Z").await;
            }
            _ => {
                first.send(&together(&[parse("", "SELECT named()"), sync()])).await;
                first.expect("1 Z").await;
                assert_eq!(tags(&owner.ask(leaving).await), "CZ");
                first
                    .send(&together(&[bind("", "", &[]), execute("", 0), sync()]))
                    .await;
                first.expect("2 D C Z").await;
            }
        }
        drop(first);
        assert_eq!(owner.value(TENANT).await, "neutral", "{how}");
    }
}

/// A login with a name of its own, for the log to tell.
async fn named(sidecar: &Sidecar, database: &Database, name: &str) -> RawClient {
    let mut client = RawClient::connect(sidecar.port).await;
    let parameters = [("database", &*database.name), ("application_name", name)];
    client.log_in(USER, PASSWORD, &parameters).await.unwrap();
    client
}

#[tokio::test]
async fn trap_69_the_log_names_who_is_pinned_and_by_which_statement_without_its_literals() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "9")
        .start_ready()
        .await;
    let behind = together(&[query("SELECT 'behind it'"), query("SELECT 1")]);
    let simple = query("SET idle_session_timeout = '7531s'");
    let prepared = together(&[
        parse("s", "SELECT pg_advisory_lock(4711), 'hidden'"),
        sync(),
        query("SELECT 2"),
        bind("", "s", &[]),
        execute("", 0),
        sync(),
    ]);
    let unnamed = together(&[
        parse("", "CREATE TEMP TABLE kept (x int)"),
        sync(),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ]);
    let call = function_call(1397, &[]);
    for (name, pinning, told) in [
        ("simple one", simple, "SET idle_session_timeout = ?"),
        ("prepared one", prepared, "SELECT pg_advisory_lock(?), ?"),
        ("unnamed one", unnamed, "CREATE TEMP TABLE kept (x int)"),
        ("calling one", call, "reason=routine"),
    ] {
        let mut client = named(&sidecar, &database, name).await;
        client.send(&together(&[pinning, behind.clone()])).await;
        let line = sidecar.wait_for_log(&format!("application_name={name:?}")).await;
        assert!(
            line.contains("a client is pinned") && line.contains(told),
            "{told} in {line}"
        );
        assert_eq!(name == "calling one", !line.contains("statement="), "{line}");
    }
    for secret in ["7531s", "4711", "hidden", "behind it"] {
        assert!(!sidecar.log().contains(secret), "{secret} in the log");
    }
}

#[tokio::test]
async fn trap_69_a_pool_whose_backends_are_all_pinned_is_told_of_in_the_log_and_in_the_hint() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "2")
        .set("POOL__ACQUIRE_TIMEOUT", "300ms")
        .start_ready()
        .await;
    let warned = async || sidecar.log().matches("every backend of the pool is pinned").count();
    let mut one = named(&sidecar, &database, "one").await;
    one.ask("CREATE TEMP TABLE a (x int)").await;
    one.ask("SET idle_session_timeout = '7h'").await;
    assert_eq!(warned().await, 0);
    let mut two = named(&sidecar, &database, "two").await;
    two.ask("CREATE TEMP TABLE b (x int)").await;
    sidecar.wait_for_log("every backend of the pool is pinned").await;
    let mut three = named(&sidecar, &database, "three").await;
    let refused = three.ask("SELECT 1").await[0].report();
    assert_eq!(refused.sqlstate, SqlState::TOO_MANY_CONNECTIONS);
    assert!(refused.hint.is_some_and(|hint| hint.contains("pins")));
    two.ask("DISCARD ALL").await;
    assert_eq!(three.value("SELECT 3").await, "3");
    assert_eq!(warned().await, 1);
}
