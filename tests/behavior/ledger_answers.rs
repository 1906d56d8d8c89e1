//! SETs that are answered without PostgreSQL: to the byte as it would, and only where it has said so before.

use bytes::{BufMut, BytesMut};
use pgsidecar::wire::backend_message::TransactionStatus;
use pgsidecar::wire::compose;

use crate::support::eventually;
use crate::support::fake_backend::{DATABASE, FakeBackend};
use crate::support::postgres::{PASSWORD, Postgres, USER};
use crate::support::raw_client::{
    Message, RawClient, bind, describe, execute, parse, query, shown, sync, tags, together,
};
use crate::support::sidecar::Sidecar;

async fn client_of(port: u16, database: &str, settings: &[(&str, &str)]) -> RawClient {
    let mut client = RawClient::connect(port).await;
    let settings = [&[("database", database)], settings].concat();
    client
        .log_in(USER, PASSWORD, &settings)
        .await
        .expect("the login succeeds");
    client
}

async fn answers(sidecar: &Sidecar) -> f64 {
    sidecar
        .metric("pgsidecar_setting_answers_total", &[])
        .await
        .unwrap_or(0.0)
}

async fn wait_answers(sidecar: &Sidecar, count: f64) {
    let come = async || (answers(sidecar).await >= count).then_some(());
    eventually(&format!("{count} answers"), come).await;
}

/// Parse, Bind, Describe, Execute, Sync with a type for `$1` and one format for what comes back, as drivers say them.
fn group(sql: &str, types: &[u32], values: &[&str], result_format: Option<u16>) -> BytesMut {
    let mut definition = BytesMut::from(sql.as_bytes());
    definition.put_u8(0);
    definition.put_u16(u16::try_from(types.len()).unwrap());
    types.iter().for_each(|oid| definition.put_u32(*oid));
    let mut out = BytesMut::new();
    compose::parse(&mut out, b"", &definition);
    let mut body = BytesMut::from(&b"\0\0\0\0"[..]);
    body.put_u16(u16::try_from(values.len()).unwrap());
    for value in values {
        body.put_u32(u32::try_from(value.len()).unwrap());
        body.put_slice(value.as_bytes());
    }
    body.put_u16(u16::from(result_format.is_some()));
    result_format.into_iter().for_each(|format| body.put_u16(format));
    compose::frame(&mut out, b'B', &[&body]);
    together(&[out, describe('P', ""), execute("", 0), sync()])
}

/// What a client says, each up to one ReadyForQuery; and whether a pool that has heard it before answers it by itself.
fn conversation() -> Vec<(BytesMut, bool)> {
    let yes = |message: BytesMut| (message, true);
    let no = |message: BytesMut| (message, false);
    const CALL: &str = "SELECT set_config('TimeZone', $1, false)";
    vec![
        // Django by psycopg: client-side binding, and server-side; psycopg 2.
        yes(query("SELECT set_config('TimeZone', 'Europe/Paris', false)")),
        yes(group(CALL, &[0], &["UTC"], Some(0))),
        yes(group(CALL, &[], &["america/new_york"], None)),
        yes(query("SET TIME ZONE 'UTC'")),
        yes(query("set session timezone to 'utc';")),
        yes(query("SET TimeZone = 'UTC'")),
        yes(query("SET TIME ZONE -8")),
        yes(query("SET datestyle TO 'ISO'")),
        yes(query("SET DateStyle TO 'German'")),
        yes(query("SET DateStyle TO 'iso'")),
        // asyncpg reads binary; pgjdbc limits what it throws away.
        yes(group(CALL, &[25], &["Asia/Tokyo"], Some(1))),
        yes(together(&[
            parse("", "SET extra_float_digits = 3"),
            bind("", "", &[]),
            execute("", 1),
            sync(),
        ])),
        yes(query("SET application_name = 'PostgreSQL JDBC Driver'")),
        yes(query("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")),
        yes(query("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE")),
        // Rails.
        yes(query("SET client_min_messages TO 'warning'")),
        yes(query("SET standard_conforming_strings = on")),
        yes(query("SET intervalstyle = iso_8601")),
        yes(query("SET SESSION statement_timeout TO 5000")),
        yes(query("SET NAMES 'utf8'")),
        yes(query("SET client_encoding TO 'SQL_ASCII'")),
        yes(query("SET NAMES 'UTF8'")),
        yes(query("SET work_mem TO '8192'")),
        yes(query("SET jit = off")),
        // What is refused, what ends by itself, and what names more or other things, is PostgreSQL's to say.
        no(query("SET TimeZone TO 'Nowhere/Land'")),
        no(query("SET TimeZone TO utc bad")),
        no(group(CALL, &[0], &["Nowhere/Land"], Some(0))),
        no(query("SET LOCAL TimeZone TO 'UTC'")),
        no(query("SET TimeZone TO 'UTC'; SET DateStyle TO 'ISO'")),
        no(query("SET search_path TO 'public'")),
        no(query("SET ROLE NONE")),
        no(query("SET SESSION AUTHORIZATION DEFAULT")),
        no(query("SET app.tenant TO '1'")),
        no(query("SELECT set_config('app.tenant', '1', false)")),
        no(query("SET log_statement TO 'none'")),
        no(query("RESET TimeZone")),
        no(query("SELECT set_config('TimeZone', 'UTC', true)")),
        // Behind a Parse of its own, which the client may use again.
        no(together(&[
            parse("", "SELECT set_config('TimeZone', 'UTC', false)"),
            sync(),
        ])),
        no(together(&[bind("", "", &[]), execute("", 0), sync()])),
        no(query("SHOW TimeZone")),
        // And what the ledger became.
        no(query(
            "SELECT name, setting FROM pg_settings WHERE name IN ('TimeZone', 'DateStyle', 'extra_float_digits', \
             'application_name', 'default_transaction_read_only', 'client_min_messages', 'IntervalStyle', 'work_mem', \
             'statement_timeout', 'client_encoding', 'jit', 'search_path') ORDER BY name",
        )),
    ]
}

async fn converse(client: &mut RawClient, conversation: &[(BytesMut, bool)]) -> Vec<Vec<Message>> {
    let mut replies = Vec::new();
    for (message, _) in conversation {
        client.send(message).await;
        replies.push(client.until_ready().await);
    }
    replies
}

fn assert_equal(conversation: &[(BytesMut, bool)], direct: &[Vec<Message>], through: &[Vec<Message>], told: &str) {
    for (index, (one, other)) in direct.iter().zip(through).enumerate() {
        let said = String::from_utf8_lossy(&conversation[index].0).into_owned();
        assert_eq!(
            one,
            other,
            "{told}: {said}\ndirect {}\nthrough {}",
            shown(one),
            shown(other)
        );
    }
}

#[tokio::test]
async fn what_is_answered_is_to_the_byte_what_postgresql_says() {
    for cluster in [Postgres::shared(), Postgres::shared_18()] {
        answers_are_what_postgresql_says(cluster).await;
    }
}

async fn answers_are_what_postgresql_says(cluster: &Postgres) {
    let database = cluster.create_database();
    let sidecar = Sidecar::start(&database).await;
    let conversation = conversation();
    for startup in [
        &[][..],
        &[("TimeZone", "Asia/Tokyo"), ("DateStyle", "SQL, DMY")],
        &[("client_min_messages", "error"), ("application_name", "x")],
    ] {
        let mut direct = client_of(database.port, &database.name, startup).await;
        let expected = converse(&mut direct, &conversation).await;
        for round in ["first", "second", "third"] {
            let mut client = client_of(sidecar.port, &database.name, startup).await;
            let replies = converse(&mut client, &conversation).await;
            assert_equal(&conversation, &expected, &replies, &format!("{round} with {startup:?}"));
        }
    }
    assert!(answers(&sidecar).await > 60.0, "{}", answers(&sidecar).await);
}

/// Each by itself, from a client that has just connected: who only connects, SETs and leaves takes no backend.
#[tokio::test]
async fn a_value_that_was_accepted_before_takes_no_backend() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    for (message, is_answered) in conversation() {
        let said = String::from_utf8_lossy(&message).into_owned();
        let mut direct = client_of(database.port, &database.name, &[]).await;
        direct.send(&message).await;
        let expected = direct.until_ready().await;
        let mut first = client_of(sidecar.port, &database.name, &[]).await;
        first.send(&message).await;
        assert_eq!(first.until_ready().await, expected, "{said}");
        first.ask("SELECT 1").await;
        let before = answers(&sidecar).await;
        // The one backend is in use.
        let mut other = client_of(sidecar.port, &database.name, &[]).await;
        if is_answered {
            other.ask("BEGIN").await;
        }
        let mut second = client_of(sidecar.port, &database.name, &[]).await;
        second.send(&message).await;
        assert_eq!(second.until_ready().await, expected, "{said}");
        if is_answered {
            wait_answers(&sidecar, before + 1.0).await;
            other.ask("COMMIT").await;
        } else {
            assert_eq!(answers(&sidecar).await, before, "{said}");
        }
    }
}

#[tokio::test]
async fn not_one_byte_of_an_answered_set_reaches_postgresql() {
    let fake = FakeBackend::start(|mut session| async move {
        session.login().await?;
        loop {
            let asked = session.until(b'Q').await?;
            if asked.body.starts_with(b"SET TimeZone") {
                let mut out = BytesMut::new();
                compose::frame(&mut out, b'C', &[b"SET\0"]);
                compose::parameter_status(&mut out, "TimeZone", "Etc/UTC");
                compose::ready_for_query(&mut out, TransactionStatus::Idle);
                session.send(&out).await?;
            } else {
                session.complete("SELECT 0", TransactionStatus::Idle).await?;
            }
        }
    })
    .await;
    let sidecar = fake.sidecar().set("POOL__MAX_SIZE", "1").start().await;
    let mut first = client_of(sidecar.port, DATABASE, &[]).await;
    assert_eq!(tags(&first.ask("SET TimeZone TO 'Etc/UTC'").await), "CSZ");
    first.ask("SELECT 1").await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(client_of(sidecar.port, DATABASE, &[]).await);
    }
    let sent = fake.sessions()[0].messages.len();
    for client in &mut clients {
        assert_eq!(tags(&client.ask("SET TIME ZONE 'Etc/UTC'").await), "CSZ");
        assert_eq!(
            tags(&client.ask("SELECT set_config('timezone', 'Etc/UTC', false)").await),
            "TDCZ"
        );
        assert_eq!(tags(&client.ask("SET application_name TO 'mine'").await), "CSZ");
        assert_eq!(client.parameter("TimeZone"), Some("Etc/UTC"));
    }
    drop(clients);
    wait_answers(&sidecar, 9.0).await;
    assert_eq!((fake.sessions().len(), fake.sessions()[0].messages.len()), (1, sent));
}

#[tokio::test]
async fn the_next_statement_runs_under_what_was_answered() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut other = client_of(sidecar.port, &database.name, &[]).await;
    for sql in [
        "SET TimeZone TO 'Asia/Tokyo'",
        "SET work_mem TO '7MB'",
        "SET TimeZone TO 'Etc/GMT'",
    ] {
        other.ask(sql).await;
    }
    other.ask("SELECT 1").await;
    let mut client = client_of(sidecar.port, &database.name, &[]).await;
    client.ask("SET TimeZone TO 'Asia/Tokyo'").await;
    client.ask("SET work_mem TO '7MB'").await;
    wait_answers(&sidecar, 2.0).await;
    let read = "SELECT current_setting('TimeZone') || ' ' || current_setting('work_mem')";
    assert_eq!(client.value(read).await, "Asia/Tokyo 7MB");
    assert_eq!(other.value(read).await, "Etc/GMT 7MB");
    // Pipelined behind it, in a block, and taken back.
    client
        .send(&together(&[
            query("SET TimeZone TO 'Etc/GMT'"),
            query(read),
            query("BEGIN"),
            query(read),
        ]))
        .await;
    for expected in ["CSZ", "TDCZ", "CZ", "TDCZ"] {
        assert_eq!(tags(&client.until_ready().await), expected);
    }
    client.ask("SET TimeZone TO 'Asia/Tokyo'").await;
    client.ask("ROLLBACK").await;
    assert_eq!(client.value(read).await, "Etc/GMT 7MB");
    client.ask("RESET ALL").await;
    assert_eq!(client.value("SHOW work_mem").await, "4MB");
    assert_eq!(other.value(read).await, "Etc/GMT 7MB");
}

#[tokio::test]
async fn a_client_that_is_pinned_or_in_a_block_asks_postgresql() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let set = "SET TimeZone TO 'Asia/Tokyo'";
    let mut client = client_of(sidecar.port, &database.name, &[]).await;
    client.ask(set).await;
    client.ask("SELECT 1").await;
    let mut client = client_of(sidecar.port, &database.name, &[]).await;
    for (before, told, after) in [
        ("BEGIN", "CSZ", "ROLLBACK"),
        ("SELECT pg_advisory_lock(1)", "CSZ", "SELECT pg_advisory_unlock(1)"),
        ("LISTEN x", "CZ", "UNLISTEN *"),
    ] {
        client.ask(before).await;
        assert_eq!(tags(&client.ask(set).await), told, "{before}");
        client.ask(after).await;
    }
    client.ask("BEGIN").await;
    client.ask("SELECT 1/0").await;
    assert_eq!(tags(&client.ask(set).await), "EZ");
    client.ask("ROLLBACK").await;
    assert_eq!(answers(&sidecar).await, 0.0);
    assert_eq!(client.value("SHOW TimeZone").await, "Asia/Tokyo");
}

#[tokio::test]
async fn ddl_and_a_prelude_that_fails_end_what_was_known() {
    let cluster = Postgres::shared();
    let database = cluster.create_database();
    let role = format!("{}_team", database.name);
    cluster.psql(&database.name, &format!("CREATE ROLE {role}; GRANT {role} TO {USER}"));
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut other = client_of(sidecar.port, &database.name, &[]).await;
    let mut member = client_of(sidecar.port, &database.name, &[("role", &role)]).await;
    for ends in ["CREATE TABLE t (x int)", "-"] {
        other.ask("SET TimeZone TO 'Asia/Tokyo'").await;
        other.ask("SELECT 1").await;
        let mut client = client_of(sidecar.port, &database.name, &[]).await;
        client.ask("SET TimeZone TO 'Asia/Tokyo'").await;
        client.ask("SELECT 1").await;
        let count = answers(&sidecar).await;
        assert!(count >= 1.0);
        if ends == "-" {
            cluster.psql("postgres", &format!("REVOKE {role} FROM {USER}"));
            assert_eq!(tags(&member.ask("SELECT 1").await), "EZ");
        } else {
            other.ask(ends).await;
        }
        let mut client = client_of(sidecar.port, &database.name, &[]).await;
        client.ask("SET TimeZone TO 'Asia/Tokyo'").await;
        client.ask("SELECT 1").await;
        assert_eq!(answers(&sidecar).await, count, "{ends}");
    }
}

#[tokio::test]
async fn warm_settings_are_answered_to_the_first_client() {
    let database = Postgres::shared().create_database();
    let yaml = format!(
        "upstream: {{url: \"{}\"}}\npool:\n  max_size: 1\n  warm_settings: {{TimeZone: Asia/Tokyo, extra_float_digits: 3, \
         work_mem: 12, search_path: public}}\n",
        database.url()
    );
    let sidecar = Sidecar::builder(&database).config(yaml).start_ready().await;
    let mut holder = client_of(sidecar.port, &database.name, &[]).await;
    holder.ask("BEGIN").await;
    let mut client = client_of(sidecar.port, &database.name, &[]).await;
    assert_eq!(
        tags(&client.ask("SELECT set_config('TimeZone', 'Asia/Tokyo', false)").await),
        "TDCSZ"
    );
    assert_eq!(tags(&client.ask("SET extra_float_digits = 3").await), "CZ");
    wait_answers(&sidecar, 2.0).await;
    for name in ["search_path", "work_mem"] {
        sidecar.wait_for_log(&format!("pool.warm_settings.{name}")).await;
    }
    assert_eq!(
        holder.value("SHOW TimeZone").await,
        holder.parameter("TimeZone").unwrap()
    );
    holder.ask("COMMIT").await;
    assert_eq!(client.value("SHOW TimeZone").await, "Asia/Tokyo");
    // DDL empties the memory; they are tried again with the catalog.
    client.ask("CREATE TABLE t (x int)").await;
    client.ask("SELECT 1").await;
    let mut client = client_of(sidecar.port, &database.name, &[]).await;
    client.ask("SET TIME ZONE 'Asia/Tokyo'").await;
    wait_answers(&sidecar, 3.0).await;
}

#[tokio::test]
async fn without_setting_answers_and_in_session_mode_nothing_is_answered() {
    let database = Postgres::shared().create_database();
    for (key, value) in [("POOL__SETTING_ANSWERS", "0"), ("POOL__MODE", "session")] {
        let sidecar = Sidecar::builder(&database).set(key, value).start_ready().await;
        for _ in 0..3 {
            let mut client = client_of(sidecar.port, &database.name, &[]).await;
            client.ask("SET TimeZone TO 'Asia/Tokyo'").await;
            client.ask("SET application_name TO 'x'").await;
            assert_eq!(client.value("SHOW TimeZone").await, "Asia/Tokyo");
        }
        assert_eq!(answers(&sidecar).await, 0.0, "{key}");
    }
}
