//! `pool.audit`: what a backend holds and no text told of is found when it is given back, and reaches nobody.

use crate::support::eventually;
use crate::support::postgres::{Database, PASSWORD, Postgres, USER};
use crate::support::process::psql;
use crate::support::raw_client::{RawClient, bind, execute, parse, shown, sync, tags, together};
use crate::support::sidecar::Sidecar;

async fn sidecar(database: &Database, audit: &str) -> Sidecar {
    Sidecar::builder(database)
        .set("POOL__MAX_SIZE", "1")
        // What is done to routines behind its back is learned too late.
        .set("POOL__CATALOG_REFRESH", "off")
        .set("POOL__AUDIT", audit)
        .start_ready()
        .await
}

async fn login(sidecar: &Sidecar, database: &Database) -> RawClient {
    RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await
}

/// A kind, and what a routine does of it.
const HIDDEN: [(&str, &str); 10] = [
    ("setting", "PERFORM set_config('work_mem', '7MB', false)"),
    (
        "setting",
        "PERFORM set_config('search_path', 'pg_temp, elsewhere', false)",
    ),
    ("custom_setting", "PERFORM set_config('app.tenant_id', 'mine', false)"),
    ("custom_setting", "PERFORM set_config('app.tenant_id', 'mine', true)"),
    ("role", "PERFORM set_config('role', 'pg_monitor', false)"),
    ("temporary_table", "CREATE TEMP TABLE hidden (n int)"),
    ("hold_cursor", "EXECUTE 'DECLARE hidden CURSOR WITH HOLD FOR SELECT 1'"),
    ("advisory_lock", "PERFORM pg_advisory_lock(4711)"),
    ("prepare", "EXECUTE 'PREPARE hidden AS SELECT 1'"),
    ("listen", "EXECUTE 'LISTEN hidden'"),
];

/// What the next client sees of all that.
const TRACES: &str = "SELECT concat_ws(' ', current_setting('work_mem'), current_setting('search_path'), \
    coalesce(current_setting('app.tenant_id', true), 'NULL'), current_setting('role'), to_regclass('pg_temp.hidden'), \
    (SELECT count(*) FROM pg_cursors WHERE name = 'hidden'), \
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), \
    (SELECT count(*) FROM pg_prepared_statements WHERE name = 'hidden'), \
    (SELECT count(*) FROM pg_listening_channels()))";
const NONE: &str = "4MB \"$user\", public NULL none 0 0 0 0";

/// Makes a routine that the catalog knows as harmless do something else, over a connection of its own.
async fn replace(database: &Database, body: &str) {
    let sql =
        format!("CREATE OR REPLACE FUNCTION routine() RETURNS void LANGUAGE plpgsql AS $f$ BEGIN {body}; END $f$");
    psql(&database.url(), &[&sql]).await.ok();
}

async fn with_a_harmless_routine(sidecar: &Sidecar, database: &Database) -> RawClient {
    let mut client = login(sidecar, database).await;
    client
        .ask("CREATE FUNCTION routine() RETURNS void LANGUAGE plpgsql AS $f$ BEGIN PERFORM 1; END $f$")
        .await;
    // It is known by now: its call pins nothing.
    client.ask("SELECT routine()").await;
    let pins = sidecar.metric("pgsidecar_pins_total", &[]).await.unwrap();
    client.ask("SELECT routine()").await;
    assert_eq!(sidecar.metric("pgsidecar_pins_total", &[]).await, Some(pins));
    client
}

#[tokio::test]
async fn without_it_what_is_hidden_reaches_the_next_client() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, "off").await;
    let mut client = with_a_harmless_routine(&sidecar, &database).await;
    replace(&database, HIDDEN[0].1).await;
    client.ask("SELECT routine()").await;
    let mut next = login(&sidecar, &database).await;
    assert_eq!(next.value("SHOW work_mem").await, "7MB");
    assert_eq!(sidecar.metric("pgsidecar_audits_total", &[]).await, Some(0.0));
}

#[tokio::test]
async fn what_is_hidden_is_found_counted_logged_without_its_value_and_reaches_nobody() {
    let database = Postgres::shared().create_database();
    let superuser = format!("GRANT pg_monitor TO {USER}");
    Postgres::shared().psql("postgres", &superuser);
    let sidecar = sidecar(&database, "always").await;
    let mut client = with_a_harmless_routine(&sidecar, &database).await;
    // Somebody has named it once, and so it is looked for.
    let mut tenant = login(&sidecar, &database).await;
    tenant.ask("SET app.tenant_id = 'another'").await;
    drop(tenant);
    for (kind, body) in HIDDEN {
        replace(&database, body).await;
        let labels = [("kind", kind)];
        let before = sidecar
            .metric("pgsidecar_audit_surprises_total", &labels)
            .await
            .unwrap();
        let backend = client.value("SELECT pg_backend_pid()").await;
        let answer = client.ask("SELECT routine()").await;
        assert_eq!(tags(&answer), "TDCZ", "{body}: {}", shown(&answer));
        sidecar
            .wait_metric("pgsidecar_audit_surprises_total", &labels, |count| {
                count == before + 1.0
            })
            .await;
        let mut next = login(&sidecar, &database).await;
        assert_eq!(next.value(TRACES).await, NONE, "{body}");
        assert_ne!(next.value("SELECT pg_backend_pid()").await, backend, "{body}");
        drop(next);
        replace(&database, "PERFORM 1").await;
        client.ask("SELECT routine()").await;
    }
    let line = sidecar.wait_for_log("name=work_mem").await;
    assert!(
        line.contains("kind=setting") && line.contains("statement=\"SELECT routine()\""),
        "{line}"
    );
    for value in ["7MB", "mine", "4711"] {
        assert!(!sidecar.log().contains(value), "{value}");
    }
    let closed = [("reason", "not_clean")];
    let closed = sidecar.metric("pgsidecar_backend_closed_total", &closed).await.unwrap();
    assert!(closed >= 10.0, "{closed}");
}

/// A routine that makes the question fail, or never answered, proves nothing: the backend is closed.
#[tokio::test]
async fn a_backend_that_does_not_tell_is_closed() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, "always").await;
    let mut client = with_a_harmless_routine(&sidecar, &database).await;
    replace(&database, "PERFORM set_config('statement_timeout', '1', false)").await;
    let backend = client.value("SELECT pg_backend_pid()").await;
    client.ask("SELECT routine()").await;
    eventually("it is closed", async || {
        (client.value("SELECT pg_backend_pid()").await != backend).then_some(())
    })
    .await;
    let found = async |kind| {
        sidecar
            .metric("pgsidecar_audit_surprises_total", &[("kind", kind)])
            .await
            .unwrap()
    };
    assert!(found("unanswered").await + found("setting").await >= 1.0);
    assert_eq!(client.value("SHOW statement_timeout").await, "0");
}

/// What changes a session and follows its client, or is over when it is said.
const FOLLOWING: [&str; 23] = [
    "SET work_mem = '7MB'",
    "SET search_path = \"$user\", 'odd '' path', public",
    "SET app.tenant_id = 'it''s \\ mine'",
    "SET statement_timeout = '77s'; SET lock_timeout = 66000",
    "BEGIN; SET LOCAL app.other = 'x'; SET TimeZone = 'UTC'; ROLLBACK",
    "SET DateStyle = 'ISO, DMY'; SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
    "SELECT set_config('app.third', 'x', false)",
    "RESET work_mem",
    "LISTEN channel",
    "NOTIFY channel",
    "CREATE SEQUENCE IF NOT EXISTS s; SELECT nextval('s')",
    "SELECT lastval()",
    "CREATE TEMP TABLE t (n int)",
    "DROP TABLE t",
    "SET bytea_output = 'escape'; RESET ALL",
    "UNLISTEN *",
    "PREPARE a AS SELECT 1",
    "PREPARE \"it's\" AS SELECT 2",
    "EXECUTE \"it's\"",
    "EXECUTE a",
    "DEALLOCATE a",
    "SELECT name FROM pg_prepared_statements",
    "DISCARD ALL",
];

#[tokio::test]
async fn what_follows_its_client_is_no_surprise() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "4")
        .set("POOL__AUDIT", "always")
        .set("POOL__CONNECT_QUERY", "SET geqo_threshold = 13; SET work_mem = '8MB'")
        .start_ready()
        .await;
    let mut clients = Vec::new();
    for startup in [
        vec![],
        vec![
            ("work_mem", "4096"),
            ("extra_float_digits", "3"),
            ("DateStyle", "German"),
        ],
        vec![
            ("options", "-c search_path=a,b -c app.tenant_id=9"),
            ("TimeZone", "Asia/Shanghai"),
        ],
    ] {
        let mut client = RawClient::connect(sidecar.port).await;
        let mut parameters = vec![("database", &*database.name)];
        parameters.extend(startup);
        client.log_in(USER, PASSWORD, &parameters).await.unwrap();
        clients.push(client);
    }
    for sql in FOLLOWING {
        for client in &mut clients {
            client.ask(sql).await;
            client
                .send(&together(&[
                    parse("s", "SELECT $1::text"),
                    bind("", "s", &["x"]),
                    execute("", 0),
                    sync(),
                ]))
                .await;
            client.until_ready().await;
            client
                .send(&together(&[crate::support::raw_client::close('S', "s"), sync()]))
                .await;
            client.until_ready().await;
            client.ask("BEGIN; SELECT 1; COMMIT").await;
        }
    }
    drop(clients);
    let audits = sidecar
        .wait_metric("pgsidecar_audits_total", &[], |count| count > 1.0)
        .await;
    assert!(audits > 50.0, "{audits} {}", sidecar.log());
    assert_eq!(
        sidecar.metric("pgsidecar_audit_surprises_total", &[]).await,
        Some(0.0),
        "{}",
        sidecar.log()
    );
}

#[tokio::test]
async fn sampled_asks_one_in_a_hundred() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar(&database, "sampled").await;
    let mut client = login(&sidecar, &database).await;
    for _ in 0..600 {
        client.ask("SELECT 1").await;
    }
    // Six are to be expected; the last is counted when it is answered.
    let asked = sidecar
        .wait_metric("pgsidecar_audits_total", &[], |count| count >= 1.0)
        .await;
    assert!(asked < 40.0, "{asked}");
}
