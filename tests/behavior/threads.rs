//! Several threads serve clients at once: what holds on one thread holds on four.

use nix::sys::signal::Signal;
use tokio::task::{JoinSet, LocalSet};

use crate::support::eventually;
use crate::support::postgres::{Database, PASSWORD, Postgres, USER};
use crate::support::raw_client::{Message, RawClient, bind, cancel, execute, parse, query, sync, tags, together};
use crate::support::sidecar::{Builder, Sidecar};

fn on_four_threads(database: &Database) -> Builder {
    Sidecar::builder(database).own_threads().set("RUNTIME__THREADS", "4")
}

async fn client_of(port: u16, database: &str, name: &str) -> RawClient {
    let mut client = RawClient::connect(port).await;
    let parameters = [("database", database), ("application_name", name)];
    client.log_in(USER, PASSWORD, &parameters).await.unwrap();
    client
}

fn rows(answer: &[Message]) -> Vec<String> {
    let rows = answer.iter().filter(|message| message.tag == b'D');
    rows.flat_map(|message| message.row().into_iter().flatten()).collect()
}

/// Runs `clients` at once, each with its number, and waits for all.
async fn all_at_once<F: Future<Output = ()> + 'static>(clients: usize, each: impl Fn(usize) -> F) {
    let everyone = async {
        let mut running = JoinSet::new();
        for number in 0..clients {
            running.spawn_local(each(number));
        }
        while let Some(ended) = running.join_next().await {
            ended.unwrap();
        }
    };
    LocalSet::new().run_until(everyone).await;
}

#[tokio::test]
async fn pipelines_of_many_clients_are_answered_each_in_its_own_order_and_under_its_own_settings() {
    let database = Postgres::shared().create_database();
    let sidecar = on_four_threads(&database)
        .set("POOL__MAX_SIZE", "4")
        .start_ready()
        .await;
    let port = sidecar.port;
    all_at_once(24, |number| {
        let database = database.name.clone();
        async move {
            let name = format!("client {number}");
            let mut client = client_of(port, &database, &name).await;
            client
                .send(&together(&[
                    parse("s", "SELECT current_setting('application_name') || ' ' || $1"),
                    sync(),
                ]))
                .await;
            client.expect("1 Z").await;
            for round in 0..20 {
                let (one, two) = (format!("{round} a"), format!("{round} b"));
                client
                    .send(&together(&[
                        bind("", "s", &[&one]),
                        execute("", 0),
                        sync(),
                        query("SELECT no_such_column"),
                        bind("", "s", &[&two]),
                        execute("", 0),
                        sync(),
                    ]))
                    .await;
                let answers = client.expect("2 D C Z E Z 2 D C Z").await;
                assert_eq!(rows(&answers), [format!("{name} {one}"), format!("{name} {two}")]);
                assert_eq!(answers[4].sqlstate(), "42703");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_pool_that_is_too_small_serves_everyone_and_no_transaction_meets_another() {
    let database = Postgres::shared().create_database();
    Postgres::shared().psql(
        &database.name,
        "CREATE TABLE counter (n int); INSERT INTO counter VALUES (0); GRANT ALL ON counter TO PUBLIC",
    );
    let sidecar = on_four_threads(&database)
        .set("POOL__MAX_SIZE", "2")
        .start_ready()
        .await;
    let port = sidecar.port;
    all_at_once(30, |number| {
        let database = database.name.clone();
        async move {
            let mut client = client_of(port, &database, &format!("c{number}")).await;
            for round in 0..10 {
                client.ask("BEGIN").await;
                client.value("UPDATE counter SET n = n + 1 RETURNING n").await;
                if round == 9 && number % 3 == 0 {
                    // It leaves inside its transaction, which counts for nothing.
                    return;
                }
                client.ask("COMMIT").await;
            }
        }
    })
    .await;
    let mut last = client_of(port, &database.name, "last").await;
    assert_eq!(last.value("SELECT n FROM counter").await, "290");
    let idle = [("state", "idle")];
    sidecar
        .wait_metric("pgsidecar_backends", &idle, |idle| (1.0..=2.0).contains(&idle))
        .await;
    assert_eq!(
        sidecar.metric("pgsidecar_backends", &[]).await,
        sidecar.metric("pgsidecar_backends", &idle).await
    );
}

#[tokio::test]
async fn trap_71_cancels_of_many_clients_hit_their_own_queries_only() {
    let database = Postgres::shared().create_database();
    let sidecar = on_four_threads(&database)
        .set("POOL__MAX_SIZE", "6")
        .start_ready()
        .await;
    let port = sidecar.port;
    all_at_once(8, |number| {
        let database = database.name.clone();
        async move {
            let name = format!("c{number}");
            let mut client = client_of(port, &database, &name).await;
            let key = client.cancel_key.clone().expect("BackendKeyData came");
            if number % 2 == 1 {
                for _ in 0..150 {
                    assert_eq!(client.value("SELECT 'served' FROM pg_sleep(0.002)").await, "served");
                }
                return;
            }
            let mut watcher = RawClient::login(Postgres::shared().port, USER, PASSWORD, &database).await;
            for round in 0..10 {
                let sleep = format!("SELECT pg_sleep(60), '{name} {round}'");
                client.query(&sleep).await;
                let watch = format!(
                    "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(60), ''{name} {round}''' \
                     AND pid <> pg_backend_pid()"
                );
                eventually("it sleeps", async || {
                    (watcher.value(&watch).await == "1").then_some(())
                })
                .await;
                cancel(port, &key).await;
                let answer = client.until_ready().await;
                let error = answer.iter().find(|message| message.tag == b'E').expect("an error");
                assert_eq!(error.sqlstate(), "57014");
                assert_eq!(client.value("SELECT 1").await, "1");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn trap_48_reloads_amid_traffic_disturb_nobody() {
    const HEAD: &str = "listen: 127.0.0.1:$PORT\nmetrics: {listen: '127.0.0.1:$METRICS_PORT'}\nruntime: {threads: 4}\n";
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .own_threads()
        .own_listen()
        .config(format!("{HEAD}pool: {{max_size: 2}}\n"))
        .start_ready()
        .await;
    let port = sidecar.port;
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let traffic = all_at_once(16, |number| {
        let (database, stopping) = (database.name.clone(), stopping.clone());
        async move {
            let name = format!("c{number}");
            let mut client = client_of(port, &database, &name).await;
            while !*stopping.borrow() {
                assert_eq!(tags(&client.ask("BEGIN").await), "CZ");
                assert_eq!(client.value("SHOW application_name").await, name);
                assert_eq!(tags(&client.ask("COMMIT").await), "CZ");
            }
        }
    });
    let reloads = async {
        for (round, size) in [5, 1, 3, 8, 2].into_iter().enumerate() {
            let text = format!("{HEAD}pool: {{max_size: {size}}}\n")
                .replace("$METRICS_PORT", &sidecar.metrics_port.to_string())
                .replace("$PORT", &port.to_string());
            std::fs::write(sidecar.socket_directory().join("config.yaml"), text).unwrap();
            sidecar.signal(Signal::SIGHUP);
            let reloaded = async || (sidecar.log().matches("reloaded").count() > round).then_some(());
            eventually("a reload", reloaded).await;
            let served = sidecar.metric("pgsidecar_transactions_total", &[]).await.unwrap_or(0.0);
            sidecar
                .wait_metric("pgsidecar_transactions_total", &[], |now| now > served + 20.0)
                .await;
        }
        stop.send_replace(true);
    };
    tokio::join!(traffic, reloads);
    sidecar
        .wait_metric("pgsidecar_backends", &[], |open| (1.0..=2.0).contains(&open))
        .await;
}

#[tokio::test]
async fn trap_90_a_drain_ends_every_busy_client_between_two_transactions() {
    let database = Postgres::shared().create_database();
    Postgres::shared().psql(&database.name, "CREATE TABLE done (n int); GRANT ALL ON done TO PUBLIC");
    let mut sidecar = on_four_threads(&database)
        .set("POOL__MAX_SIZE", "4")
        .set("DRAIN__MODE", "server")
        .set("DRAIN__DEADLINE", "60s")
        .start_ready()
        .await;
    let port = sidecar.port;
    let committed = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let traffic = all_at_once(16, |number| {
        let (database, committed) = (database.name.clone(), committed.clone());
        async move {
            let mut client = client_of(port, &database, &format!("c{number}")).await;
            loop {
                client
                    .send(&together(&[
                        query("BEGIN"),
                        query("INSERT INTO done VALUES (1)"),
                        query("COMMIT"),
                    ]))
                    .await;
                let answers = match ended_or(&mut client).await {
                    Ok(answers) => answers,
                    Err(sqlstate) => {
                        assert_eq!(sqlstate, "57P01");
                        return;
                    }
                };
                assert_eq!(tags(&answers), "CZCZCZ");
                committed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
    });
    let drain = async {
        sidecar
            .wait_metric("pgsidecar_transactions_total", &[], |now| now > 50.0)
            .await;
        sidecar.signal(Signal::SIGTERM);
        sidecar.wait_exit().await
    };
    let ((), status) = tokio::join!(traffic, drain);
    assert_eq!(status.code(), Some(0));
    let count = Postgres::shared().psql(&database.name, "SELECT count(*) FROM done");
    assert_eq!(count, committed.load(std::sync::atomic::Ordering::Relaxed).to_string());
}

/// The answers to three Querys; or, before the first of them, the code that the client was sent away with.
async fn ended_or(client: &mut RawClient) -> Result<Vec<Message>, String> {
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.extend(client.until_ready_or_end().await);
        match answers.last() {
            Some(last) if last.tag == b'Z' => {}
            Some(last) if answers.len() == 1 => return Err(last.sqlstate()),
            other => panic!("{other:?} amid a transaction"),
        }
    }
    Ok(answers)
}
