//! When things break: a client that vanishes, a backend that dies, a server that restarts. One well-formed error, nothing
//! executed twice, nothing left behind.

use pgsidecar::wire::backend_message::TransactionStatus;
use pgsidecar::wire::{Report, SqlState};
use tokio::io::AsyncReadExt;

use crate::support::eventually;
use crate::support::fake_backend::FakeBackend;
use crate::support::postgres::{Database, PASSWORD, Postgres, USER, Version};
use crate::support::raw_client::{
    Message, RawClient, bind, copy_data, describe, execute, flush, parse, query, sync, tags, terminate, together,
};
use crate::support::sidecar::Sidecar;

async fn one_backend(database: &Database) -> Sidecar {
    Sidecar::builder(database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await
}

async fn client(sidecar: &Sidecar, database: &Database) -> RawClient {
    RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await
}

/// A COPY FROM STDIN as a group of its own.
fn extended_copy() -> bytes::BytesMut {
    together(&[
        parse("", "COPY filled FROM STDIN"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ])
}

/// How many backends of the database are in this condition.
async fn until_backends(database: &Database, condition: &str, count: usize) {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND {condition}",
        database.name
    );
    eventually(&format!("{count} backends with {condition}"), async || {
        (Postgres::shared().psql("postgres", &sql) == count.to_string()).then_some(())
    })
    .await;
}

fn terminate_backends(database: &Database) {
    let sql = format!(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{}' AND backend_type = 'client backend'",
        database.name
    );
    Postgres::shared().psql("postgres", &sql);
}

fn status(answer: &[Message]) -> char {
    let ready = answer.last().expect("an answer");
    assert_eq!(ready.tag, b'Z');
    char::from(ready.body[0])
}

fn error(answer: &[Message]) -> Report {
    let errors: Vec<_> = answer.iter().filter(|message| message.tag == b'E').collect();
    assert_eq!(errors.len(), 1, "one error in {}", tags(answer));
    errors[0].report()
}

// A client that goes away.

#[tokio::test]
async fn trap_43_a_client_gone_amid_its_query_leaves_its_backend_to_the_next() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut first = client(&sidecar, &database).await;
    let backend = first.value("SELECT pg_backend_pid()").await;
    first.query("SELECT pg_sleep(60)").await;
    until_backends(&database, "wait_event = 'PgSleep'", 1).await;
    drop(first);
    let mut second = client(&sidecar, &database).await;
    assert_eq!(second.value("SELECT pg_backend_pid()").await, backend);
    until_backends(&database, "wait_event = 'PgSleep'", 0).await;
}

#[tokio::test]
async fn trap_91_a_half_closed_client_is_gone() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut first = client(&sidecar, &database).await;
    first.query("SELECT pg_sleep(60)").await;
    until_backends(&database, "wait_event = 'PgSleep'", 1).await;
    first.shutdown().await;
    until_backends(&database, "wait_event = 'PgSleep'", 0).await;
    assert_eq!(client(&sidecar, &database).await.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn trap_43_a_killed_psql_leaves_no_orphan() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut psql = crate::support::process::client_program("psql")
        .args(["-X", "-c", "SELECT pg_sleep(60)", &sidecar.url(&database)])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("psql starts");
    until_backends(&database, "wait_event = 'PgSleep'", 1).await;
    psql.kill().expect("it runs");
    psql.wait().expect("it was killed");
    until_backends(&database, "wait_event = 'PgSleep'", 0).await;
    assert_eq!(client(&sidecar, &database).await.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn trap_12_a_client_gone_from_the_line_frees_its_place() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut holder = client(&sidecar, &database).await;
    holder.ask("BEGIN").await;
    let mut waiter = client(&sidecar, &database).await;
    waiter.query("SELECT 1").await;
    let waiting = [("state", "waiting")];
    sidecar
        .wait_metric("pgsidecar_clients", &waiting, |count| count == 1.0)
        .await;
    // As PQfinish does it: words that nobody reads, then the end.
    waiter.send(&terminate()).await;
    drop(waiter);
    sidecar
        .wait_metric("pgsidecar_clients", &waiting, |count| count == 0.0)
        .await;
    assert_eq!(tags(&holder.ask("COMMIT").await), "CZ");
}

#[tokio::test]
async fn trap_42_settings_of_a_vanished_transaction_are_rolled_back_for_whoever_comes() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut first = client(&sidecar, &database).await;
    first.ask("BEGIN").await;
    first.ask("SET TimeZone = 'Asia/Shanghai'").await;
    drop(first);
    let mut second = RawClient::connect(sidecar.port).await;
    let startup = [("database", database.name.as_str()), ("TimeZone", "Asia/Shanghai")];
    second.log_in(USER, PASSWORD, &startup).await.expect("the zone exists");
    assert_eq!(second.value("SHOW TimeZone").await, "Asia/Shanghai");
    drop(second);
    assert_ne!(
        client(&sidecar, &database).await.value("SHOW TimeZone").await,
        "Asia/Shanghai"
    );
}

#[tokio::test]
async fn trap_42_a_setting_said_and_not_yet_synced_reaches_no_one() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut first = client(&sidecar, &database).await;
    let set = [
        parse("", "SET TimeZone = 'Asia/Shanghai'"),
        bind("", "", &[]),
        execute("", 0),
        flush(),
    ];
    first.send(&together(&set)).await;
    first.expect("1 2 C").await;
    drop(first);
    assert_ne!(
        client(&sidecar, &database).await.value("SHOW TimeZone").await,
        "Asia/Shanghai"
    );
}

#[tokio::test]
async fn trap_42_a_group_that_was_never_synced_is_rolled_back() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut first = client(&sidecar, &database).await;
    first.ask("CREATE TABLE filled (x int)").await;
    let backend = first.value("SELECT pg_backend_pid()").await;
    let insert = [
        parse("", "INSERT INTO filled VALUES (1)"),
        bind("", "", &[]),
        execute("", 0),
        flush(),
    ];
    for parting in [terminate(), bytes::BytesMut::new()] {
        let mut leaving = client(&sidecar, &database).await;
        leaving.send(&together(&insert)).await;
        leaving.expect("1 2 C").await;
        leaving.send(&parting).await;
        drop(leaving);
        assert_eq!(
            first.value("SELECT count(*) FROM filled").await,
            "0",
            "the same as without a pooler"
        );
        assert_eq!(
            first.value("SELECT pg_backend_pid()").await,
            backend,
            "and the backend is kept"
        );
    }
}

#[tokio::test]
async fn trap_51_a_client_gone_amid_copy_in_leaves_no_row_and_no_copy() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut first = client(&sidecar, &database).await;
    first.ask("CREATE TABLE filled (x int)").await;
    let backend = first.value("SELECT pg_backend_pid()").await;
    first.query("COPY filled FROM STDIN").await;
    first.expect("G").await;
    first.send(&copy_data(b"1\n2\n")).await;
    drop(first);
    let mut second = client(&sidecar, &database).await;
    assert_eq!(second.value("SELECT count(*) FROM filled").await, "0");
    assert_eq!(second.value("SELECT pg_backend_pid()").await, backend);
}

#[tokio::test]
async fn trap_51_the_same_in_the_extended_protocol() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut first = client(&sidecar, &database).await;
    first.ask("CREATE TABLE filled (x int)").await;
    let backend = first.value("SELECT pg_backend_pid()").await;
    first.send(&extended_copy()).await;
    first.expect("1 2 G").await;
    first.send(&copy_data(b"1\n2\n")).await;
    drop(first);
    let mut second = client(&sidecar, &database).await;
    assert_eq!(second.value("SELECT count(*) FROM filled").await, "0");
    assert_eq!(second.value("SELECT pg_backend_pid()").await, backend);
}

#[tokio::test]
async fn trap_42_a_client_gone_amid_a_message_costs_its_backend() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut first = client(&sidecar, &database).await;
    first.ask("CREATE TABLE filled (x int)").await;
    let backend = first.value("SELECT pg_backend_pid()").await;
    first.query("COPY filled FROM STDIN").await;
    first.expect("G").await;
    let row = copy_data(&[b'1'; 100_000]);
    first.send(&row[..50_000]).await;
    until_backends(&database, "wait_event = 'ClientRead' AND state = 'active'", 1).await;
    drop(first);
    let mut second = client(&sidecar, &database).await;
    assert_ne!(second.value("SELECT pg_backend_pid()").await, backend);
    assert_eq!(second.value("SELECT count(*) FROM filled").await, "0");
    until_backends(&database, "state = 'active'", 0).await;
}

#[tokio::test]
async fn trap_43_what_runs_ahead_of_half_a_message_is_cancelled() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut first = client(&sidecar, &database).await;
    first.query("SELECT pg_sleep(60)").await;
    until_backends(&database, "wait_event = 'PgSleep'", 1).await;
    // A Bind of 100 kB passes as it comes.
    let large = bind("", "nosuch", &["x".repeat(100_000).as_str()]);
    first.send(&large[..50_000]).await;
    drop(first);
    until_backends(&database, "wait_event = 'PgSleep'", 0).await;
    assert_eq!(client(&sidecar, &database).await.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn trap_45_a_client_that_reads_nothing_is_dropped_after_its_deadline() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .set("LIMITS__CLIENT_WRITE_TIMEOUT", "300ms")
        .start_ready()
        .await;
    let mut slow = client(&sidecar, &database).await;
    slow.query("SELECT repeat('x', 1000000) FROM generate_series(1, 1000)")
        .await;
    sidecar.wait_for_log("client_write_timeout").await;
    let mut next = client(&sidecar, &database).await;
    assert_eq!(next.value("SELECT 1").await, "1");
    until_backends(&database, "state = 'active'", 0).await;
}

#[tokio::test]
async fn trap_44_a_slow_client_keeps_its_backend_and_no_memory() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut slow = client(&sidecar, &database).await;
    slow.query("SELECT repeat('x', 1000000) FROM generate_series(1, 100)")
        .await;
    // PostgreSQL is stopped by back-pressure: it waits to write.
    until_backends(&database, "wait_event = 'ClientWrite'", 1).await;
    let id = sidecar.process_id().expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let resident: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().split(' ').next()?.parse().ok())
        .expect("the kernel tells");
    assert!(resident < 64 * 1024, "{resident} kB");
    let rows = slow.until_ready().await;
    assert_eq!(rows.iter().filter(|message| message.tag == b'D').count(), 100);
}

/// Answers of ours are memory too: whoever does not read them is not read from.
#[tokio::test]
async fn syncs_whose_answers_nobody_reads_are_not_taken_without_end() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = RawClient::connect_unix(&sidecar.socket()).await;
    client
        .log_in(USER, PASSWORD, &[("database", &database.name)])
        .await
        .expect("the login succeeds");
    client.ask("BEGIN").await;
    let syncs = together(&vec![sync(); 10_000]);
    let mut taken = 0;
    while taken < 100
        && tokio::time::timeout(std::time::Duration::from_secs(2), client.send(&syncs))
            .await
            .is_ok()
    {
        taken += 1;
    }
    assert!(taken < 100, "{} Syncs were taken", taken * 10_000);
}

/// It must not wait for bytes of a function's number that will never come, and read all that follows into memory.
#[tokio::test]
async fn a_function_call_without_a_function_is_answered_as_postgresql_does() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    for port in [database.port, sidecar.port] {
        let mut client = RawClient::login(port, USER, PASSWORD, &database.name).await;
        client.send(b"F\0\0\0\x04").await;
        assert_eq!(client.expect("E Z").await[0].sqlstate(), "08P01");
        client.send(b"F\0\0\0\x07\0\0\0").await;
        assert_eq!(client.expect("E Z").await[0].sqlstate(), "08P01");
        assert_eq!(client.value("SELECT 1").await, "1");
    }
}

// A backend that dies.

#[tokio::test]
async fn trap_75_a_backend_terminated_while_idle_is_not_noticed() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = client(&sidecar, &database).await;
    for round in ["1", "2", "3"] {
        assert_eq!(client.value(&format!("SELECT {round}")).await, round);
        terminate_backends(&database);
    }
    let mut prepared = [parse("s", "SELECT 4"), bind("", "s", &[]), execute("", 0), sync()];
    client.send(&together(&prepared)).await;
    client.expect("1 2 D C Z").await;
    terminate_backends(&database);
    prepared[0].clear();
    client.send(&together(&prepared)).await;
    client.expect("2 D C Z").await;
}

#[tokio::test]
async fn trap_76_a_backend_terminated_amid_a_query_is_one_error_in_its_own_words() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = client(&sidecar, &database).await;
    client.query("SELECT pg_sleep(60)").await;
    until_backends(&database, "wait_event = 'PgSleep'", 1).await;
    terminate_backends(&database);
    let answer = client.until_ready().await;
    let report = error(&answer);
    assert_eq!((report.sqlstate.as_str(), status(&answer)), ("57P01", 'I'));
    assert_eq!(report.severity, pgsidecar::wire::Severity::Error);
    assert_eq!(client.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn trap_19_the_same_in_the_extended_protocol_up_to_each_sync() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = client(&sidecar, &database).await;
    let sleep = [parse("", "SELECT pg_sleep(60)"), bind("", "", &[]), execute("", 0)];
    client.send(&together(&sleep)).await;
    client.send(&flush()).await;
    until_backends(&database, "wait_event = 'PgSleep'", 1).await;
    terminate_backends(&database);
    let answer = client.expect("1 2 E").await;
    assert_eq!(answer[2].sqlstate(), "57P01");
    // The rest of the group is thrown away; one ReadyForQuery ends it.
    client
        .send(&together(&[
            parse("", "SELECT 1"),
            bind("", "", &[]),
            execute("", 0),
            sync(),
        ]))
        .await;
    client.expect("Z").await;
    assert_eq!(client.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn trap_38_a_transaction_lost_amid_a_query_is_failed_until_it_is_ended() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    for ending in ["ROLLBACK", "COMMIT", "ABORT", "END"] {
        let mut client = client(&sidecar, &database).await;
        client.ask("BEGIN").await;
        client.query("SELECT pg_sleep(60)").await;
        until_backends(&database, "wait_event = 'PgSleep'", 1).await;
        terminate_backends(&database);
        let answer = client.until_ready().await;
        assert_eq!((error(&answer).sqlstate.as_str(), status(&answer)), ("57P01", 'E'));
        for _ in 0..2 {
            let answer = client.ask("SELECT 1").await;
            assert_eq!((error(&answer).sqlstate.as_str(), status(&answer)), ("25P02", 'E'));
        }
        let answer = client.ask("").await;
        assert_eq!((tags(&answer).as_str(), status(&answer)), ("IZ", 'E'));
        let answer = client.ask(ending).await;
        assert_eq!((answer[0].command().as_str(), status(&answer)), ("ROLLBACK", 'I'));
        assert_eq!(client.value("SELECT 1").await, "1");
    }
}

#[tokio::test]
async fn trap_38_the_same_in_the_extended_protocol() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = client(&sidecar, &database).await;
    let say = |name: &str, sql: &str| {
        together(&[
            parse(name, sql),
            bind("", name, &[]),
            describe('P', ""),
            execute("", 0),
            sync(),
        ])
    };
    client.send(&together(&[parse("end", "COMMIT"), sync()])).await;
    client.until_ready().await;
    for named in [false, true] {
        client.send(&say("", "BEGIN")).await;
        assert_eq!(status(&client.until_ready().await), 'T');
        client.send(&say("", "SELECT pg_sleep(60)")).await;
        until_backends(&database, "wait_event = 'PgSleep'", 1).await;
        terminate_backends(&database);
        let answer = client.until_ready().await;
        assert_eq!((error(&answer).sqlstate.as_str(), status(&answer)), ("57P01", 'E'));
        client.send(&say("", "SELECT 1")).await;
        let answer = client.until_ready().await;
        assert_eq!((tags(&answer).as_str(), status(&answer)), ("EZ", 'E'));
        assert_eq!(answer[0].sqlstate(), "25P02");
        if named {
            let end = [describe('S', "end"), bind("", "end", &[]), execute("", 0), sync()];
            client.send(&together(&end)).await;
            let answer = client.expect("t n 2 C Z").await;
            assert_eq!((answer[3].command().as_str(), status(&answer)), ("ROLLBACK", 'I'));
        } else {
            client.send(&say("", "ROLLBACK")).await;
            let answer = client.expect("1 2 n C Z").await;
            assert_eq!((answer[3].command().as_str(), status(&answer)), ("ROLLBACK", 'I'));
        }
    }
    assert_eq!(client.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn a_transaction_lost_while_its_client_was_silent_is_told_by_the_next_statement() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = client(&sidecar, &database).await;
    client.ask("CREATE TABLE kept (x int)").await;
    for next in ["SELECT 1", "COMMIT", "ROLLBACK"] {
        client.ask("BEGIN").await;
        client.ask("INSERT INTO kept VALUES (1)").await;
        terminate_backends(&database);
        let answer = client.ask(next).await;
        match next {
            "SELECT 1" => {
                assert_eq!((error(&answer).sqlstate.as_str(), status(&answer)), ("57P01", 'E'));
                assert_eq!(client.ask("COMMIT").await[0].command(), "ROLLBACK");
            }
            // A COMMIT that looked like a success would be a lie.
            "COMMIT" => assert_eq!((error(&answer).sqlstate.as_str(), status(&answer)), ("57P01", 'I')),
            _ => assert_eq!((answer[0].command().as_str(), status(&answer)), ("ROLLBACK", 'I')),
        }
        assert_eq!(client.value("SELECT count(*) FROM kept").await, "0");
    }
}

#[tokio::test]
async fn trap_14_a_group_that_has_its_error_is_told_no_second_one() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = client(&sidecar, &database).await;
    client.send(&together(&[parse("", "SELECT nothing"), flush()])).await;
    assert_eq!(client.expect("E").await[0].sqlstate(), "42703");
    terminate_backends(&database);
    client.send(&together(&[bind("", "", &[]), execute("", 0)])).await;
    client.send(&sync()).await;
    client.expect("Z").await;
    assert_eq!(client.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn trap_49_late_copy_data_of_any_length_is_dropped_in_a_lost_transaction() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = client(&sidecar, &database).await;
    client.ask("CREATE TABLE kept (x text)").await;
    client.ask("BEGIN").await;
    client.query("COPY kept FROM STDIN").await;
    client.expect("G").await;
    terminate_backends(&database);
    let answer = client.until_ready().await;
    assert_eq!((error(&answer).sqlstate.as_str(), status(&answer)), ("57P01", 'E'));
    let late = vec![b'x'; 2 << 20];
    client.send(&together(&[copy_data(&late), copy_data(b"y\n")])).await;
    client.send(b"c\0\0\0\x04").await;
    let answer = client.ask("ROLLBACK").await;
    assert_eq!((answer[0].command().as_str(), status(&answer)), ("ROLLBACK", 'I'));
}

#[tokio::test]
async fn what_a_client_prepares_in_a_lost_transaction_is_bounded() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .set("LIMITS__CLIENT_STATEMENT_BYTES", "100000")
        .start_ready()
        .await;
    let mut client = client(&sidecar, &database).await;
    client.ask("BEGIN").await;
    terminate_backends(&database);
    assert_eq!(error(&client.ask("SELECT 1").await).sqlstate.as_str(), "57P01");
    let text = format!("/*{}*/ ROLLBACK", "x".repeat(20_000));
    let mut accepted = 0;
    for number in 0..20 {
        client
            .send(&together(&[parse(&format!("s{number}"), &text), sync()]))
            .await;
        accepted += u32::from(client.until_ready().await[0].tag == b'1');
    }
    assert_eq!(accepted, 4);
}

#[tokio::test]
async fn a_client_whose_backend_held_what_cant_be_made_again_is_closed() {
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut amid = client(&sidecar, &database).await;
    amid.ask("SET idle_session_timeout = '7h'").await;
    amid.query("SELECT pg_sleep(60)").await;
    until_backends(&database, "wait_event = 'PgSleep'", 1).await;
    terminate_backends(&database);
    let end = amid.until_closed().await;
    let report = error(&end);
    assert_eq!(
        (report.sqlstate.as_str(), report.severity),
        ("57P01", pgsidecar::wire::Severity::Fatal)
    );
    let mut idle = client(&sidecar, &database).await;
    idle.ask("CREATE TEMP TABLE mine (x int)").await;
    terminate_backends(&database);
    assert_eq!(error(&idle.until_closed().await).sqlstate.as_str(), "57P01");
    assert_eq!(client(&sidecar, &database).await.value("SELECT 1").await, "1");
}

/// The end may be the answer to a question of ours.
#[tokio::test]
async fn a_client_is_told_why_its_backend_ended_when_that_was_asked_what_pins_it() {
    let fake = FakeBackend::start(|mut session| async move {
        session.login().await?;
        session.until_query("CREATE TEMP TABLE").await?;
        session.complete("CREATE TABLE", TransactionStatus::Idle).await?;
        session.until_query("pg_my_temp_schema").await?;
        let report = Report::fatal(SqlState::ADMIN_SHUTDOWN, "terminating connection");
        session.report(&report).await
    })
    .await;
    let sidecar = fake.sidecar().start().await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, "fake").await;
    client.ask("CREATE TEMP TABLE mine (x int)").await;
    assert_eq!(error(&client.until_closed().await).sqlstate, SqlState::ADMIN_SHUTDOWN);
}

#[tokio::test]
async fn in_session_mode_a_lost_backend_closes_its_client() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MODE", "session")
        .start_ready()
        .await;
    let mut client = client(&sidecar, &database).await;
    client.ask("SELECT 1").await;
    terminate_backends(&database);
    assert_eq!(error(&client.until_closed().await).sqlstate.as_str(), "57P01");
}

// What PostgreSQL won't do on request.

/// Its cancel strikes before PostgreSQL has come to the Sync that stands behind the Execute: that ends the skip then, though a
/// COPY passes over it.
#[tokio::test]
async fn trap_51_a_sync_that_a_cancelled_copy_never_read_owes_a_ready_for_query() {
    let fake = FakeBackend::start(|mut session| async move {
        session.login().await?;
        if session.number > 0 {
            return session.serve().await;
        }
        while session.message().await?.tag == b'Q' {
            session.complete("SET", TransactionStatus::Idle).await?;
        }
        session.until(b'E').await?;
        session.send(b"1\0\0\0\x042\0\0\0\x04G\0\0\0\x07\0\0\0").await?;
        session.until(b'f').await?;
        let cancelled = Report::error(SqlState::QUERY_CANCELED, "canceling statement due to user request");
        session.report(&cancelled).await?;
        session.send(b"Z\0\0\0\x05I").await?;
        loop {
            let message = session.message().await?;
            match message.tag {
                b'E' => {
                    let portal = message.body.split(|&byte| byte == 0).next().unwrap_or_default();
                    let unknown = format!("portal \"{}\" does not exist", String::from_utf8_lossy(portal));
                    let code = SqlState::from_bytes(b"34000").expect("a code");
                    session.report(&Report::error(code, unknown)).await?;
                    session.until(b'S').await?;
                    session.send(b"Z\0\0\0\x05I").await?;
                }
                b'S' => session.send(b"Z\0\0\0\x05I").await?,
                // It is over, and cleaned.
                _ => {
                    return session
                        .complete("SET", TransactionStatus::Idle)
                        .await
                        .and(session.serve().await);
                }
            }
        }
    })
    .await;
    let sidecar = fake.sidecar().set("POOL__MAX_SIZE", "1").start().await;
    let mut first = RawClient::login(sidecar.port, USER, PASSWORD, "fake").await;
    first.send(&extended_copy()).await;
    first.expect("1 2 G").await;
    drop(first);
    let mut second = RawClient::login(sidecar.port, USER, PASSWORD, "fake").await;
    assert_eq!(second.value("SELECT 1").await, "ok");
    assert_eq!(fake.sessions().len(), 1, "the backend is kept: {:?}", fake.tags());
}

/// The client waits for no answer to what pgsidecar asks for itself.
#[tokio::test]
async fn a_backend_that_stalls_over_the_catalog_holds_nobody_up() {
    let fake = FakeBackend::start(|mut session| async move {
        session.login().await?;
        if session.number > 0 {
            return session.serve().await;
        }
        session.until_query("CREATE FUNCTION").await?;
        session.complete("CREATE FUNCTION", TransactionStatus::Idle).await?;
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
    client
        .ask("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        .await;
    assert_eq!(client.value("SELECT 1").await, "ok");
}

#[tokio::test]
async fn a_reply_cut_inside_a_message_closes_the_client() {
    let fake = FakeBackend::start(|mut session| async move {
        session.login().await?;
        session.until_query("rows").await?;
        // A DataRow of 100 bytes of which 10 come.
        session.send(b"D\0\0\0\x68\0\x01\0\0\0\x5aabcd").await
    })
    .await;
    let sidecar = fake.sidecar().start().await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, "fake").await;
    client.query("SELECT rows").await;
    let mut rest = Vec::new();
    let stream = client.into_stream();
    tokio::time::timeout(crate::support::DEADLINE, stream.take(1000).read_to_end(&mut rest))
        .await
        .expect("it is closed")
        .ok();
    assert!(b"D\0\0\0\x68\0\x01\0\0\0\x5aabcd".starts_with(&rest), "{rest:?}");
}

/// A fake whose backends close without a word when they are sent this; each Query before is answered as usual.
async fn closing_at(part: &'static str) -> FakeBackend {
    FakeBackend::start(move |mut session| async move {
        session.login().await?;
        let mut status = TransactionStatus::Idle;
        loop {
            let message = session.message().await?;
            let text = String::from_utf8_lossy(&message.body).into_owned();
            if text.contains(part) {
                return Ok(());
            }
            if message.tag == b'Q' && text.starts_with("BEGIN") {
                status = TransactionStatus::InTransaction;
            } else if message.tag == b'Q' && text.starts_with("COMMIT") {
                status = TransactionStatus::Idle;
            }
            if message.tag == b'Q' {
                session.complete("OK", status).await?;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_commit_in_flight_is_08007_and_may_have_taken_effect() {
    for (before, at) in [
        (&["BEGIN", "INSERT INTO t VALUES (1)"][..], "COMMIT"),
        (&[], "INSERT INTO u VALUES (1)"),
        (&[], "WITH gone AS (DELETE FROM u RETURNING 1) SELECT 1"),
    ] {
        let fake = closing_at(at).await;
        let sidecar = fake.sidecar().start().await;
        let mut client = RawClient::login(sidecar.port, USER, PASSWORD, "fake").await;
        for sql in before {
            client.ask(sql).await;
        }
        let answer = client.ask(at).await;
        let report = error(&answer);
        assert_eq!((report.sqlstate.as_str(), status(&answer)), ("08007", 'I'), "{at}");
        assert!(
            report
                .detail
                .is_some_and(|detail| detail.contains("may have taken effect"))
        );
        client.ask("BEGIN").await;
        let sent: Vec<_> = fake
            .sessions()
            .iter()
            .flat_map(|session| session.messages.clone())
            .collect();
        let times = sent
            .iter()
            .filter(|message| String::from_utf8_lossy(&message.body).contains(at))
            .count();
        assert_eq!(times, 1, "{at} is never sent twice");
    }
}

#[tokio::test]
async fn what_can_not_have_committed_is_08006() {
    for (before, at, after) in [
        (&["BEGIN"][..], "INSERT INTO t VALUES (1)", 'E'),
        (&["BEGIN"], "ROLLBACK", 'I'),
        (&[], "SELECT 1", 'I'),
    ] {
        let fake = closing_at(at).await;
        let sidecar = fake.sidecar().start().await;
        let mut client = RawClient::login(sidecar.port, USER, PASSWORD, "fake").await;
        for sql in before {
            client.ask(sql).await;
        }
        let answer = client.ask(at).await;
        assert_eq!(
            (error(&answer).sqlstate.as_str(), status(&answer)),
            ("08006", after),
            "{at}"
        );
    }
}

#[tokio::test]
async fn a_commit_behind_another_reply_is_still_at_risk() {
    let fake = closing_at("second").await;
    let sidecar = fake.sidecar().start().await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, "fake").await;
    client
        .send(&together(&[
            query("INSERT INTO first VALUES (1)"),
            query("INSERT INTO second VALUES (1)"),
        ]))
        .await;
    client.until_ready().await;
    let answer = client.until_ready().await;
    assert_eq!((error(&answer).sqlstate.as_str(), status(&answer)), ("08007", 'I'));
}

#[tokio::test]
async fn a_setting_that_no_backend_saw_goes_to_the_next() {
    // The first backend of each client is reset before anything is sent to it.
    let database = Postgres::shared().create_database();
    let sidecar = one_backend(&database).await;
    let mut client = client(&sidecar, &database).await;
    client.ask("SELECT 1").await;
    terminate_backends(&database);
    client.ask("SET work_mem = '7MB'").await;
    assert_eq!(client.value("SHOW work_mem").await, "7MB");
}

// A server that goes away.

#[tokio::test]
async fn trap_79_a_restart_is_not_noticed_by_idle_clients_and_waited_for_by_new_ones() {
    let cluster = Postgres::private(Version::Installed);
    let database = cluster.create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        let mut client = client(&sidecar, &database).await;
        assert_eq!(client.value("SELECT 1").await, "1");
        idle.push(client);
    }
    cluster.stop("fast");
    // It logs in while the database is down, and asks.
    let mut new = client(&sidecar, &database).await;
    new.query("SELECT 2").await;
    sidecar
        .wait_metric("pgsidecar_clients", &[("state", "waiting")], |waiting| waiting == 1.0)
        .await;
    cluster.start();
    assert_eq!(new.until_ready().await[1].row(), [Some("2".to_owned())]);
    for client in &mut idle {
        assert_eq!(client.value("SELECT 3").await, "3");
    }
}

#[tokio::test]
async fn trap_75_a_crash_is_told_in_postgresqls_words_and_nothing_runs_twice() {
    let cluster = Postgres::private(Version::Installed);
    let database = cluster.create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut counting = client(&sidecar, &database).await;
    counting.ask("CREATE TABLE counted (x int)").await;
    let mut reading = client(&sidecar, &database).await;
    reading.query("SELECT pg_sleep(60)").await;
    let mut writing = client(&sidecar, &database).await;
    writing.query("INSERT INTO counted SELECT 1 FROM pg_sleep(60)").await;
    let mut inside = client(&sidecar, &database).await;
    inside.ask("BEGIN").await;
    inside.ask("INSERT INTO counted VALUES (2)").await;
    inside.query("SELECT pg_sleep(60)").await;
    let sleepers = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    eventually("three sleep", async || {
        (cluster.psql("postgres", sleepers) == "3").then_some(())
    })
    .await;
    let victim: i32 = counting.value("SELECT pg_backend_pid()").await.parse().unwrap();
    counting.ask("SELECT 1").await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(victim), nix::sys::signal::Signal::SIGKILL).unwrap();
    let answer = reading.until_ready().await;
    assert_eq!((error(&answer).sqlstate.as_str(), status(&answer)), ("57P02", 'I'));
    let answer = writing.until_ready().await;
    assert_eq!((error(&answer).sqlstate.as_str(), status(&answer)), ("08007", 'I'));
    let answer = inside.until_ready().await;
    assert_eq!((error(&answer).sqlstate.as_str(), status(&answer)), ("57P02", 'E'));
    assert_eq!(inside.ask("COMMIT").await[0].command(), "ROLLBACK");
    for client in [&mut counting, &mut reading, &mut writing, &mut inside] {
        assert_eq!(client.value("SELECT count(*) FROM counted").await, "0");
    }
}
