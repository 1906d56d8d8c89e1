//! Settings that follow their client from backend to backend, and those that end with the client.

use std::time::Duration;

use pgsidecar::wire::backend_message::TransactionStatus;
use pgsidecar::wire::compose;

use crate::support::fake_backend::FakeBackend;
use crate::support::postgres::{Database, PASSWORD, Postgres, SUPERUSER_PASSWORD, USER, Version};
use crate::support::raw_client::{Message, RawClient, bind, close, execute, parse, query, sync, tags, together};
use crate::support::sidecar::Sidecar;

async fn one_backend(database: &Database) -> Sidecar {
    Sidecar::builder(database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await
}

async fn client_with(sidecar: &Sidecar, database: &Database, settings: &[(&str, &str)]) -> RawClient {
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
async fn trap_62_reported_settings_follow_their_clients_over_one_backend() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut first = client_with(
        &sidecar,
        &database,
        &[("TimeZone", "Asia/Tokyo"), ("application_name", "one")],
    )
    .await;
    let mut second = client_with(
        &sidecar,
        &database,
        &[("options", "-c extra_float_digits=-5 -c search_path=aside")],
    )
    .await;
    let neutral = second.value("SHOW TimeZone").await;
    for round in 0..3 {
        assert_eq!(first.value("SHOW application_name").await, "one");
        assert_eq!(first.value("SHOW search_path").await, "\"$user\", public");
        assert_eq!(second.value("SHOW search_path").await, "aside");
        assert_eq!(second.value("SHOW extra_float_digits").await, "-5");
        let (zone, style) = [
            ("Asia/Tokyo", "ISO, MDY"),
            ("Europe/Berlin", "German, DMY"),
            ("UTC", "SQL, DMY"),
        ][round];
        assert_eq!(first.value("SHOW TimeZone").await, zone);
        assert_eq!(first.value("SHOW DateStyle").await, style);
        assert_eq!(second.value("SHOW TimeZone").await, neutral);
        if round == 0 {
            let answer = first
                .ask("SET TimeZone = 'Europe/Berlin'; SET DateStyle = 'German'")
                .await;
            assert_eq!(tags(&answer), "CCSSZ");
            assert_eq!(first.parameter("TimeZone"), Some("Europe/Berlin"));
        } else {
            let group = [
                parse(
                    "",
                    "SELECT set_config('TimeZone', $1, false), set_config('DateStyle', 'SQL', false)",
                ),
                bind("", "", &["UTC"]),
                execute("", 0),
                sync(),
            ];
            first.send(&together(&group)).await;
            first.expect(["", "1 2 D C S S Z", "1 2 D C Z"][round]).await;
        }
    }
    assert_eq!(pins(&sidecar).await, 0.0);
}

#[tokio::test]
async fn trap_56_a_set_that_is_rolled_back_leaves_nothing() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = client_with(&sidecar, &database, &[("TimeZone", "Asia/Tokyo")]).await;
    let mut other = client_with(&sidecar, &database, &[]).await;
    for end in ["ROLLBACK", "COMMIT"] {
        client.ask("BEGIN").await;
        client.ask("SAVEPOINT s").await;
        client.ask("SET TimeZone = 'Europe/Berlin'").await;
        assert_eq!(client.parameter("TimeZone"), Some("Europe/Berlin"));
        client.ask("ROLLBACK TO s").await;
        client.ask(end).await;
        assert_eq!(client.parameter("TimeZone"), Some("Asia/Tokyo"));
        other.value("SELECT 1").await;
        assert_eq!(client.value("SHOW TimeZone").await, "Asia/Tokyo");
    }
}

/// Trap 60: RESET and DISCARD ALL return to the client's startup parameters, at once and for good.
#[tokio::test]
async fn trap_60_a_reset_returns_to_the_startup_parameters() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = client_with(
        &sidecar,
        &database,
        &[("TimeZone", "Asia/Tokyo"), ("search_path", "aside")],
    )
    .await;
    let mut other = client_with(&sidecar, &database, &[]).await;
    for reset in ["RESET TimeZone", "RESET ALL", "DISCARD ALL", "SET TimeZone TO DEFAULT"] {
        client.ask("SET TimeZone = 'Europe/Berlin'").await;
        client
            .send(&together(&[
                query(reset),
                query("SHOW TimeZone"),
                query("SHOW search_path"),
            ]))
            .await;
        let answers = [
            client.until_ready().await,
            client.until_ready().await,
            client.until_ready().await,
        ];
        if reset.starts_with("SET") {
            // DEFAULT is the backend's own; that is told truly.
            assert_eq!(client.parameter("TimeZone"), answers[1][1].row()[0].as_deref());
            continue;
        }
        assert_eq!(answers[1][1].row(), [Some("Asia/Tokyo".to_owned())], "{reset}");
        assert_eq!(answers[2][1].row(), [Some("aside".to_owned())], "{reset}");
        assert_eq!(client.parameter("TimeZone"), Some("Asia/Tokyo"), "{reset}");
        assert_eq!(other.value("SHOW search_path").await, "\"$user\", public", "{reset}");
        assert_eq!(client.value("SHOW TimeZone").await, "Asia/Tokyo", "{reset}");
        // Rolled back, it has not happened; and what it did not take away reaches nobody.
        client.ask("SET TimeZone = 'Europe/Berlin'").await;
        for sql in ["BEGIN", reset, "SELECT 1", "ROLLBACK"] {
            client.ask(sql).await;
        }
        assert_eq!(other.value("SHOW search_path").await, "\"$user\", public", "{reset}");
        assert_eq!(client.value("SHOW TimeZone").await, "Europe/Berlin", "{reset}");
    }
}

/// Trap 60: where a client holds its backend for settings that the ledger can't see, a RESET takes back what it names and
/// nothing else, above all not the role.
#[tokio::test]
async fn trap_60_a_reset_leaves_a_pinned_clients_other_settings_and_its_role() {
    let cluster = Postgres::shared();
    let database = cluster.create_database();
    let sidecar = Sidecar::builder(&database)
        .upstream(database.url_as("postgres", SUPERUSER_PASSWORD))
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let begin = format!(
        "SET ROLE {USER}; SET search_path = aside; SET work_mem = '5MB'; SET extra_float_digits = 1; SET DateStyle = 'German'"
    );
    let scripts: [&[&str]; 9] = [
        &["RESET TimeZone"],
        &["RESET work_mem"],
        &["SET DateStyle TO DEFAULT"],
        &["RESET ALL"],
        &["RESET ROLE"],
        &["RESET SESSION AUTHORIZATION"],
        &["BEGIN", "RESET DateStyle", "RESET extra_float_digits", "ROLLBACK"],
        &["BEGIN", "RESET ALL", "ROLLBACK"],
        &["BEGIN", "RESET TimeZone", "RESET search_path", "SELECT 1", "COMMIT"],
    ];
    let settings = [
        ("database", database.name.as_str()),
        ("TimeZone", "Asia/Tokyo"),
        ("options", "-c extra_float_digits=-5"),
    ];
    let cases = scripts.iter().flat_map(|script| [(script, false), (script, true)]);
    for (script, is_pinned) in cases {
        let mut seen = Vec::new();
        for port in [database.port, sidecar.port] {
            let mut client = RawClient::connect(port).await;
            client
                .log_in("postgres", SUPERUSER_PASSWORD, &settings)
                .await
                .expect("the login succeeds");
            client.ask(&begin).await;
            if is_pinned {
                client.ask("SELECT pg_advisory_lock(1)").await;
            }
            for sql in *script {
                client.ask(sql).await;
            }
            let sql = "SELECT concat_ws(' ', current_user, current_setting('search_path'), current_setting('work_mem'), \
                       current_setting('TimeZone'), current_setting('extra_float_digits'), current_setting('DateStyle'))";
            let first = client.value(sql).await;
            seen.push([first, client.value(sql).await]);
        }
        assert_eq!(seen[0], seen[1], "{script:?}");
    }
}

/// A setting that the role may no longer make: nothing of the client's is run without it.
#[tokio::test]
async fn a_prelude_that_fails_lets_no_statement_of_the_client_run() {
    let cluster = Postgres::shared();
    let database = cluster.create_database();
    let role = format!("{}_team", database.name);
    cluster.psql(
        &database.name,
        &format!("CREATE ROLE {role}; GRANT {role} TO {USER}; GRANT ALL ON SCHEMA public TO {role}"),
    );
    let sidecar = one_backend(&database).await;
    let mut plain = client_with(&sidecar, &database, &[]).await;
    plain
        .ask("CREATE TABLE kept (x text); GRANT ALL ON kept TO PUBLIC")
        .await;
    let mut member = client_with(&sidecar, &database, &[("role", &role)]).await;
    assert_eq!(member.value("SELECT current_user").await, role);
    assert_eq!(plain.value("SELECT current_user").await, USER);
    cluster.psql("postgres", &format!("REVOKE {role} FROM {USER}"));
    let insert = "INSERT INTO kept VALUES (current_user)";
    let extended = |first: &str| {
        together(&[
            parse("", first),
            bind("", "", &[]),
            execute("", 0),
            parse("", insert),
            bind("", "", &[]),
            execute("", 0),
            sync(),
        ])
    };
    let attempts = [
        (query(insert), 1),
        (query(&format!("ROLLBACK; {insert}")), 1),
        (together(&[query("SELECT 1"), query("ROLLBACK"), query(insert)]), 3),
        (extended("SELECT 1"), 1),
        (extended("COMMIT"), 1),
        (together(&[extended("SELECT 1"), extended("ROLLBACK")]), 2),
    ];
    for (number, (attempt, readies)) in attempts.into_iter().enumerate() {
        // Whoever had the backend before left it with other settings.
        plain.value("SELECT 1").await;
        member.send(&attempt).await;
        let answer = member.until_ready().await;
        assert_eq!(
            (tags(&answer).as_str(), answer[0].sqlstate().as_str()),
            ("EZ", "42501"),
            "attempt {number}"
        );
        for _ in 1..readies {
            assert!(tags(&member.until_ready().await).ends_with("EZ"), "attempt {number}");
        }
        assert_eq!(plain.value("SELECT count(*) FROM kept").await, "0", "attempt {number}");
    }
}

/// A statement that could leave a failed block waits for the prelude, and is then run.
/// What the client holds can't be made again on another backend: it goes, as it would with a connection of its own.
#[tokio::test]
async fn a_prelude_that_fails_ends_a_pinned_client() {
    let cluster = Postgres::shared();
    let database = cluster.create_database();
    let sidecar = Sidecar::builder(&database)
        .upstream(database.url_as("postgres", SUPERUSER_PASSWORD))
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let settings = [("database", database.name.as_str()), ("log_min_messages", "error")];
    let mut client = RawClient::connect(sidecar.port).await;
    client
        .log_in("postgres", SUPERUSER_PASSWORD, &settings)
        .await
        .expect("the login succeeds");
    client.ask("SELECT pg_advisory_lock(1)").await;
    client.ask(&format!("SET ROLE {USER}")).await;
    client.ask("RESET ALL").await;
    client.send(&query("SELECT current_user")).await;
    let answer = client.until_closed().await;
    assert_eq!((tags(&answer).as_str(), answer[0].sqlstate().as_str()), ("E", "42501"));
}

/// What was sent behind a prelude that failed has not happened: it ties nobody to the next backend.
#[tokio::test]
async fn a_prelude_that_fails_leaves_no_pin_of_the_statement_behind_it() {
    let cluster = Postgres::shared();
    let database = cluster.create_database();
    let role = format!("{}_team", database.name);
    cluster.psql(&database.name, &format!("CREATE ROLE {role}; GRANT {role} TO {USER}"));
    let sidecar = one_backend(&database).await;
    let mut member = client_with(&sidecar, &database, &[("role", &role)]).await;
    let mut other = client_with(&sidecar, &database, &[]).await;
    cluster.psql("postgres", &format!("REVOKE {role} FROM {USER}"));
    other.value("SELECT 1").await;
    assert_eq!(tags(&member.ask("SET search_path = aside").await), "EZ");
    cluster.psql("postgres", &format!("GRANT {role} TO {USER}"));
    assert_eq!(member.value("SHOW search_path").await, "\"$user\", public");
    assert_eq!(other.value("SELECT current_user").await, USER);
    assert_eq!(member.value("SELECT current_user").await, role);
}

#[tokio::test]
async fn the_first_word_behind_a_prelude_may_end_a_transaction() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut plain = client_with(&sidecar, &database, &[]).await;
    let mut client = client_with(&sidecar, &database, &[("TimeZone", "Asia/Tokyo")]).await;
    for sql in ["ROLLBACK", "COMMIT", "ROLLBACK; SELECT 1", "END"] {
        plain.value("SELECT 1").await;
        let answer = client.ask(sql).await;
        assert!(tags(&answer).starts_with("NC"), "{sql}: {}", tags(&answer));
        plain.value("SELECT 1").await;
        client
            .send(&together(&[
                parse("", "ROLLBACK"),
                bind("", "", &[]),
                execute("", 0),
                sync(),
            ]))
            .await;
        client.expect("1 2 N C Z").await;
        plain.value("SELECT 1").await;
        client
            .send(&together(&[
                parse("s", "ROLLBACK"),
                bind("", "s", &[]),
                execute("", 0),
                sync(),
            ]))
            .await;
        client.expect("1 2 N C Z").await;
        client.ask("DEALLOCATE s").await;
    }
}

#[tokio::test]
async fn another_identity_never_reaches_another_client() {
    let cluster = Postgres::shared();
    let database = cluster.create_database();
    let role = format!("{}_team", database.name);
    cluster.psql(&database.name, &format!("CREATE ROLE {role}; GRANT {role} TO {USER}"));
    let sidecar = Sidecar::builder(&database)
        .upstream(database.url_as("postgres", SUPERUSER_PASSWORD))
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    for change in [format!("SET SESSION AUTHORIZATION {USER}"), format!("SET ROLE {role}")] {
        let mut first = RawClient::login(sidecar.port, "postgres", SUPERUSER_PASSWORD, &database.name).await;
        first.ask(&change).await;
        assert_ne!(first.value("SELECT current_user").await, "postgres");
        drop(first);
        let mut second = RawClient::login(sidecar.port, "postgres", SUPERUSER_PASSWORD, &database.name).await;
        assert_eq!(
            second.value("SELECT session_user || current_user").await,
            "postgrespostgres"
        );
    }
}

/// Trap 63: the server's configuration changed while a backend was idle.
#[tokio::test]
async fn trap_63_a_setting_reported_to_an_idle_backend_is_learned_and_told_with_the_next_reply() {
    let fake = FakeBackend::start(|mut session| async move {
        session.login().await?;
        loop {
            let asked = session.until(b'Q').await?;
            session.complete("SELECT 0", TransactionStatus::Idle).await?;
            if asked.body.starts_with(b"SELECT 1") {
                session.delay(Duration::from_millis(50)).await;
                let mut out = bytes::BytesMut::new();
                compose::parameter_status(&mut out, "TimeZone", "Asia/Tokyo");
                session.send(&out).await?;
            }
        }
    })
    .await;
    let sidecar = fake.sidecar().set("POOL__MAX_SIZE", "1").start().await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, crate::support::fake_backend::DATABASE).await;
    for told in ["CZ", "CSZ", "CZ"] {
        assert_eq!(tags(&client.ask("SELECT 1").await), told);
        assert!(client.silent_for(Duration::from_millis(300)).await);
    }
    assert_eq!(client.parameter("TimeZone"), Some("Asia/Tokyo"));
    assert_eq!(fake.sessions().len(), 1, "the backend is kept");
}

/// A RESET that ran, and whose group failed behind it, has not happened.
#[tokio::test]
async fn trap_60_a_reset_in_a_group_that_fails_has_not_happened() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = client_with(&sidecar, &database, &[("TimeZone", "Asia/Tokyo")]).await;
    client.ask("SET TimeZone = 'Europe/Berlin'").await;
    client.send(&together(&[parse("b", "RESET ALL"), sync()])).await;
    client.expect("1 Z").await;
    for _ in 0..2 {
        let groups = [
            bind("a", "b", &[]),
            execute("a", 1),
            execute("a", 1),
            sync(),
            parse("", "SELECT current_setting('TimeZone')"),
            bind("", "", &[]),
            execute("", 0),
            sync(),
        ];
        client.send(&together(&groups)).await;
        let answer = client.until_ready().await;
        assert_eq!(tags(&answer), "2CEZ");
        let answer = client.until_ready().await;
        assert_eq!(tags(&answer), "12DCZ", "nothing is news");
        assert_eq!(answer[2].row(), [Some("Europe/Berlin".to_owned())]);
    }
}

/// Startup settings come back before the group that follows a RESET: an error in it takes nothing of them away.
#[tokio::test]
async fn trap_59_startup_settings_survive_an_error_behind_a_reset() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = client_with(&sidecar, &database, &[("TimeZone", "Asia/Tokyo")]).await;
    // It keeps its backend, and so sees what the RESET made of it.
    client.ask("CREATE TEMP TABLE kept (x int)").await;
    let reset = [parse("", "RESET ALL"), bind("", "", &[]), execute("", 0), sync()];
    client.send(&together(&reset)).await;
    client.until_ready().await;
    client
        .send(&together(&[
            close('S', ""),
            parse("", "SHOW TimeZone"),
            bind("", "", &[]),
            execute("", 0),
            execute("nosuch", 0),
            sync(),
            query("SHOW TimeZone"),
        ]))
        .await;
    assert_eq!(
        client.expect("3 1 2 D C E Z").await[3].row(),
        [Some("Asia/Tokyo".to_owned())]
    );
    assert_eq!(client.expect("T D C Z").await[1].row(), [Some("Asia/Tokyo".to_owned())]);
}

/// A RESET that was skipped, or rolled back with a chain, is over though a transaction is open.
#[tokio::test]
async fn a_reset_that_never_ran_is_forgotten_when_its_block_is_rolled_back_and_chained() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = client_with(&sidecar, &database, &[("TimeZone", "Asia/Tokyo")]).await;
    client.ask("SET TimeZone = 'Asia/Shanghai'").await;
    client.ask("BEGIN").await;
    client.ask("SELECT 1/0").await;
    let skipped = [
        parse("", "SELECT 1"),
        parse("r", "RESET ALL"),
        bind("", "r", &[]),
        execute("", 0),
        sync(),
    ];
    client.send(&together(&skipped)).await;
    client.expect("E Z").await;
    let answer = client.ask("ROLLBACK AND CHAIN").await;
    assert_eq!(tags(&answer), "CZ", "no setting has changed");
    assert_eq!(client.value("SHOW TimeZone").await, "Asia/Shanghai");
    client.ask("RESET ALL").await;
    assert_eq!(client.value("SHOW TimeZone").await, "Asia/Tokyo");
    client.ask("ROLLBACK AND CHAIN").await;
    assert_eq!(client.value("SHOW TimeZone").await, "Asia/Shanghai");
    client.ask("COMMIT").await;
    assert_eq!(client.value("SHOW TimeZone").await, "Asia/Shanghai");
}

#[tokio::test]
async fn a_setting_that_is_set_to_its_default_is_what_the_client_started_with() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = client_with(&sidecar, &database, &[("TimeZone", "Asia/Tokyo")]).await;
    for reset in ["SET TimeZone TO DEFAULT", "SET TIME ZONE LOCAL", "RESET TimeZone"] {
        client.ask("SET TimeZone = 'Asia/Shanghai'").await;
        client.ask(reset).await;
        assert_eq!(client.value("SHOW TimeZone").await, "Asia/Tokyo", "{reset}");
        assert_eq!(client.parameter("TimeZone"), Some("Asia/Tokyo"), "{reset}");
    }
}

/// A body of a ParameterStatus.
fn reports(messages: &[Message], body: &[u8]) -> bool {
    messages
        .iter()
        .any(|message| message.tag == b'S' && &message.body[..] == body)
}

#[tokio::test]
async fn a_greeting_and_a_report_say_the_very_bytes_that_the_server_said() {
    let fake = FakeBackend::start(|mut session| async move {
        session.login_with(&[("TimeZone", b"Caf\xe9")]).await?;
        session.until_query("SELECT 1").await?;
        let mut out = bytes::BytesMut::new();
        compose::parameter_status(&mut out, "odd", b"\xff\xfe");
        compose::frame(&mut out, b'S', &[b"\xe9\0x\0"]);
        session.send(&out).await?;
        session.complete("SELECT 0", TransactionStatus::Idle).await?;
        session.serve().await
    })
    .await;
    let sidecar = fake.sidecar().start().await;
    let mut client = RawClient::connect(sidecar.port).await;
    client
        .startup(pgsidecar::wire::PROTOCOL_3_0, &[("user", USER), ("database", "fake")])
        .await;
    let first = client.message().await;
    client.prove(PASSWORD, &first).await;
    let greeting = client.until_ready().await;
    assert!(reports(&greeting, b"TimeZone\0Caf\xe9\0"), "{greeting:?}");
    let answer = client.ask("SELECT 1").await;
    assert!(
        reports(&answer, b"odd\0\xff\xfe\0") && reports(&answer, b"\xe9\0x\0"),
        "{answer:?}"
    );
    assert_eq!(client.value("SELECT 2").await, "ok");
}

#[tokio::test]
async fn a_reported_value_in_an_encoding_that_is_not_utf8_stays_as_it_is_with_its_client() {
    let database = Postgres::shared_18().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "2")
        .start_ready()
        .await;
    // é in LATIN1; and é in UTF-8, which are two characters there.
    for (name, hex) in [(&b"caf\xe9"[..], "e9"), (b"caf\xc3\xa9", "c3a9")] {
        let sql = [b"SET search_path = \"", name, b"\""].concat();
        let mut set = bytes::BytesMut::new();
        compose::frame(&mut set, b'Q', &[&sql, b"\0"]);
        let reported = [b"search_path\0\"", name, b"\"\0"].concat();
        for port in [database.port, sidecar.port] {
            let mut client = RawClient::login(port, USER, PASSWORD, &database.name).await;
            client.ask("SET client_encoding = 'LATIN1'").await;
            client.send(&set).await;
            let answer = client.until_ready().await;
            assert!(reports(&answer, &reported), "{answer:?}");
            if port == sidecar.port {
                sidecar
                    .wait_metric("pgsidecar_backends", &[("state", "pinned")], |pinned| pinned == 1.0)
                    .await;
                let mut other = RawClient::login(port, USER, PASSWORD, &database.name).await;
                assert_eq!(other.value("SHOW search_path").await, "\"$user\", public");
            }
            let shown = "SELECT substr(convert_to(current_setting('search_path'), 'LATIN1')::text, 11)";
            assert_eq!(client.value(shown).await, format!("{hex}22"));
        }
        sidecar
            .wait_metric("pgsidecar_backends", &[("state", "pinned")], |pinned| pinned == 0.0)
            .await;
    }
}

/// The value of a setting, and what the client was told of it last.
async fn seen(client: &mut RawClient, name: &str) -> (String, Option<String>) {
    let value = client.value(&format!("SHOW {name}")).await;
    (value, client.parameter(name).map(str::to_owned))
}

#[tokio::test]
async fn trap_63_a_changed_default_of_the_server_reaches_clients_of_before_that_never_set_it() {
    let cluster = Postgres::private(Version::Installed);
    let database = cluster.create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "2")
        .start_ready()
        .await;
    let mut direct = RawClient::login(database.port, USER, PASSWORD, &database.name).await;
    let mut plain = client_with(&sidecar, &database, &[("application_name", "plain")]).await;
    let mut other = client_with(&sidecar, &database, &[]).await;
    let mut starter = client_with(&sidecar, &database, &[("TimeZone", "Asia/Tokyo")]).await;
    let mut setter = client_with(&sidecar, &database, &[]).await;
    setter.ask("SET TimeZone = 'Asia/Tokyo'").await;
    let mut holder = client_with(&sidecar, &database, &[]).await;
    for zone in ["Europe/Berlin", "Asia/Shanghai", "America/Lima"] {
        cluster.psql("postgres", &format!("ALTER SYSTEM SET timezone = '{zone}'"));
        cluster.psql("postgres", "SELECT pg_reload_conf()");
        let expected = (zone.to_owned(), Some(zone.to_owned()));
        let own = ("Asia/Tokyo".to_owned(), Some("Asia/Tokyo".to_owned()));
        crate::support::eventually("PostgreSQL's own client sees it", async || {
            (seen(&mut direct, "TimeZone").await == expected).then_some(())
        })
        .await;
        // Whichever backend each of them gets.
        for _ in 0..2 {
            assert_eq!(seen(&mut setter, "TimeZone").await, own);
            assert_eq!(seen(&mut plain, "TimeZone").await, expected);
            holder.ask("BEGIN").await;
            assert_eq!(seen(&mut holder, "TimeZone").await, expected);
            assert_eq!(seen(&mut other, "TimeZone").await, expected);
            assert_eq!(seen(&mut starter, "TimeZone").await, own);
            assert_eq!(seen(&mut plain, "TimeZone").await, expected);
            holder.ask("COMMIT").await;
        }
        let mut fresh = client_with(&sidecar, &database, &[]).await;
        assert_eq!(fresh.parameter("TimeZone"), Some(zone));
        assert_eq!(seen(&mut fresh, "TimeZone").await, expected);
    }
    setter.ask("RESET TimeZone").await;
    let last = ("America/Lima".to_owned(), Some("America/Lima".to_owned()));
    assert_eq!(seen(&mut setter, "TimeZone").await, last);
    assert_eq!(seen(&mut starter, "TimeZone").await.0, "Asia/Tokyo");
}

#[tokio::test]
async fn trap_63_a_report_that_only_a_sessions_own_setting_explains_follows_its_client() {
    let database = Postgres::shared().create_database();
    let function = |body: &str| {
        let sql = format!(
            "CREATE OR REPLACE FUNCTION plain() RETURNS text LANGUAGE plpgsql AS $$ BEGIN {body} RETURN 'ran'; END $$"
        );
        Postgres::shared().psql(&database.name, &sql);
    };
    function("");
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "2")
        .start_ready()
        .await;
    let mut client = client_with(&sidecar, &database, &[]).await;
    let mut other = client_with(&sidecar, &database, &[]).await;
    let mut holder = client_with(&sidecar, &database, &[]).await;
    let neutral = seen(&mut other, "TimeZone").await;
    assert_eq!(client.value("SELECT plain()").await, "ran");
    // Past pgsidecar, which takes the function for a harmless one until it reads the catalog again.
    function("PERFORM set_config('TimeZone', 'Asia/Tokyo', false);");
    assert_eq!(client.value("SELECT plain()").await, "ran");
    let own = ("Asia/Tokyo".to_owned(), Some("Asia/Tokyo".to_owned()));
    for _ in 0..2 {
        assert_eq!(seen(&mut client, "TimeZone").await, own);
        assert_eq!(seen(&mut other, "TimeZone").await, neutral);
        holder.ask("BEGIN").await;
        assert_eq!(seen(&mut client, "TimeZone").await, own);
        assert_eq!(seen(&mut other, "TimeZone").await, neutral);
        holder.ask("COMMIT").await;
    }
    assert_eq!(
        sidecar.metric("pgsidecar_backends", &[("state", "pinned")]).await,
        Some(0.0)
    );
    let fresh = client_with(&sidecar, &database, &[]).await;
    assert_eq!(fresh.parameter("TimeZone").map(str::to_owned), neutral.1);
}

/// A role that can't be taken any more ends as it would directly, where nothing else but its end is said.
#[tokio::test]
async fn a_client_whose_prelude_fails_can_take_back_what_is_refused() {
    let cluster = Postgres::shared();
    for taken in ["RESET ROLE", "SET ROLE NONE", "DISCARD ALL"] {
        let database = cluster.create_database();
        let role = format!("{}_team", database.name);
        cluster.psql(&database.name, &format!("CREATE ROLE {role}; GRANT {role} TO {USER}"));
        let sidecar = one_backend(&database).await;
        let started = [("database", database.name.as_str()), ("TimeZone", "Asia/Tokyo")];
        let mut direct = RawClient::connect(database.port).await;
        direct
            .log_in(USER, PASSWORD, &started)
            .await
            .expect("the login succeeds");
        let mut client = client_with(&sidecar, &database, &started[1..]).await;
        let mut other = client_with(&sidecar, &database, &[]).await;
        for client in [&mut direct, &mut client] {
            client
                .ask(&format!(
                    "SET ROLE {role}; SET TimeZone TO 'Etc/GMT'; SET work_mem TO '7MB'"
                ))
                .await;
        }
        assert_eq!(client.value("SELECT current_user").await, role);
        cluster.psql("postgres", &format!("REVOKE {role} FROM {USER}"));
        other.value("SELECT 1").await;
        assert_eq!(tags(&client.ask("SELECT 1").await), "EZ");
        other.value("SELECT 1").await;
        // What else is said with it has not run; RESET ALL leaves the role.
        assert_eq!(tags(&client.ask(&format!("{taken}; SELECT 1")).await), "EZ", "{taken}");
        for sql in [
            "RESET ALL",
            taken,
            "SHOW TimeZone",
            "SHOW work_mem",
            "SELECT current_user",
        ] {
            let (expected, answer) = (direct.ask(sql).await, client.ask(sql).await);
            assert_eq!(tags(&answer), tags(&expected), "{taken}: {sql}");
            assert_eq!(answer, expected, "{taken}: {sql}");
        }
    }
}
