//! Settings that PostgreSQL does not report follow their client all the same: timeouts, search paths, custom settings, roles.

use crate::support::postgres::{Database, PASSWORD, Postgres, USER};
use crate::support::raw_client::{RawClient, bind, execute, parse, sync, tags, together};
use crate::support::sidecar::Sidecar;

async fn sidecar_of(database: &Database, max_size: &str) -> Sidecar {
    Sidecar::builder(database)
        .set("POOL__MAX_SIZE", max_size)
        .start_ready()
        .await
}

async fn login(sidecar: &Sidecar, database: &Database) -> RawClient {
    RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await
}

async fn started_with(sidecar: &Sidecar, database: &Database, settings: &[(&str, &str)]) -> RawClient {
    let mut client = RawClient::connect(sidecar.port).await;
    let settings = [&[("database", database.name.as_str())], settings].concat();
    client
        .log_in(USER, PASSWORD, &settings)
        .await
        .expect("the login succeeds");
    client
}

async fn pins(sidecar: &Sidecar) -> f64 {
    sidecar.metric("pgsidecar_pins_total", &[]).await.unwrap_or(0.0)
}

#[tokio::test]
async fn trap_54_every_form_of_set_follows_its_client_over_one_backend() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    let mut client = login(&sidecar, &database).await;
    let mut other = login(&sidecar, &database).await;
    let long = "x".repeat(3000);
    let forms = [
        ("SET work_mem = '7MB'", "work_mem", "7MB"),
        ("/* a */ SET SESSION work_mem TO 8192 -- b", "work_mem", "8MB"),
        ("SET statement_timeout TO '77s'", "statement_timeout", "77s"),
        ("SET lock_timeout = 66000", "lock_timeout", "66s"),
        (
            "SET search_path = a, \"B c\", public",
            "search_path",
            "a, \"B c\", public",
        ),
        ("SET search_path = 'a, b'", "search_path", "\"a, b\""),
        ("SET SCHEMA 'it''s'", "search_path", "\"it's\""),
        ("SET search_path = ''", "search_path", "\"\""),
        ("SET search_path = é", "search_path", "\"é\""),
        ("SET sort_mem = '9MB'", "work_mem", "9MB"),
        ("SET enable_seqscan = off; SET jit = off", "jit", "off"),
        ("SELECT 1; SET jit TO on", "jit", "on"),
        ("SELECT set_config('work_mem', '10MB', false)", "work_mem", "10MB"),
        (
            "SELECT set_config('work_' || 'mem', '11MB', false), set_config('jit', 'off', false)",
            "jit",
            "off",
        ),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY",
            "default_transaction_isolation",
            "serializable",
        ),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION DEFERRABLE",
            "default_transaction_deferrable",
            "on",
        ),
    ];
    for (set, name, expected) in forms {
        if set.contains("||") {
            // Its name is not told by the text.
            continue;
        }
        let before = other.value(&format!("SHOW {name}")).await;
        let answer = client.ask(set).await;
        assert!(!tags(&answer).contains('E'), "{set}: {}", answer[0].report());
        assert_eq!(other.value(&format!("SHOW {name}")).await, before, "{set}");
        assert_eq!(client.value(&format!("SHOW {name}")).await, expected, "{set}");
    }
    assert_eq!(client.value("SHOW enable_seqscan").await, "off");
    client.ask(&format!("SET search_path = {long}, \"{long}\"")).await;
    other.value("SELECT 1").await;
    assert_eq!(
        client.value("SELECT length(current_setting('search_path'))").await,
        "128"
    );
    for (reset, name) in [
        ("RESET work_mem", "work_mem"),
        ("SET lock_timeout TO DEFAULT", "lock_timeout"),
        ("RESET ALL", "search_path"),
        ("DISCARD ALL", "jit"),
    ] {
        let neutral = other.value(&format!("SHOW {name}")).await;
        client.ask(reset).await;
        for _ in 0..2 {
            assert_eq!(client.value(&format!("SHOW {name}")).await, neutral, "{reset}");
            assert_eq!(other.value(&format!("SHOW {name}")).await, neutral, "{reset}");
        }
        client.ask(&format!("SET {name} = DEFAULT")).await;
    }
    assert_eq!(pins(&sidecar).await, 0.0);
}

/// What is set in a transaction is what PostgreSQL says when that has ended.
#[tokio::test]
async fn trap_56_what_postgresql_undoes_is_undone_for_its_client_on_every_backend() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    let mut client = login(&sidecar, &database).await;
    let mut other = login(&sidecar, &database).await;
    client
        .ask("CREATE TABLE late (x int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO late VALUES (1)")
        .await;
    client.ask("SET work_mem = '1MB'; SET app.tenant_id = 'one'").await;
    let both = "SELECT current_setting('work_mem') || ' ' || current_setting('app.tenant_id', true)";
    let set = "SET work_mem = '2MB'; SET app.tenant_id = 'two'";
    let cases: [(&[&str], &str); 12] = [
        (&["BEGIN", set, "ROLLBACK"], "1MB one"),
        (&["BEGIN", "SAVEPOINT s", set, "ROLLBACK TO s", "COMMIT"], "1MB one"),
        (
            &["BEGIN", "SAVEPOINT s", set, "SELECT 1/0", "ROLLBACK TO s", "COMMIT"],
            "1MB one",
        ),
        (&["BEGIN", set, "INSERT INTO late VALUES (1)", "COMMIT"], "1MB one"),
        (&["BEGIN", set, "SELECT 1/0", "COMMIT"], "1MB one"),
        (
            &["SET work_mem = '2MB'; SET app.tenant_id = 'two'; SELECT 1/0"],
            "1MB one",
        ),
        (&["SELECT set_config('work_mem', '2MB', false) WHERE false"], "1MB one"),
        (
            &[
                "BEGIN",
                set,
                "SET LOCAL work_mem = '3MB'",
                "SET LOCAL app.tenant_id = 'three'",
                "COMMIT",
            ],
            "2MB two",
        ),
        (
            &[
                "BEGIN",
                "SAVEPOINT s",
                "SET work_mem = '1MB'; SET app.tenant_id = 'one'",
                "RELEASE s",
                "COMMIT",
            ],
            "1MB one",
        ),
        (
            &["BEGIN; SET work_mem = '2MB'; COMMIT; BEGIN; SET work_mem = '4MB'; ROLLBACK"],
            "2MB one",
        ),
        (
            &[
                "BEGIN",
                "RESET work_mem",
                "SET app.tenant_id = ''",
                "ROLLBACK AND CHAIN",
                "COMMIT",
            ],
            "2MB one",
        ),
        (&["BEGIN", "RESET ALL", "ROLLBACK"], "2MB one"),
    ];
    for (statements, expected) in cases {
        for sql in statements {
            client.ask(sql).await;
        }
        for _ in 0..2 {
            assert_eq!(other.value("SHOW work_mem").await, "4MB", "{statements:?}");
            assert_eq!(client.value(both).await, expected, "{statements:?}");
        }
    }
    assert_eq!(pins(&sidecar).await, 0.0);
}

#[tokio::test]
async fn trap_57_a_set_config_follows_by_the_names_that_are_bound() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    let mut client = login(&sidecar, &database).await;
    let mut other = login(&sidecar, &database).await;
    client
        .send(&together(&[
            parse("named", "SELECT set_config($1, $2, $3::bool)"),
            sync(),
        ]))
        .await;
    client.expect("1 Z").await;
    for (statement, name, value) in [
        ("named", "work_mem", "7MB"),
        ("", "Work_Mem", "8MB"),
        ("named", "app.x", "it's"),
    ] {
        let mut group = vec![bind("", statement, &[name, value, "false"]), execute("", 0), sync()];
        if statement.is_empty() {
            group.insert(0, parse("", "SELECT set_config($1, $2, $3::bool)"));
        }
        client.send(&together(&group)).await;
        assert!(!tags(&client.until_ready().await).contains('E'));
        other.value("SELECT 1").await;
        assert_eq!(client.value(&format!("SELECT current_setting('{name}')")).await, value);
    }
    assert_eq!(other.value("SHOW work_mem").await, "4MB");
    // A path into temporary tables is no one else's.
    let group = [
        bind("", "named", &["search_path", "pg_temp, public", "false"]),
        execute("", 0),
        sync(),
    ];
    client.send(&together(&group)).await;
    client.expect("2 D C Z").await;
    sidecar
        .wait_metric("pgsidecar_pins_total", &[("reason", "temporary_table")], |count| {
            count == 1.0
        })
        .await;
}

/// A client that never named a custom setting sees NULL, whoever else has named it; one that has sees `''`.
#[tokio::test]
async fn trap_58_custom_settings_follow_and_leave_no_trace_with_others() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "2").await;
    let seen = "SELECT coalesce(current_setting('app.tenant_id', true), 'null')";
    for naming in [
        "SET app.tenant_id = 'mine'",
        "SELECT set_config('app.tenant_id', 'mine', false)",
        "BEGIN; SET LOCAL app.tenant_id = 'local'; COMMIT",
        "BEGIN; SET app.tenant_id = 'undone'; ROLLBACK",
        "RESET app.tenant_id",
        "SET APP.Tenant_ID TO 'it''s \\ \"quoted\"'",
    ] {
        let mut direct = RawClient::login(database.port, USER, PASSWORD, &database.name).await;
        let mut client = login(&sidecar, &database).await;
        let mut others = [login(&sidecar, &database).await, login(&sidecar, &database).await];
        assert_eq!(client.value(seen).await, "null", "{naming}");
        client.ask(naming).await;
        direct.ask(naming).await;
        let expected = direct.value(seen).await;
        for _ in 0..2 {
            assert_eq!(client.value(seen).await, expected, "{naming}");
            for other in &mut others {
                assert_eq!(other.value(seen).await, "null", "{naming}");
            }
        }
        // Both backends at once.
        client.ask("BEGIN").await;
        assert_eq!(others[0].value(seen).await, "null", "{naming}");
        client.ask("COMMIT").await;
        others[0].ask("BEGIN").await;
        assert_eq!(client.value(seen).await, expected, "{naming}");
        others[0].ask("COMMIT").await;
        client.ask("DISCARD ALL").await;
        direct.ask("DISCARD ALL").await;
        assert_eq!(client.value(seen).await, direct.value(seen).await, "{naming}");
    }
    assert_eq!(pins(&sidecar).await, 0.0);
}

/// Trap 60: what a client started with is what RESET returns to, whichever backend it is on.
#[tokio::test]
async fn trap_60_resets_of_unreported_settings_return_to_the_startup_parameters() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    let options = "-c search_path=aside -c app.x=5 -c work_mem=5MB";
    let mut client = started_with(&sidecar, &database, &[("options", options)]).await;
    let mut other = login(&sidecar, &database).await;
    let all = "SELECT current_setting('search_path') || ' ' || current_setting('app.x') || ' ' || current_setting('work_mem')";
    for reset in [
        "RESET ALL",
        "DISCARD ALL",
        "RESET search_path; RESET app.x; RESET work_mem",
        "SET search_path TO DEFAULT; SET app.x TO DEFAULT; SET work_mem TO DEFAULT",
    ] {
        client
            .ask("SET search_path = b; SET app.x = 6; SET work_mem = '6MB'")
            .await;
        other.value("SELECT 1").await;
        assert_eq!(client.value(all).await, "b 6 6MB", "{reset}");
        for end in ["ROLLBACK", "COMMIT"] {
            if reset == "DISCARD ALL" {
                if end == "COMMIT" {
                    client.ask(reset).await;
                }
            } else {
                client.ask("BEGIN").await;
                client.ask(reset).await;
                assert_eq!(client.value(all).await, "aside 5 5MB", "{reset} {end}");
                client.ask(end).await;
            }
            let expected = if end == "COMMIT" { "aside 5 5MB" } else { "b 6 6MB" };
            for _ in 0..2 {
                assert_eq!(other.value("SHOW work_mem").await, "4MB");
                assert_eq!(client.value(all).await, expected, "{reset} {end}");
            }
        }
        // The server's own value, said aloud, is not the startup parameter.
        client.ask("SET work_mem = '4MB'").await;
        other.value("SELECT 1").await;
        assert_eq!(client.value("SHOW work_mem").await, "4MB", "{reset}");
    }
    assert_eq!(pins(&sidecar).await, 0.0);
}
