//! `pool.defer_begin`: a BEGIN that is answered at once and sent with what follows it, to the byte as PostgreSQL would answer,
//! and never with a statement run outside the block that its client believes to be in.

use std::time::Duration;

use bytes::BytesMut;
use nix::sys::signal::Signal;
use pgsidecar::wire::backend_message::TransactionStatus;
use pgsidecar::wire::{Report, SqlState};

use crate::support::fake_backend::{DATABASE, FakeBackend};
use crate::support::postgres::{Database, PASSWORD, Postgres, USER};
use crate::support::raw_client::{
    Message, RawClient, bind, cancel, close, describe, execute, parse, query, shown, sync, tags, together,
};
use crate::support::sidecar::{Builder, Sidecar};
use crate::support::slow_link::SlowLink;

fn deferring(database: &Database) -> Builder {
    Sidecar::builder(database)
        .set("POOL__DEFER_BEGIN", "on")
        .set("POOL__MAX_SIZE", "1")
}

async fn login(port: u16, database: &str) -> RawClient {
    RawClient::login(port, USER, PASSWORD, database).await
}

async fn asked(client: &mut RawClient, message: &BytesMut) -> Vec<Message> {
    client.send(message).await;
    client.until_ready().await
}

fn status_of(replies: &[Message]) -> char {
    char::from(replies.last().expect("ReadyForQuery").body[0])
}

fn sqlstates(replies: &[Message]) -> Vec<String> {
    let errors = replies.iter().filter(|message| message.tag == b'E');
    errors.map(Message::sqlstate).collect()
}

/// As psycopg 3 says everything.
fn group(sql: &str) -> BytesMut {
    together(&[
        parse("", sql),
        bind("", "", &[]),
        describe('P', ""),
        execute("", 0),
        sync(),
    ])
}

fn undescribed(sql: &str) -> BytesMut {
    together(&[parse("", sql), bind("", "", &[]), execute("", 0), sync()])
}

/// Each of these is said from status I, and leaves a transaction open.
fn deferrable() -> Vec<BytesMut> {
    vec![
        query("BEGIN"),
        query("begin;"),
        query(" BEGIN WORK ; "),
        query("START TRANSACTION"),
        query("start transaction isolation level repeatable read, read only"),
        query("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY DEFERRABLE"),
        group("BEGIN"),
        group("START TRANSACTION READ ONLY"),
        undescribed("BEGIN ISOLATION LEVEL REPEATABLE READ"),
    ]
}

/// What is said behind each.
fn followers() -> Vec<Vec<BytesMut>> {
    const TELL: &str = "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only'), \
                        current_setting('transaction_deferrable')";
    vec![
        vec![query(TELL), query("COMMIT")],
        vec![group(TELL), group("COMMIT")],
        vec![query("COMMIT")],
        vec![group("ROLLBACK")],
        vec![query("END"), query("SELECT 1")],
        vec![query("SELECT 1/0"), query("SELECT 1"), query("COMMIT")],
        vec![group("SELECT 1/0"), group("SELECT 1"), group("COMMIT")],
        vec![query("SELECT no syntax at"), query("ROLLBACK")],
        vec![query("BEGIN"), query("ROLLBACK")],
        vec![query(""), query("ROLLBACK")],
        vec![sync(), query("ROLLBACK")],
        vec![together(&[close('S', "none"), sync()]), query("ROLLBACK")],
        vec![
            query("SAVEPOINT a"),
            query("ROLLBACK TO a"),
            query("COMMIT AND CHAIN"),
            query("COMMIT"),
        ],
        vec![
            query("SET TimeZone TO 'UTC'"),
            query("SHOW TimeZone"),
            query("ROLLBACK"),
            query("SHOW TimeZone"),
        ],
        vec![
            query("SET LOCAL work_mem TO '7MB'"),
            query("SHOW work_mem"),
            query("COMMIT"),
            query("SHOW work_mem"),
        ],
        vec![
            query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"),
            query(TELL),
            query("COMMIT"),
        ],
        vec![query("SELECT 1; SELECT 2"), query("COMMIT")],
        vec![query("SELECT 1; COMMIT; SELECT 2"), query("SELECT 3")],
        vec![
            query("PREPARE a AS SELECT 1; EXECUTE a"),
            query("DEALLOCATE a"),
            query("COMMIT"),
        ],
        vec![query("DEALLOCATE none"), query("COMMIT"), query("SELECT 1")],
        vec![
            together(&[
                parse("named", "SELECT 5"),
                bind("", "named", &[]),
                execute("", 0),
                sync(),
            ]),
            together(&[bind("", "named", &[]), execute("", 0), sync()]),
            query("COMMIT"),
            together(&[close('S', "named"), sync()]),
        ],
        vec![
            together(&[bind("", "", &[]), execute("", 0), sync()]),
            query("ROLLBACK"),
        ],
        vec![together(&[group("SELECT 1"), query("SELECT 2"), group("COMMIT")])],
        vec![together(&[
            query("SELECT 1/0"),
            query("SELECT 2"),
            query("ROLLBACK"),
            query("SELECT 3"),
        ])],
        vec![together(&[
            group("SELECT 1/0"),
            group("SELECT 2"),
            query("ROLLBACK"),
            query("BEGIN"),
            query("COMMIT"),
        ])],
        vec![query("SELECT pg_advisory_xact_lock(1)"), query("COMMIT")],
        vec![query("LISTEN a"), query("COMMIT"), query("UNLISTEN *")],
    ]
}

/// Whatever is said at once, the replies up to each ReadyForQuery that is owed for it.
async fn converse(client: &mut RawClient, script: &[BytesMut]) -> Vec<Vec<Message>> {
    let mut replies = Vec::new();
    for said in script {
        client.send(said).await;
        let mut left = said.clone();
        while let Some(message) = Message::cut(&mut left).expect("messages") {
            if matches!(message.tag, b'Q' | b'S') {
                replies.push(client.until_ready().await);
            }
        }
    }
    replies
}

#[tokio::test]
async fn a_deferred_begin_and_what_follows_is_answered_to_the_byte_as_by_postgresql() {
    for cluster in [Postgres::shared(), Postgres::shared_18()] {
        let database = cluster.create_database();
        let sidecar = deferring(&database).start_ready().await;
        let begins = deferrable();
        // Each with each would say little more.
        let told_apart = followers().into_iter().enumerate().flat_map(|(index, follower)| {
            let chosen = [0, 1 + index % (begins.len() - 1)];
            chosen.map(|begin| [vec![begins[begin].clone()], follower.clone()].concat())
        });
        // The portal of a BEGIN lasts as long as its transaction.
        let portal = together(&[describe('P', ""), sync()]);
        let of_portals = begins
            .iter()
            .map(|begin| vec![begin.clone(), portal.clone(), query("ROLLBACK")]);
        let again = together(&[bind("", "", &[]), execute("", 0), sync()]);
        let of_statements = begins
            .iter()
            .map(|begin| vec![begin.clone(), again.clone(), query("ROLLBACK")]);
        for script in told_apart.chain(of_portals).chain(of_statements) {
            let mut direct = login(database.port, &database.name).await;
            let expected = converse(&mut direct, &script).await;
            let mut client = login(sidecar.port, &database.name).await;
            let mut other = login(sidecar.port, &database.name).await;
            other.ask("SET TimeZone TO 'Asia/Tokyo'").await;
            for round in ["first", "with a prelude"] {
                let told = format!("{round}: {}", String::from_utf8_lossy(&script.concat()));
                let replies = converse(&mut client, &script).await;
                for (one, other) in expected.iter().zip(&replies) {
                    assert_eq!(one, other, "{told}\ndirect {}\nthrough {}", shown(one), shown(other));
                }
                // Other settings are on the backend then.
                other.ask("SELECT 1").await;
            }
        }
    }
}

#[tokio::test]
async fn a_deferred_begin_takes_no_backend_and_other_texts_take_one() {
    let database = Postgres::shared().create_database();
    let sidecar = deferring(&database)
        .set("POOL__ACQUIRE_TIMEOUT", "100ms")
        .start_ready()
        .await;
    let mut holder = login(sidecar.port, &database.name).await;
    holder.ask("BEGIN").await;
    holder.ask("SELECT 1").await;
    for begin in deferrable() {
        let mut client = login(sidecar.port, &database.name).await;
        let replies = asked(&mut client, &begin).await;
        assert_eq!((sqlstates(&replies), status_of(&replies)), (vec![], 'T'), "{begin:?}");
    }
    for other in [
        query("BEGIN READ WRITE"),
        query("BEGIN ISOLATION LEVEL SERIALIZABLE"),
        query("BEGIN; SELECT 1"),
        query("BEGIN ISOLATION LEVEL bogus"),
        query("BEGIN /* why */"),
        query("COMMIT"),
        group("BEGIN READ WRITE"),
        together(&[parse("named", "BEGIN"), bind("", "named", &[]), execute("", 0), sync()]),
        together(&[
            parse("", "BEGIN"),
            bind("", "", &[]),
            execute("", 0),
            bind("", "", &[]),
            sync(),
        ]),
    ] {
        let mut client = login(sidecar.port, &database.name).await;
        let replies = asked(&mut client, &other).await;
        assert_eq!(
            (sqlstates(&replies), status_of(&replies)),
            (vec!["53300".to_owned()], 'I'),
            "{other:?}"
        );
    }
}

#[tokio::test]
async fn where_it_is_off_or_a_database_or_mode_says_so_a_begin_takes_a_backend() {
    let database = Postgres::shared().create_database();
    let on_for_this = format!("databases:\n  {}:\n    pool: {{defer_begin: on}}\n", database.name);
    let off_for_this = format!(
        "pool: {{defer_begin: on}}\ndatabases:\n  {}:\n    pool: {{defer_begin: off}}\n",
        database.name
    );
    for (config, mode, is_deferred) in [
        ("pool: {}\n", "transaction", false),
        ("pool: {defer_begin: on}\n", "transaction", true),
        ("pool: {defer_begin: on}\n", "session", false),
        (on_for_this.as_str(), "transaction", true),
        (off_for_this.as_str(), "transaction", false),
    ] {
        let sidecar = Sidecar::builder(&database)
            .config(config)
            .set("POOL__MODE", mode)
            .set("POOL__MAX_SIZE", "1")
            .set("POOL__ACQUIRE_TIMEOUT", "100ms")
            .start_ready()
            .await;
        let mut holder = login(sidecar.port, &database.name).await;
        holder.ask("BEGIN").await;
        holder.ask("SELECT 1").await;
        let mut client = login(sidecar.port, &database.name).await;
        let told = sqlstates(&client.ask("BEGIN").await);
        assert_eq!(told.is_empty(), is_deferred, "{config} {mode}: {told:?}");
    }
}

#[tokio::test]
async fn a_transaction_takes_a_round_trip_less() {
    let database = Postgres::shared().create_database();
    let link = SlowLink::to(database.port).await;
    let url = format!(
        "postgres://{USER}:{PASSWORD}@127.0.0.1:{}/{}?sslmode=disable",
        link.port, database.name
    );
    for (defer, sends) in [("off", 3), ("on", 2)] {
        let sidecar = Builder::default()
            .upstream(url.clone())
            .set("POOL__DEFER_BEGIN", defer)
            .set("POOL__MAX_SIZE", "1")
            .start_ready()
            .await;
        let mut client = login(sidecar.port, &database.name).await;
        let mut other = login(sidecar.port, &database.name).await;
        other.ask("SET work_mem TO '9MB'").await;
        for say in [query, group] {
            for has_prelude in [false, true] {
                let mut fewest = u64::MAX;
                for _ in 0..5 {
                    if has_prelude {
                        other.value("SELECT 1").await;
                    }
                    let before = link.sent();
                    for sql in ["BEGIN", "SELECT 1", "COMMIT"] {
                        let replies = asked(&mut client, &say(sql)).await;
                        assert_eq!(sqlstates(&replies), [""; 0]);
                    }
                    fewest = fewest.min(link.sent() - before);
                }
                assert_eq!(fewest, sends, "defer_begin {defer}, with a prelude: {has_prelude}");
            }
        }
    }
}

#[tokio::test]
async fn a_transaction_that_finds_no_backend_has_failed_until_it_is_ended() {
    let database = Postgres::shared().create_database();
    let sidecar = deferring(&database)
        .set("POOL__ACQUIRE_TIMEOUT", "100ms")
        .start_ready()
        .await;
    let mut holder = login(sidecar.port, &database.name).await;
    holder.ask("BEGIN").await;
    holder.ask("CREATE TABLE seen (number int)").await;
    for say in [query, group] {
        for end in ["ROLLBACK", "COMMIT"] {
            let mut client = login(sidecar.port, &database.name).await;
            asked(&mut client, &say("BEGIN")).await;
            let first = asked(&mut client, &say("INSERT INTO seen VALUES (1)")).await;
            assert_eq!((sqlstates(&first), status_of(&first)), (vec!["53300".to_owned()], 'E'));
            let second = asked(&mut client, &say("INSERT INTO seen VALUES (2)")).await;
            assert_eq!(
                (sqlstates(&second), status_of(&second)),
                (vec!["25P02".to_owned()], 'E')
            );
            let ended = asked(&mut client, &say(end)).await;
            let command = ended.iter().find(|message| message.tag == b'C').map(Message::command);
            assert_eq!((command.as_deref(), status_of(&ended)), (Some("ROLLBACK"), 'I'));
            // The next is deferred again.
            let again = asked(&mut client, &say("BEGIN")).await;
            assert_eq!((sqlstates(&again), status_of(&again)), (vec![], 'T'));
        }
    }
    let mut client = login(sidecar.port, &database.name).await;
    client.ask("BEGIN").await;
    let rolled_back = client.ask("ROLLBACK").await;
    assert_eq!(
        (tags(&rolled_back).as_str(), status_of(&rolled_back)),
        ("CZ", 'I'),
        "nothing was to be undone"
    );
    client.ask("BEGIN").await;
    let committed = client.ask("COMMIT").await;
    assert_eq!(
        (sqlstates(&committed), status_of(&committed)),
        (vec!["53300".to_owned()], 'I')
    );
    holder.ask("COMMIT").await;
    assert_eq!(client.value("SELECT count(*) FROM seen").await, "0");
}

/// What the script answers to each of our messages up to the end of the BEGIN.
async fn refusing_begin() -> FakeBackend {
    FakeBackend::start(|mut session| async move {
        session.login().await?;
        loop {
            let message = session.message().await?;
            match message.tag {
                b'E' if session.number == 0 => {
                    session
                        .report(&Report::error(
                            SqlState::from_bytes(b"25006").expect("a code"),
                            "not here, not now",
                        ))
                        .await?;
                    // PostgreSQL says nothing more up to a Sync.
                    while session.message().await?.tag != b'S' {}
                    session.send(b"Z\0\0\0\x05I").await?;
                }
                b'P' => session.send(b"1\0\0\0\x04").await?,
                b'B' => session.send(b"2\0\0\0\x04").await?,
                b'C' => session.send(b"3\0\0\0\x04").await?,
                b'Q' => session.complete("SELECT 1", TransactionStatus::Idle).await?,
                b'S' => session.send(b"Z\0\0\0\x05I").await?,
                b'X' => return Ok(()),
                _ => {}
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_refused_begin_is_told_with_the_first_statement_and_its_backend_is_closed() {
    for first in [
        query("INSERT INTO t VALUES (1)"),
        group("INSERT INTO t VALUES (1)"),
        query("PREPARE a AS SELECT 1; EXECUTE a"),
        together(&[group("INSERT INTO t VALUES (1)"), query("INSERT INTO t VALUES (2)")]),
        together(&[query("INSERT INTO t VALUES (1)"), query("INSERT INTO t VALUES (2)")]),
    ] {
        let fake = refusing_begin().await;
        let sidecar = fake
            .sidecar()
            .set("POOL__DEFER_BEGIN", "on")
            .set("POOL__MAX_SIZE", "1")
            .start()
            .await;
        let mut client = login(sidecar.port, DATABASE).await;
        client.ask("BEGIN").await;
        let is_two = first.ends_with(&query("INSERT INTO t VALUES (2)"));
        let told = asked(&mut client, &first).await;
        assert_eq!(
            (sqlstates(&told), status_of(&told)),
            (vec!["25006".to_owned()], 'E'),
            "{first:?}"
        );
        if is_two {
            let told = client.until_ready().await;
            assert_eq!(
                (sqlstates(&told), status_of(&told)),
                (vec!["25P02".to_owned()], 'E'),
                "{first:?}"
            );
        }
        // Nothing of the client's may stand behind a Sync that follows the BEGIN, and no Query before one would be read.
        let sent = &fake.sessions()[0];
        let behind = sent
            .tags()
            .rsplit_once('E')
            .map(|(_, behind)| behind.to_owned())
            .unwrap_or_default();
        let behind_sync = behind.split_once('S').map_or("", |(_, behind)| behind);
        assert!(!behind_sync.contains(['Q', 'P', 'B']), "{} of {first:?}", sent.tags());
        assert_eq!(sqlstates(&client.ask("SELECT 1").await), ["25P02"]);
        let ended = client.ask("ROLLBACK").await;
        assert_eq!((tags(&ended).as_str(), status_of(&ended)), ("CZ", 'I'));
        fake.wait_sessions(1).await;
        client.ask("SELECT 1").await;
        let ended =
            crate::support::eventually("the backend is closed", async || fake.sessions()[0].ended.then_some(()));
        ended.await;
    }
}

/// What the safety of a BEGIN that is sent together with a Query rests on.
#[tokio::test]
async fn postgresql_throws_a_query_away_behind_a_refused_begin_without_a_sync() {
    for cluster in [Postgres::shared(), Postgres::shared_18()] {
        let database = cluster.create_database();
        let mut direct = login(database.port, &database.name).await;
        direct.ask("CREATE TABLE seen (number int)").await;
        let refused = together(&[
            parse("", "BEGIN ISOLATION LEVEL bogus"),
            bind("", "", &[]),
            execute("", 0),
            query("INSERT INTO seen VALUES (1)"),
            query("COMMIT"),
            sync(),
        ]);
        assert_eq!(tags(&asked(&mut direct, &refused).await), "EZ");
        assert_eq!(direct.value("SELECT count(*) FROM seen").await, "0");
    }
}

#[tokio::test]
async fn settings_that_are_refused_behind_a_deferred_begin_fail_its_transaction() {
    let cluster = Postgres::shared();
    let database = cluster.create_database();
    let sidecar = deferring(&database).start_ready().await;
    let role = format!("{}_role", database.name);
    for (first, status) in [
        (query("CREATE TABLE seen ()"), 'E'),
        (group("CREATE TABLE seen ()"), 'E'),
        (query("COMMIT"), 'I'),
    ] {
        cluster.psql("postgres", &format!("CREATE ROLE {role}; GRANT {role} TO {USER}"));
        let mut client = login(sidecar.port, &database.name).await;
        client.ask(&format!("SET ROLE {role}")).await;
        let mut other = login(sidecar.port, &database.name).await;
        other.value("SELECT 1").await;
        cluster.psql("postgres", &format!("DROP ROLE {role}"));
        client.ask("BEGIN").await;
        let told = asked(&mut client, &first).await;
        assert_eq!(
            (sqlstates(&told).len(), status_of(&told)),
            (1, status),
            "{}",
            shown(&told)
        );
        if status == 'E' {
            assert_eq!(sqlstates(&client.ask("SELECT 1").await), ["25P02"]);
            let ended = client.ask("ROLLBACK").await;
            assert_eq!((tags(&ended).as_str(), status_of(&ended)), ("CZ", 'I'));
        }
        assert_eq!(other.value("SELECT to_regclass('seen') IS NULL").await, "t");
    }
}

#[tokio::test]
async fn a_backend_lost_under_the_first_statement_fails_the_transaction_and_an_idle_one_does_not() {
    let database = Postgres::shared().create_database();
    let sidecar = deferring(&database).start_ready().await;
    let mut client = login(sidecar.port, &database.name).await;
    client.ask("BEGIN").await;
    let ended = client.ask("SELECT pg_terminate_backend(pg_backend_pid())").await;
    assert_eq!((sqlstates(&ended), status_of(&ended)), (vec!["57P01".to_owned()], 'E'));
    assert_eq!(sqlstates(&client.ask("SELECT 1").await), ["25P02"]);
    assert_eq!(status_of(&client.ask("ROLLBACK").await), 'I');
    // Nothing was said to the next that dies: nobody is told.
    client.value("SELECT 1").await;
    client.ask("BEGIN").await;
    let kill = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{}'",
        database.name
    );
    Postgres::shared().psql("postgres", &kill);
    assert_eq!(client.value("SELECT 1").await, "1");
    assert_eq!(status_of(&client.ask("COMMIT").await), 'I');
}

#[tokio::test]
async fn a_client_that_leaves_behind_a_deferred_begin_or_amid_its_first_statement_leaves_nothing() {
    let database = Postgres::shared().create_database();
    let sidecar = deferring(&database).start_ready().await;
    for _ in 0..3 {
        let mut client = login(sidecar.port, &database.name).await;
        client.ask("BEGIN").await;
        drop(client);
        let mut client = login(sidecar.port, &database.name).await;
        client.ask("BEGIN").await;
        client.query("SELECT 1 FROM pg_sleep(0.2)").await;
        drop(client);
        let mut client = login(sidecar.port, &database.name).await;
        client.ask("BEGIN").await;
        client.send(&parse("", "SELECT 1")).await;
        drop(client);
        let mut other = login(sidecar.port, &database.name).await;
        assert_eq!(status_of(&other.ask("SELECT 1").await), 'I');
        assert_eq!(other.value("SELECT now() = statement_timestamp()").await, "t");
    }
}

#[tokio::test]
async fn idle_transaction_timeout_counts_from_a_deferred_begin() {
    let database = Postgres::shared().create_database();
    let sidecar = deferring(&database)
        .set("LIMITS__IDLE_TRANSACTION_TIMEOUT", "300ms")
        .start_ready()
        .await;
    for begin in [query("BEGIN"), group("BEGIN")] {
        let mut client = login(sidecar.port, &database.name).await;
        asked(&mut client, &begin).await;
        assert_eq!(client.until_closed().await[0].sqlstate(), "25P03");
    }
}

#[tokio::test]
async fn transaction_timeout_counts_from_a_deferred_begin() {
    let database = Postgres::shared().create_database();
    let sidecar = deferring(&database)
        .set("LIMITS__TRANSACTION_TIMEOUT", "300ms")
        .start_ready()
        .await;
    let mut client = login(sidecar.port, &database.name).await;
    client.ask("BEGIN").await;
    assert_eq!(sqlstates(&client.until_closed().await).len(), 1);
}

#[tokio::test]
async fn a_draining_server_lets_a_deferred_transaction_come_to_its_end() {
    let database = Postgres::shared().create_database();
    let mut sidecar = deferring(&database)
        .set("DRAIN__MODE", "server")
        .set("DRAIN__DEADLINE", "60s")
        .start_ready()
        .await;
    let mut client = login(sidecar.port, &database.name).await;
    client.ask("BEGIN").await;
    sidecar.signal(Signal::SIGTERM);
    sidecar.wait_for_log("drain").await;
    assert_eq!(client.value("SELECT 1").await, "1");
    client.query("COMMIT").await;
    let end = client.until_closed().await;
    assert_eq!(end[0].command(), "COMMIT");
    assert_eq!(end.last().map(Message::sqlstate).as_deref(), Some("57P01"));
    assert_eq!(sidecar.wait_exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_cancel_of_a_deferred_begin_cancels_nothing() {
    let database = Postgres::shared().create_database();
    let sidecar = deferring(&database).start_ready().await;
    let mut client = login(sidecar.port, &database.name).await;
    client.ask("BEGIN").await;
    let key = client.cancel_key.clone().expect("a key");
    cancel(sidecar.port, &key).await;
    assert!(client.silent_for(Duration::from_millis(100)).await);
    assert_eq!(client.value("SELECT 1").await, "1");
    assert_eq!(status_of(&client.ask("COMMIT").await), 'I');
}

#[tokio::test]
async fn a_deferred_transaction_is_counted_once() {
    let database = Postgres::shared().create_database();
    let sidecar = deferring(&database).start_ready().await;
    let mut client = login(sidecar.port, &database.name).await;
    client.value("SELECT 1").await;
    let all = async |sidecar: &Sidecar, name: &str| sidecar.metric(name, &[]).await.unwrap_or_default();
    sidecar
        .wait_metric("pgsidecar_transactions_total", &[], |count| count >= 1.0)
        .await;
    let before = (
        all(&sidecar, "pgsidecar_transactions_total").await,
        all(&sidecar, "pgsidecar_queries_total").await,
    );
    for sql in ["BEGIN", "SELECT 1", "COMMIT"] {
        client.ask(sql).await;
    }
    let queries = before.1 + 3.0;
    sidecar
        .wait_metric("pgsidecar_queries_total", &[], |count| count >= queries)
        .await;
    let after = (
        all(&sidecar, "pgsidecar_transactions_total").await,
        all(&sidecar, "pgsidecar_queries_total").await,
    );
    assert_eq!((after.0 - before.0, after.1 - before.1), (1.0, 3.0));
}
