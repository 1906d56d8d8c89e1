//! Settings that PostgreSQL does not report follow their client all the same: timeouts, search paths, custom settings, roles.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use pgsidecar::wire::backend_message::TransactionStatus;
use pgsidecar::wire::compose;

use crate::support::fake_backend::{self, FakeBackend};
use crate::support::postgres::{Database, PASSWORD, Postgres, SUPERUSER_PASSWORD, USER, Version};
use crate::support::raw_client::{Message, RawClient, bind, execute, parse, query, sync, tags, together};
use crate::support::sidecar::{Builder, Sidecar};

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

async fn sidecar_of_superuser(database: &Database, max_size: &str) -> Sidecar {
    Builder::default()
        .upstream(database.url_as("postgres", SUPERUSER_PASSWORD))
        .set("POOL__MAX_SIZE", max_size)
        .start_ready()
        .await
}

/// Who a client is follows it, and what only that one may set. Compared with the same client of PostgreSQL itself.
#[tokio::test]
async fn trap_54_roles_and_session_authorization_follow_in_the_order_that_postgresql_asks_for() {
    for cluster in [Postgres::shared(), Postgres::shared_18()] {
        who_a_client_is_follows_it(cluster).await;
    }
}

async fn who_a_client_is_follows_it(cluster: &Postgres) {
    let database = cluster.create_database();
    let role = format!("{}_team", database.name);
    cluster.psql(&database.name, &format!("CREATE ROLE {role}; GRANT {role} TO {USER}"));
    let sidecar = sidecar_of_superuser(&database, "1").await;
    let as_superuser = async |port| RawClient::login(port, "postgres", SUPERUSER_PASSWORD, &database.name).await;
    let mut client = as_superuser(sidecar.port).await;
    let mut other = as_superuser(sidecar.port).await;
    let mut direct = as_superuser(database.port).await;
    let who = "SELECT session_user || ' ' || current_user || ' ' || current_setting('role') || ' ' \
               || current_setting('log_min_duration_statement') || ' ' || current_setting('is_superuser')";
    for sql in [
        format!("SET ROLE {role}"),
        "RESET ROLE".to_owned(),
        format!("SET log_min_duration_statement = '60s'; SET ROLE {USER}"),
        "SET log_min_duration_statement = '70s'".to_owned(),
        "SET SESSION AUTHORIZATION DEFAULT".to_owned(),
        "SET ROLE NONE; SET log_min_duration_statement = '80s'".to_owned(),
        format!("SET SESSION AUTHORIZATION {USER}"),
        format!("SET ROLE {role}"),
        "SELECT set_config('role', 'none', false)".to_owned(),
        format!("SELECT set_config('role', '{role}', false)"),
        "SELECT set_config('session_authorization', 'postgres', false)".to_owned(),
        format!("BEGIN; SET ROLE {role}; ROLLBACK"),
        format!("BEGIN; SET LOCAL ROLE {role}; COMMIT"),
        format!("SET SESSION AUTHORIZATION {USER}; SET ROLE {role}"),
        "RESET ALL".to_owned(),
        "SET ROLE nosuch".to_owned(),
        "RESET SESSION AUTHORIZATION".to_owned(),
        format!("SET ROLE {role}"),
        "DISCARD ALL".to_owned(),
    ] {
        assert_eq!(tags(&client.ask(&sql).await), tags(&direct.ask(&sql).await), "{sql}");
        for _ in 0..2 {
            assert_eq!(
                other.value("SELECT session_user || current_user").await,
                "postgrespostgres",
                "{sql}"
            );
            assert_eq!(client.value(who).await, direct.value(who).await, "{sql}");
            for name in ["is_superuser", "session_authorization"] {
                assert_eq!(client.parameter(name), direct.parameter(name), "{sql}: {name}");
            }
        }
    }
    assert_eq!(pins(&sidecar).await, 0.0);
}

/// Ways in which a client may try to have a statement run, and how many ReadyForQuery each has for an answer.
fn ways_to_run(sql: &str) -> [(bytes::BytesMut, usize); 7] {
    let behind = |first: &str| {
        together(&[
            parse("", first),
            bind("", "", &[]),
            execute("", 0),
            parse("", sql),
            bind("", "", &[]),
            execute("", 0),
            sync(),
        ])
    };
    [
        (query(sql), 1),
        (query(&format!("COMMIT; {sql}")), 1),
        (query(&format!("ROLLBACK; {sql}")), 1),
        (together(&[query("SELECT 1"), query("ROLLBACK"), query(sql)]), 3),
        (behind("SELECT 1"), 1),
        (behind("ROLLBACK"), 1),
        (together(&[behind("SELECT 1"), behind("COMMIT")]), 2),
    ]
}

/// What a setting needs is taken away while its client holds no backend: none of its statements is run without it.
#[tokio::test]
async fn a_prelude_fails_closed_whichever_of_its_settings_is_refused() {
    let cluster = Postgres::private(Version::Installed);
    let database = cluster.create_database();
    cluster.psql(
        &database.name,
        "GRANT ALL ON SCHEMA public TO PUBLIC; CREATE TABLE kept (x text); GRANT ALL ON kept TO PUBLIC",
    );
    let insert = "INSERT INTO kept VALUES (current_user)";
    for (user, password, grants, sets, takes) in [
        (
            USER,
            PASSWORD,
            "CREATE ROLE team; GRANT team TO app",
            "SET ROLE team",
            "REVOKE team FROM app",
        ),
        (USER, PASSWORD, "GRANT team TO app", "SET ROLE team", "DROP ROLE team"),
        (
            USER,
            PASSWORD,
            "GRANT SET ON PARAMETER log_min_duration_statement TO app",
            "SET app.tenant_id = 'x'; SET log_min_duration_statement = '60s'; SET work_mem = '7MB'",
            "REVOKE SET ON PARAMETER log_min_duration_statement FROM app",
        ),
        (
            "postgres",
            SUPERUSER_PASSWORD,
            "CREATE ROLE gone",
            "SET SESSION AUTHORIZATION gone",
            "DROP ROLE gone",
        ),
        (
            "postgres",
            SUPERUSER_PASSWORD,
            "CREATE ACCESS METHOD passing TYPE TABLE HANDLER heap_tableam_handler; CREATE ROLE team",
            "SET default_table_access_method = passing; SET ROLE team",
            "DROP ACCESS METHOD passing",
        ),
    ] {
        cluster.psql(&database.name, grants);
        let sidecar = Builder::default()
            .upstream(database.url_as(user, password))
            .set("POOL__MAX_SIZE", "1")
            .start_ready()
            .await;
        let mut plain = RawClient::login(sidecar.port, user, password, &database.name).await;
        let mut client = RawClient::login(sidecar.port, user, password, &database.name).await;
        let answer = client.ask(sets).await;
        assert!(!tags(&answer).contains('E'), "{sets}: {}", answer[0].report());
        plain.value("SELECT 1").await;
        client.value("SELECT 1").await;
        plain.value("SELECT 1").await;
        cluster.psql(&database.name, takes);
        for (number, (attempt, readies)) in ways_to_run(insert).into_iter().enumerate() {
            plain.value("SELECT 1").await;
            client.send(&attempt).await;
            for _ in 0..readies {
                let answer = client.until_ready().await;
                assert!(tags(&answer).ends_with("EZ"), "{takes}, {number}: {}", tags(&answer));
            }
            assert_eq!(plain.value("SELECT count(*) FROM kept").await, "0", "{takes}, {number}");
        }
    }
}

/// The rows of a question of ours: a value for each setting, and what it would be without.
fn answer_to_a_question(values: &[&str]) -> bytes::BytesMut {
    let mut out = bytes::BytesMut::new();
    for tag in [b'3', b'1', b'2'] {
        compose::frame(&mut out, tag, &[]);
    }
    let mut row = i16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
    for value in values {
        row.extend(i32::try_from(value.len()).unwrap().to_be_bytes());
        row.extend(value.bytes());
    }
    compose::frame(&mut out, b'D', &[&row]);
    compose::frame(&mut out, b'C', &[b"SELECT 1\0"]);
    compose::frame(&mut out, b'3', &[]);
    compose::ready_for_query(&mut out, TransactionStatus::Idle);
    out
}

/// Nothing is waited for: neither the answer to our question, which the client's next statement overtakes on the line, nor
/// the prelude, which travels with the statement.
#[tokio::test]
async fn a_prelude_and_a_question_cost_no_round_trip() {
    let fake = FakeBackend::start(|mut session| async move {
        session.login().await?;
        session.until_query("SET work_mem").await?;
        session.complete("SET", TransactionStatus::Idle).await?;
        session.until(b'S').await?;
        // The question is not answered before the client's next statement is there.
        session.until(b'Q').await?;
        session.send(&answer_to_a_question(&["7MB", "4MB"])).await?;
        session.complete("SELECT 1", TransactionStatus::Idle).await?;
        for _ in 0..2 {
            // Nor is a prelude: the other client's, then this one's.
            session.until_query("BEGIN").await?;
            session.until(b'Q').await?;
            session.complete("COMMIT", TransactionStatus::Idle).await?;
            session.complete("SELECT 1", TransactionStatus::Idle).await?;
        }
        session.serve().await
    })
    .await;
    let sidecar = fake.sidecar().set("POOL__MAX_SIZE", "1").start().await;
    let login = async || RawClient::login(sidecar.port, USER, PASSWORD, fake_backend::DATABASE).await;
    let (mut client, mut other) = (login().await, login().await);
    for (who, sql) in [
        (0, "SET work_mem = '7MB'"),
        (0, "SELECT 1"),
        (1, "SELECT 1"),
        (0, "SELECT 1"),
    ] {
        let who = if who == 0 { &mut client } else { &mut other };
        assert_eq!(tags(&who.ask(sql).await), "CZ", "{sql}");
    }
    assert_eq!(fake.sessions().len(), 1);
}

/// Killed amid the prelude, amid a question, or behind a SET: no statement of the client's runs where its settings are not.
#[tokio::test]
async fn a_backend_that_dies_under_a_prelude_or_a_question_takes_no_setting_with_it_unseen() {
    for dies_at in ["question", "prelude"] {
        let fake = FakeBackend::start(move |mut session| async move {
            session.login().await?;
            if session.number == 0 {
                session.until_query("SET work_mem").await?;
                session.complete("SET", TransactionStatus::Idle).await?;
                session.until(b'S').await?;
                if dies_at == "question" {
                    return session.reset();
                }
                session.send(&answer_to_a_question(&["7MB", "4MB"])).await?;
                // The other client's prelude and statement.
                session.until_query("SELECT 2").await?;
                session.complete("SELECT 1", TransactionStatus::Idle).await?;
                session.until(b'Q').await?;
                return session.reset();
            }
            session.serve().await
        })
        .await;
        let sidecar = fake.sidecar().set("POOL__MAX_SIZE", "1").start().await;
        let login = async || RawClient::login(sidecar.port, USER, PASSWORD, fake_backend::DATABASE).await;
        let (mut client, mut other) = (login().await, login().await);
        assert_eq!(tags(&client.ask("SET work_mem = '7MB'").await), "CZ");
        if dies_at == "question" {
            // What has become of the setting nobody can tell.
            assert_eq!(client.until_closed().await[0].sqlstate(), "08006");
            continue;
        }
        assert_eq!(tags(&other.ask("SELECT 2").await), "CZ");
        assert_eq!(tags(&client.ask("SELECT 3").await), "EZ", "{dies_at}");
        client.ask("SELECT 4").await;
        let second = &fake.sessions()[1];
        let sent: Vec<_> = second
            .messages
            .iter()
            .map(|message| String::from_utf8_lossy(&message.body))
            .collect();
        let statement = sent.iter().position(|sql| sql.contains("SELECT 4")).unwrap();
        assert!(sent[statement - 1].contains("'work_mem','7MB'"), "{sent:?}");
    }
}

/// Ten tenants over two backends: each sees its own tenant, path, role and zone in every transaction.
/// `PGSIDECAR_SETTINGS_TRANSACTIONS` makes the run longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_58_ten_tenants_over_two_backends_see_nothing_of_one_another() {
    const TENANTS: usize = 10;
    let total = std::env::var("PGSIDECAR_SETTINGS_TRANSACTIONS").map_or(1000, |count| count.parse().unwrap());
    let cluster = Postgres::shared();
    let database = cluster.create_database();
    let mut roles = String::new();
    for tenant in 0..TENANTS {
        let _ = write!(
            roles,
            "CREATE ROLE {0}_{tenant}; GRANT {0}_{tenant} TO {USER};",
            database.name
        );
    }
    cluster.psql(&database.name, &roles);
    let sidecar = sidecar_of(&database, "2").await;
    let mut tenants = tokio::task::JoinSet::new();
    for tenant in 0..TENANTS {
        let (port, name) = (sidecar.port, database.name.clone());
        tenants.spawn(async move {
            let mut client = RawClient::login(port, USER, PASSWORD, &name).await;
            let zone = ["UTC", "Asia/Tokyo", "Europe/Berlin", "America/Lima", "Asia/Shanghai"][tenant % 5];
            let all = "SELECT current_setting('app.tenant_id', true) || ' ' || current_setting('search_path') || ' ' \
                       || current_user || ' ' || current_setting('TimeZone')";
            let become_it = format!(
                "SET app.tenant_id = '{tenant}'; SET search_path = s{tenant}, public; SET ROLE {name}_{tenant}; \
                 SET TimeZone = '{zone}'"
            );
            client.ask(&become_it).await;
            let expected = format!("{tenant} s{tenant}, public {name}_{tenant} {zone}");
            for round in 0..total / TENANTS {
                match round % 7 {
                    3 => {
                        client.ask("BEGIN").await;
                        client
                            .ask("SET app.tenant_id = 'lost'; SET search_path = lost; RESET ROLE")
                            .await;
                        client.ask("ROLLBACK").await;
                    }
                    5 => {
                        client.ask("SET LOCAL app.tenant_id = 'lost'").await;
                        client.ask(&become_it).await;
                    }
                    _ => {}
                }
                assert_eq!(client.value(all).await, expected);
            }
        });
    }
    tenants.join_all().await;
    assert_eq!(pins(&sidecar).await, 0.0);
}

/// SQL's EXECUTE of a statement that was prepared by protocol does what no text tells.
#[tokio::test]
async fn trap_30_a_set_config_that_sql_executes_by_name_follows_its_client() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    let mut client = login(&sidecar, &database).await;
    let prepared = [parse("s", "SELECT set_config('work_mem', '7MB', false)"), sync()];
    client.send(&together(&prepared)).await;
    client.expect("1 Z").await;
    client.ask("EXECUTE s").await;
    client.ask("DEALLOCATE s").await;
    let mut other = login(&sidecar, &database).await;
    assert_eq!(other.value("SHOW work_mem").await, "4MB");
    assert_eq!(client.value("SHOW work_mem").await, "7MB");
}

/// What was set is asked for until there is an answer: a client that leaves before it, amid its transaction or behind it,
/// leaves nothing to the next.
#[tokio::test]
async fn trap_58_a_client_that_vanishes_behind_its_set_leaves_nothing() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    let all =
        "SELECT current_setting('work_mem') || ' ' || coalesce(current_setting('app.x', true), 'null') || current_user";
    let mut other = login(&sidecar, &database).await;
    let neutral = other.value(all).await;
    for set in [
        "SET work_mem = '7MB'",
        "SET app.x = 'mine'",
        "BEGIN; SET LOCAL app.x = 'mine'; SELECT 1",
        "BEGIN; SET work_mem = '7MB'",
        "BEGIN; SET work_mem = '7MB'; COMMIT",
    ] {
        let mut client = login(&sidecar, &database).await;
        client.query(set).await;
        if !set.contains("SELECT") {
            client.until_ready().await;
        }
        drop(client);
        assert_eq!(other.value(all).await, neutral, "{set}");
    }
}

/// A path that the text does not tell may lead to temporary objects: its client keeps the backend until it is known not to
/// have made any. The path itself follows.
#[tokio::test]
async fn trap_66_a_computed_search_path_keeps_its_backend_until_nothing_temporary_is_there() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    let mut other = login(&sidecar, &database).await;
    for (number, scope) in ["true", "false"].into_iter().enumerate() {
        let mut client = login(&sidecar, &database).await;
        client
            .ask(&format!("SELECT set_config('search_path', 'asi' || 'de', {scope})"))
            .await;
        sidecar
            .wait_metric("pgsidecar_pins_total", &[("reason", "temporary_table")], |count| {
                count == f64::from(u32::try_from(number + 1).unwrap())
            })
            .await;
        let neutral = "\"$user\", public";
        assert_eq!(other.value("SHOW search_path").await, neutral);
        let expected = if scope == "true" { neutral } else { "aside" };
        assert_eq!(client.value("SHOW search_path").await, expected);
    }
}

/// The question of what a SET came to leaves no statement behind: a client sees its own in pg_prepared_statements, and a pin
/// of its own statements ends though one was asked.
#[tokio::test]
async fn what_asks_for_settings_is_no_prepared_statement_of_the_clients() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    let mut client = login(&sidecar, &database).await;
    client.ask("SET work_mem = '7MB'").await;
    client.ask("PREPARE own AS SELECT 1").await;
    client.ask("SET work_mem = '8MB'").await;
    let names = "SELECT string_agg(name, ' ') FROM pg_prepared_statements";
    assert_eq!(client.value(names).await, "own");
    client.ask("SET work_mem = '9MB'").await;
    client.ask("DEALLOCATE own").await;
    let mut other = login(&sidecar, &database).await;
    assert_eq!(other.value("SHOW work_mem").await, "4MB");
    assert_eq!(client.value("SHOW work_mem").await, "9MB");
}

/// Behind a startup setting, SET to a value and back in one transaction is back to the startup setting.
#[tokio::test]
async fn trap_60_a_startup_setting_is_there_again_behind_a_set_and_its_end_in_one_transaction() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    for (script, value) in [
        ("SET search_path TO a; SET search_path TO DEFAULT; SELECT 1/1", "mine"),
        ("BEGIN; SET search_path TO a; RESET search_path; COMMIT", "mine"),
    ] {
        let mut client = started_with(&sidecar, &database, &[("search_path", "mine")]).await;
        assert!(!tags(&client.ask(script).await).contains('E'), "{script}");
        assert_eq!(client.value("SHOW search_path").await, value, "{script}");
        client.ask("COMMIT").await;
        assert_eq!(client.value("SHOW search_path").await, value, "{script}");
    }
}

/// RESET ALL leaves who one is; RESET SESSION AUTHORIZATION takes the role back, in the transaction too.
#[tokio::test]
async fn trap_60_a_startup_role_returns_with_the_resets_that_take_it_back_and_with_no_other() {
    let database = Postgres::shared().create_database();
    let roles = ["startup", "other"].map(|kind| format!("{kind}_{}", database.name));
    let [startup, other_role] = &roles;
    for role in &roles {
        Postgres::shared().psql("postgres", &format!("CREATE ROLE {role}; GRANT {role} TO {USER}"));
    }
    let sidecar = sidecar_of(&database, "1").await;
    let mut other = login(&sidecar, &database).await;
    let options = format!("-c role={startup}");
    let mut client = started_with(&sidecar, &database, &[("options", &options)]).await;
    let mut twin = RawClient::connect(database.port).await;
    let settings = [("database", database.name.as_str()), ("options", &options)];
    twin.log_in(USER, PASSWORD, &settings)
        .await
        .expect("the login succeeds");
    for statement in [
        &format!("SET ROLE {other_role}"),
        "RESET ALL",
        "RESET SESSION AUTHORIZATION",
        &format!("SET ROLE {other_role}"),
        "BEGIN",
        "RESET SESSION AUTHORIZATION",
        "SELECT 1",
        "ROLLBACK",
        "RESET ROLE",
    ] {
        client.ask(statement).await;
        twin.ask(statement).await;
        assert_eq!(
            client.value("SHOW role").await,
            twin.value("SHOW role").await,
            "{statement}"
        );
        if !matches!(statement, "BEGIN" | "RESET SESSION AUTHORIZATION" | "SELECT 1") {
            assert_eq!(other.value("SHOW role").await, "none", "{statement}");
        }
    }
}

/// A text sent behind a SET of standard_conforming_strings that is not answered yet: what it says depends on that.
#[tokio::test]
async fn trap_56_a_text_behind_a_change_of_how_texts_are_read_hides_nothing() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    let mut other = login(&sidecar, &database).await;
    let mut client = login(&sidecar, &database).await;
    client.ask("SET standard_conforming_strings = off").await;
    let sly = r"SELECT 'a\'; SET work_mem = '7MB'; --'";
    client
        .send(&together(&[query("SET standard_conforming_strings = on"), query(sly)]))
        .await;
    client.until_ready().await;
    client.until_ready().await;
    assert_eq!(client.value("SHOW work_mem").await, "7MB");
    drop(client);
    assert_eq!(other.value("SHOW work_mem").await, "4MB");
}

/// Words of SQL that may be the names of a column and its alias hide no statement behind them.
#[tokio::test]
async fn trap_57_what_follows_a_view_or_a_body_of_sql_is_read() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    let mut client = login(&sidecar, &database).await;
    let mut other = login(&sidecar, &database).await;
    client.ask("CREATE TABLE t (begin int)").await;
    for text in [
        "CREATE VIEW v AS SELECT begin atomic FROM t; SET work_mem = '7MB'",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1 case; END; SET work_mem = '8MB'",
    ] {
        assert!(!tags(&client.ask(text).await).contains('E'), "{text}");
        assert_eq!(other.value("SHOW work_mem").await, "4MB", "{text}");
        assert_eq!(
            client.value("SHOW work_mem").await,
            &text[text.len() - 4..text.len() - 1],
            "{text}"
        );
    }
}

/// A SET that is on its way when a RESET is sent behind it is told, and followed, for itself.
#[tokio::test]
async fn trap_60_a_set_ahead_of_a_reset_that_fails_or_is_of_another_setting_holds() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    let mut other = login(&sidecar, &database).await;
    let neutral = other.value("SHOW TimeZone").await;
    let set = format!("SET TimeZone = '{neutral}'");
    for reset in [
        "BEGIN; SAVEPOINT s; RESET ALL; SELECT 1/0",
        "RESET work_mem",
        "SET work_mem TO DEFAULT",
    ] {
        let startup = [("TimeZone", "Europe/Berlin"), ("work_mem", "5MB")];
        let mut client = started_with(&sidecar, &database, &startup).await;
        client.send(&together(&[query(&set), query(reset)])).await;
        client.until_ready().await;
        client.until_ready().await;
        client.ask("ROLLBACK").await;
        other.value("SELECT 1").await;
        assert_eq!(client.value("SHOW TimeZone").await, neutral, "{reset}");
        assert_eq!(client.value("SHOW work_mem").await, "5MB", "{reset}");
        let told = client.parameters.iter().find(|(name, _)| name == "TimeZone");
        assert_eq!(told.map(|(_, value)| value.as_str()), Some(&*neutral), "{reset}");
    }
    let mut client = started_with(&sidecar, &database, &[("TimeZone", "Europe/Berlin")]).await;
    let pipelined = [query("SET app.x = 'y'"), query("SET TimeZone TO DEFAULT")];
    client.send(&together(&pipelined)).await;
    client.until_ready().await;
    client.until_ready().await;
    assert_eq!(client.value("SHOW TimeZone").await, "Europe/Berlin");
}

/// What no text told is its client's own: a RESET of something else leaves it.
#[tokio::test]
async fn trap_60_what_a_block_of_code_has_set_outlives_a_reset_of_another_setting() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    let mut client = started_with(&sidecar, &database, &[("work_mem", "5MB"), ("TimeZone", "UTC")]).await;
    client
        .ask("DO $$BEGIN PERFORM set_config('work_mem', '2MB', false); END$$")
        .await;
    client.ask("RESET application_name").await;
    assert_eq!(client.value("SHOW work_mem").await, "2MB");
    client.ask("RESET TimeZone").await;
    assert_eq!(client.value("SHOW work_mem").await, "2MB");
}

/// What was asked behind a client's reply has a deadline, though nobody waits for the answer.
#[tokio::test]
async fn a_backend_that_does_not_tell_what_has_become_of_a_setting_is_closed() {
    let fake = FakeBackend::start(|mut session| async move {
        session.login().await?;
        if session.number > 0 {
            return session.serve().await;
        }
        session.until_query("SET work_mem").await?;
        session.complete("SET", TransactionStatus::Idle).await?;
        session.stall().await
    })
    .await;
    let sidecar = fake
        .sidecar()
        .set("POOL__RESET_TIMEOUT", "300ms")
        .set("POOL__MAX_SIZE", "1")
        .start()
        .await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, "fake").await;
    let answer = client.ask("SET work_mem = '7MB'").await;
    assert_eq!(answer[0].command(), "SET");
    let mut next = RawClient::login(sidecar.port, USER, PASSWORD, "fake").await;
    assert_eq!(next.value("SELECT 1").await, "ok", "on another backend");
    let last_words = client.until_closed().await;
    assert_eq!(last_words[0].sqlstate(), "08006");
    assert!(
        last_words[0]
            .report()
            .hint
            .is_some_and(|hint| hint.contains("pool.reset_timeout"))
    );
}

/// What it may not set it has not: what PostgreSQL says of the setting then is the server's own value.
#[tokio::test]
async fn trap_56_a_set_that_is_refused_for_want_of_rights_is_not_made_on_other_backends() {
    for cluster in [Postgres::shared(), Postgres::shared_18()] {
        let database = cluster.create_database();
        let sidecar = sidecar_of(&database, "1").await;
        let mut client = login(&sidecar, &database).await;
        let mut other = login(&sidecar, &database).await;
        for sql in [
            "SET log_statement TO 'none'",
            "SELECT set_config('log_statement', 'all', false)",
        ] {
            assert!(tags(&client.ask(sql).await).ends_with("EZ"), "{sql}");
            client.ask("SET work_mem TO '7MB'").await;
            other.ask("SET work_mem TO '6MB'").await;
            assert_eq!(client.value("SHOW work_mem").await, "7MB", "{sql}");
        }
        assert_eq!(pins(&sidecar).await, 0.0);
    }
}

/// What a text takes back and what it undoes of that: told by its own order, in the block that goes on and in the next.
#[tokio::test]
async fn trap_60_a_reset_that_its_own_text_undoes_or_overrides_is_not_made_again() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    let mut differences = String::new();
    let started = [
        ("search_path", "mine"),
        ("TimeZone", "Asia/Tokyo"),
        ("database", &database.name),
    ];
    for script in [
        "BEGIN; SET search_path TO a; SAVEPOINT s; RESET search_path; ROLLBACK TO s; COMMIT AND CHAIN",
        "BEGIN; SET search_path TO a; SAVEPOINT s; SET search_path TO DEFAULT; ROLLBACK TO s; COMMIT AND CHAIN",
        "BEGIN; SET search_path TO DEFAULT; SAVEPOINT s; RESET search_path; ROLLBACK TO s",
        "BEGIN; RESET search_path; SAVEPOINT s; RESET search_path; ROLLBACK TO s; COMMIT AND CHAIN",
        "BEGIN; SET search_path TO a; SAVEPOINT s; RESET ALL; ROLLBACK TO s",
        "BEGIN; SET TimeZone TO 'Etc/GMT'; SAVEPOINT s; RESET TimeZone; ROLLBACK TO s",
        "BEGIN; SET TimeZone TO 'Etc/GMT'; SAVEPOINT s; RESET TimeZone; ROLLBACK TO s; COMMIT AND CHAIN",
        "BEGIN; SET search_path TO a; RESET search_path; SAVEPOINT s; SET search_path TO b; ROLLBACK TO s; COMMIT AND CHAIN",
        "BEGIN; RESET search_path; SAVEPOINT s; SELECT 1; ROLLBACK TO s; COMMIT AND CHAIN",
        "BEGIN; SET search_path TO a; SAVEPOINT s; SAVEPOINT t; RESET search_path; ROLLBACK TO t; RELEASE s; COMMIT AND CHAIN",
        "BEGIN; SET search_path TO a; SAVEPOINT s; SAVEPOINT s; RESET search_path; RELEASE s; ROLLBACK TO s; COMMIT AND CHAIN",
        "BEGIN; SAVEPOINT s; RESET search_path; SAVEPOINT s; RELEASE s; ROLLBACK TO s; COMMIT AND CHAIN",
        "BEGIN; RESET search_path; SET search_path TO a",
        "BEGIN; RESET search_path; SET search_path TO a; COMMIT AND CHAIN",
        "BEGIN; RESET ALL; SET search_path TO a; SET TimeZone TO 'Etc/GMT'",
        "BEGIN; RESET TimeZone; RESET search_path; SET search_path TO a; COMMIT AND CHAIN",
        "BEGIN; RESET search_path; SET LOCAL search_path TO a",
        "SET TimeZone TO 'Etc/GMT'; BEGIN; RESET TimeZone; SAVEPOINT s; SELECT 1; ROLLBACK TO s; COMMIT AND CHAIN",
        "BEGIN; SET search_path TO a; COMMIT; BEGIN; RESET search_path; ROLLBACK AND CHAIN",
        "BEGIN; SET search_path TO a; COMMIT; BEGIN; RESET search_path; COMMIT; BEGIN; SELECT 1; ROLLBACK AND CHAIN",
        "SET search_path TO a; RESET search_path; BEGIN",
        "BEGIN; RESET search_path; SET TimeZone TO 'Etc/UTC'",
        "BEGIN; RESET TimeZone; SET TimeZone TO 'Etc/UTC'; COMMIT AND CHAIN",
        "BEGIN; RESET ALL; SAVEPOINT s; SET TimeZone TO 'Etc/UTC'; ROLLBACK TO s; COMMIT AND CHAIN",
        "RESET search_path; SET search_path TO a",
        "SET TimeZone TO 'Etc/GMT'; RESET ALL; SET search_path TO a; SELECT 1/0",
    ] {
        for end in ["COMMIT", "ROLLBACK"] {
            let mut seen = Vec::new();
            for port in [database.port, sidecar.port] {
                let mut client = RawClient::connect(port).await;
                client
                    .log_in(USER, PASSWORD, &started)
                    .await
                    .expect("the login succeeds");
                let mut replies = Vec::new();
                for sql in [
                    script,
                    "SHOW search_path",
                    "SHOW TimeZone",
                    end,
                    "SHOW search_path",
                    "SHOW TimeZone",
                ] {
                    replies.push(client.ask(sql).await);
                }
                seen.push(replies);
            }
            for (step, (direct, through)) in seen[0].iter().zip(&seen[1]).enumerate() {
                let rows = |reply: &[Message]| {
                    reply
                        .iter()
                        .filter(|it| it.tag == b'D')
                        .map(Message::row)
                        .collect::<Vec<_>>()
                };
                let (direct, through) = ((tags(direct), rows(direct)), (tags(through), rows(through)));
                if direct != through {
                    let _ = writeln!(differences, "{script}; {end}: reply {step}: {direct:?}, {through:?}");
                }
            }
        }
    }
    assert_eq!(differences, "");
    assert_eq!(pins(&sidecar).await, 0.0);
}

/// What a RESET left alone is still there in a chained block, and is not said over what that block begins with.
#[tokio::test]
async fn trap_60_a_reset_of_one_startup_setting_brings_no_other_back_into_a_chained_block() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    let mut client = RawClient::connect(sidecar.port).await;
    let started = [
        ("search_path", "mine"),
        ("TimeZone", "Asia/Tokyo"),
        ("database", &database.name),
    ];
    client
        .log_in(USER, PASSWORD, &started)
        .await
        .expect("the login succeeds");
    client.ask("BEGIN; RESET TimeZone").await;
    client.ask("COMMIT AND CHAIN; SET LOCAL search_path TO a").await;
    assert_eq!(client.value("SHOW search_path").await, "a");
    assert_eq!(client.value("SHOW TimeZone").await, "Asia/Tokyo");
    client.ask("COMMIT").await;
    assert_eq!(client.value("SHOW search_path").await, "mine");
    assert_eq!(client.value("SHOW TimeZone").await, "Asia/Tokyo");
    assert_eq!(pins(&sidecar).await, 0.0);
}

/// Trap 58: two kinds of clients over one backend make a new connection for each change of kind, but not without end.
#[tokio::test]
async fn trap_58_backends_are_not_replaced_faster_than_a_pace() {
    let database = Postgres::shared().create_database();
    let sidecar = sidecar_of(&database, "1").await;
    let mut tenant = login(&sidecar, &database).await;
    let mut plain = login(&sidecar, &database).await;
    let started = Instant::now();
    for _ in 0..32 {
        tenant.ask("SET app.tenant TO '1'").await;
        assert_eq!(
            plain.value("SELECT current_setting('app.tenant', true) IS NULL").await,
            "t"
        );
    }
    let labels = [("reason", "not_clean")];
    let closed = sidecar
        .metric("pgsidecar_backend_closed_total", &labels)
        .await
        .unwrap_or(0.0);
    let most = 21.0 + started.elapsed().as_secs_f64() * 10.0;
    assert!((31.0..=most).contains(&closed), "{closed} of {most}");
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
}
