//! A cancel reaches exactly the query that its client runs.

use std::time::Duration;

use pgsidecar::wire::backend_message::TransactionStatus;
use pgsidecar::wire::startup_packet::CancelKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use crate::support::fake_backend::{DATABASE, FakeBackend};
use crate::support::postgres::{PASSWORD, Postgres, USER};
use crate::support::raw_client::{RawClient, bind, cancel, execute, parse, sync, together};
use crate::support::sidecar::Sidecar;
use crate::support::{eventually, postgres::Database};

async fn until_sleeping(database: &Database) {
    until_waiting(database, "PgSleep").await;
}

async fn until_waiting(database: &Database, wait_event: &str) {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND wait_event = '{wait_event}'",
        database.name
    );
    eventually(wait_event, async || {
        (Postgres::shared().psql("postgres", &sql) == "1").then_some(())
    })
    .await;
}

/// A query of the client's that runs until the returned connection is told to let go of it by [`let_it_end`].
async fn runs_until_told(client: &mut RawClient, database: &Database) -> RawClient {
    let mut holder = RawClient::login(database.port, USER, PASSWORD, &database.name).await;
    holder.value("SELECT pg_advisory_lock(1)").await;
    client.query("SELECT pg_advisory_xact_lock(1), 'undisturbed'").await;
    until_waiting(database, "advisory").await;
    holder
}

async fn let_it_end(mut holder: RawClient) {
    assert_eq!(holder.value("SELECT pg_advisory_unlock(1)").await, "t");
}

#[tokio::test]
async fn a_running_query_is_cancelled_and_the_session_goes_on() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let key = client.cancel_key.clone().expect("BackendKeyData came");
    client.query("SELECT pg_sleep(60)").await;
    until_sleeping(&database).await;
    cancel(sidecar.port, &key).await;
    let answer = client.until_ready().await;
    let error = answer.iter().find(|message| message.tag == b'E').expect("an error");
    assert_eq!(error.sqlstate(), "57014");
    assert_eq!(client.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn trap_72_a_queued_client_is_dequeued() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut holder = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    holder.ask("BEGIN").await;
    let mut queued = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    queued.query("SELECT 1").await;
    sidecar
        .wait_metric("pgsidecar_clients", &[("state", "waiting")], |waiting| waiting == 1.0)
        .await;
    cancel(sidecar.port, &queued.cancel_key.clone().expect("BackendKeyData came")).await;
    assert_eq!(queued.expect("E Z").await[0].sqlstate(), "57014");
    holder.ask("COMMIT").await;
    assert_eq!(queued.value("SELECT 2").await, "2");
}

#[tokio::test]
async fn trap_72_an_idle_client_is_told_nothing() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    cancel(sidecar.port, &client.cancel_key.clone().expect("BackendKeyData came")).await;
    assert!(client.silent_for(Duration::from_millis(50)).await);
    assert_eq!(client.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn trap_71_no_cancel_hits_the_next_owner_of_the_backend() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut first = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let mut second = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let key = first.cancel_key.clone().expect("BackendKeyData came");
    first.value("SELECT pg_backend_pid()").await;
    let running = runs_until_told(&mut second, &database).await;
    cancel(sidecar.port, &key).await;
    let_it_end(running).await;
    second.expect("T D C Z").await;
}

#[tokio::test]
async fn trap_74_a_wrong_key_cancels_nothing() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let key = client.cancel_key.clone().expect("BackendKeyData came");
    let running = runs_until_told(&mut client, &database).await;
    let wrong = key.secret.iter().map(|byte| !byte).collect();
    cancel(
        sidecar.port,
        &CancelKey {
            process_id: key.process_id,
            secret: wrong,
        },
    )
    .await;
    let_it_end(running).await;
    client.expect("T D C Z").await;
}

/// A fake whose first Query is answered when the test says so; every other one at once.
async fn fake_that_waits() -> (FakeBackend, watch::Sender<bool>) {
    let (go_on, waiting) = watch::channel(false);
    let fake = FakeBackend::start(move |mut session| {
        let mut waiting = waiting.clone();
        async move {
            session.login().await?;
            if session.number == 0 {
                session.until_query("slow").await?;
                let _ = waiting.wait_for(|go_on| *go_on).await;
                session.complete("SELECT 0", TransactionStatus::Idle).await?;
            }
            session.serve().await
        }
    })
    .await;
    (fake, go_on)
}

/// The second client's query waits behind a cancel whose connection the server keeps open.
async fn behind_a_held_cancel(sidecar: &Sidecar, fake: &FakeBackend, go_on: &watch::Sender<bool>) -> RawClient {
    let mut first = RawClient::login(sidecar.port, USER, PASSWORD, DATABASE).await;
    let mut second = RawClient::login(sidecar.port, USER, PASSWORD, DATABASE).await;
    let key = first.cancel_key.clone().expect("BackendKeyData came");
    first.query("SELECT slow").await;
    fake.wait_tags(0, "Q").await;
    fake.hold_cancels(true);
    let port = sidecar.port;
    tokio::spawn(async move { cancel(port, &key).await });
    assert_eq!(fake.wait_cancels(1).await[0].process_id, 1000);
    // The query ends before the cancel has struck.
    go_on.send_replace(true);
    first.expect("C Z").await;
    second.query("SELECT next").await;
    second
}

#[tokio::test]
async fn trap_71_the_next_owner_waits_until_the_cancel_has_landed() {
    let (fake, go_on) = fake_that_waits().await;
    let sidecar = fake.sidecar().set("POOL__MAX_SIZE", "1").start().await;
    let mut second = behind_a_held_cancel(&sidecar, &fake, &go_on).await;
    sidecar
        .wait_metric("pgsidecar_clients", &[("state", "waiting")], |waiting| waiting == 1.0)
        .await;
    assert!(
        !fake.sessions()[0]
            .messages
            .iter()
            .any(|message| message.body.starts_with(b"SELECT next"))
    );
    fake.hold_cancels(false);
    second.until_ready().await;
    assert_eq!(fake.sessions().len(), 1, "the backend was kept");
    sidecar
        .wait_metric("pgsidecar_cancels_total", &[("outcome", "forwarded")], |count| {
            count == 1.0
        })
        .await;
}

#[tokio::test]
async fn trap_73_a_cancel_that_does_not_land_in_time_costs_its_backend() {
    let (fake, go_on) = fake_that_waits().await;
    let sidecar = fake
        .sidecar()
        .set("POOL__MAX_SIZE", "1")
        .set("POOL__CANCEL_TIMEOUT", "300ms")
        .start()
        .await;
    let mut second = behind_a_held_cancel(&sidecar, &fake, &go_on).await;
    second.until_ready().await;
    let sessions = fake.sessions();
    let sent = |session: usize| {
        let messages = &sessions[session].messages;
        messages.iter().any(|message| message.body.starts_with(b"SELECT next"))
    };
    assert!(sent(1) && !sent(0), "{:?}", fake.tags());
}

#[tokio::test]
async fn trap_74_protocol_3_2_has_secrets_of_32_bytes_and_they_work() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::connect(sidecar.port).await;
    client
        .startup(
            pgsidecar::wire::PROTOCOL_3_2,
            &[("user", USER), ("database", &database.name)],
        )
        .await;
    client
        .authenticate(USER, PASSWORD)
        .await
        .expect("the password is right");
    let key = client.cancel_key.clone().expect("BackendKeyData came");
    assert_eq!(key.secret.len(), 32);
    assert!(key.process_id > 1 << 22, "no process has this number");
    client.query("SELECT pg_sleep(60)").await;
    until_sleeping(&database).await;
    let short = key.secret[..4].into();
    let process_id = key.process_id;
    cancel(
        sidecar.port,
        &CancelKey {
            process_id,
            secret: short,
        },
    )
    .await;
    sidecar
        .wait_metric("pgsidecar_cancels_total", &[("outcome", "unknown_key")], |count| {
            count == 1.0
        })
        .await;
    cancel(sidecar.port, &key).await;
    let answer = client.until_ready().await;
    assert_eq!(
        answer
            .iter()
            .find(|message| message.tag == b'E')
            .expect("an error")
            .sqlstate(),
        "57014"
    );
}

#[tokio::test]
async fn in_a_transaction_and_in_the_extended_protocol_a_cancel_fails_the_statement_only() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let key = client.cancel_key.clone().expect("BackendKeyData came");
    client.ask("BEGIN").await;
    let sleep = [
        parse("", "SELECT pg_sleep(60)"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ];
    client.send(&together(&sleep)).await;
    until_sleeping(&database).await;
    cancel(sidecar.port, &key).await;
    let answer = client.expect("1 2 E Z").await;
    assert_eq!(
        (answer[2].sqlstate().as_str(), answer[3].body.as_slice()),
        ("57014", &b"E"[..])
    );
    assert_eq!(client.ask("ROLLBACK").await[0].command(), "ROLLBACK");
}

// The tap needs a thread beside the one that waits for psql.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trap_73_a_cancel_travels_in_tls_where_its_session_does() {
    let database = Postgres::shared().create_database();
    let tap = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = tap.local_addr().unwrap().port();
    let first_words = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let (recorded, server) = (first_words.clone(), database.port);
    let tapping = tokio::spawn(async move {
        while let Ok((mut client, _)) = tap.accept().await {
            let recorded = recorded.clone();
            tokio::spawn(async move {
                let mut words = [0; 8];
                client.read_exact(&mut words).await?;
                recorded.lock().unwrap().push(words);
                let mut server = tokio::net::TcpStream::connect(("127.0.0.1", server)).await?;
                server.write_all(&words).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    let upstream = format!(
        "postgres://{USER}:{PASSWORD}@127.0.0.1:{port}/{}?sslmode=require",
        database.name
    );
    let sidecar = crate::support::sidecar::Builder::default()
        .upstream(upstream)
        .start_ready()
        .await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client.query("SELECT pg_sleep(60)").await;
    until_sleeping(&database).await;
    let before = first_words.lock().unwrap().len();
    cancel(sidecar.port, &client.cancel_key.clone().expect("BackendKeyData came")).await;
    client.until_ready().await;
    let words = first_words.lock().unwrap().clone();
    assert!(words.len() > before, "the cancel came by the tap");
    assert!(
        words.iter().all(|words| words == b"\0\0\0\x08\x04\xd2\x16\x2f"),
        "each began with SSLRequest: {words:?}"
    );
    tapping.abort();
}
