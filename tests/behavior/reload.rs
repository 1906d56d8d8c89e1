//! SIGHUP: what can change, changes for everyone at once, and nobody is dropped.

use nix::sys::signal::Signal;
use pgsidecar::wire::SqlState;

use crate::support::certificates;
use crate::support::postgres::{Database, PASSWORD, Postgres, USER};
use crate::support::raw_client::RawClient;
use crate::support::sidecar::{Builder, Sidecar};

/// What every file here begins with.
const HEAD: &str = "listen: 127.0.0.1:$PORT\nmetrics: {listen: '127.0.0.1:$METRICS_PORT'}\n";

async fn start(database: &Database, yaml: &str) -> Sidecar {
    builder(database, yaml).start_ready().await
}

fn builder(database: &Database, yaml: &str) -> Builder {
    Sidecar::builder(database).own_listen().config(format!("{HEAD}{yaml}"))
}

/// Writes the file anew, sends SIGHUP and waits for what the log says of it.
async fn reload(sidecar: &Sidecar, yaml: &str) -> String {
    let text = format!("{HEAD}{yaml}")
        .replace("$METRICS_PORT", &sidecar.metrics_port.to_string())
        .replace("$PORT", &sidecar.port.to_string());
    std::fs::write(sidecar.socket_directory().join("config.yaml"), text).unwrap();
    let before = sidecar.log().lines().count();
    sidecar.signal(Signal::SIGHUP);
    crate::support::eventually("a line about the reload", async || {
        sidecar
            .log()
            .lines()
            .skip(before)
            .find(|line| line.contains("reload"))
            .map(str::to_owned)
    })
    .await
}

async fn login(sidecar: &Sidecar, database: &Database) -> RawClient {
    RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await
}

#[tokio::test]
async fn trap_48_pool_sizes_change_without_dropping_anyone() {
    let database = Postgres::shared().create_database();
    let sidecar = start(&database, "pool: {max_size: 1, min_idle: 1}\n").await;
    let mut holder = login(&sidecar, &database).await;
    holder.ask("BEGIN").await;
    let backend = holder.value("SELECT pg_backend_pid()").await;
    let mut waiter = login(&sidecar, &database).await;
    waiter.query("SELECT 'served'").await;
    sidecar
        .wait_metric("pgsidecar_clients", &[("state", "waiting")], |waiting| waiting == 1.0)
        .await;
    assert!(
        reload(&sidecar, "pool: {max_size: 3, min_idle: 2}\n")
            .await
            .contains("reloaded")
    );
    // The line moves on at once.
    assert_eq!(waiter.until_ready().await[1].row(), [Some("served".to_owned())]);
    assert_eq!(holder.value("SELECT pg_backend_pid()").await, backend);
    sidecar
        .wait_metric("pgsidecar_backends", &[("state", "idle")], |idle| idle == 2.0)
        .await;
    assert_eq!(sidecar.metric("pgsidecar_pool_max_size", &[]).await, Some(3.0));
    holder.ask("COMMIT").await;
    assert!(
        reload(&sidecar, "pool: {max_size: 1, min_idle: 0}\n")
            .await
            .contains("reloaded")
    );
    let all = async |sidecar: &Sidecar| {
        let mut sum = 0.0;
        for state in ["active", "idle", "pinned"] {
            sum += sidecar
                .metric("pgsidecar_backends", &[("state", state)])
                .await
                .unwrap_or(0.0);
        }
        sum
    };
    crate::support::eventually("one backend is left", async || {
        (all(&sidecar).await <= 1.0).then_some(())
    })
    .await;
    assert_eq!(holder.value("SELECT 1").await, "1");
    assert_eq!(waiter.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_says_so() {
    let database = Postgres::shared().create_database();
    let good = "pool: {max_size: 4}\n";
    let sidecar = start(&database, good).await;
    let mut client = login(&sidecar, &database).await;
    for (bad, words) in [
        ("pool: {max_sise: 9}\n", "did you mean pool.max_size"),
        ("pool: {max_size: many}\n", "pool.max_size"),
        (
            "pool: {max_size: 9}\ntls: {mode: allow, cert: /nowhere.crt, key: /nowhere.key}\n",
            "/nowhere.crt",
        ),
        (
            "pool: {max_size: 9}\ndatabases: {x: {upstream: 'postgres://u:p@h/x?sslmode=verify-ca&sslrootcert=/nowhere.crt'}}\n",
            "/nowhere.crt",
        ),
        ("pool: {max_size: 9}\nlog: {level: loud}\n", "log.level"),
    ] {
        let line = reload(&sidecar, bad).await;
        assert!(line.contains("nothing has changed") && line.contains(words), "{line}");
        assert_eq!(sidecar.metric("pgsidecar_pool_max_size", &[]).await, Some(4.0), "{bad}");
        assert_eq!(client.value("SELECT 1").await, "1");
        login(&sidecar, &database).await.value("SELECT 1").await;
    }
    assert!(reload(&sidecar, "pool: {max_size: 5}\n").await.contains("reloaded"));
    assert_eq!(sidecar.metric("pgsidecar_pool_max_size", &[]).await, Some(5.0));
}

#[tokio::test]
async fn users_limits_and_log_level_change_at_a_reload() {
    let database = Postgres::shared().create_database();
    let users = |password: &str| format!("users: [{{name: {USER}, password: {password}}}]\n");
    let sidecar = start(&database, &users("first")).await;
    let mut old = RawClient::login(sidecar.port, USER, "first", &database.name).await;
    // One that comes back every moment keeps its buffers, not its limits.
    for _ in 0..40 {
        old.value("SELECT 1").await;
    }
    let changed = format!(
        "{}limits: {{max_clients: 2, idle_transaction_timeout: 300ms}}\n",
        users("second")
    );
    assert!(reload(&sidecar, &changed).await.contains("reloaded"));
    let told = RawClient::connect(sidecar.port)
        .await
        .log_in(USER, "first", &[("database", &database.name)])
        .await
        .expect_err("the password has changed");
    assert_eq!(told.sqlstate, SqlState::INVALID_PASSWORD);
    let mut new = RawClient::login(sidecar.port, USER, "second", &database.name).await;
    new.value("SELECT 1").await;
    let told = RawClient::connect(sidecar.port)
        .await
        .log_in(USER, "second", &[("database", &database.name)])
        .await
        .expect_err("two is the limit now");
    assert_eq!(told.sqlstate, SqlState::TOO_MANY_CONNECTIONS);
    // A client from before has the new limits from its next request on.
    old.ask("BEGIN").await;
    assert_eq!(old.until_closed().await[0].sqlstate(), "25P03");
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_new_clients_and_old_ones_stay() {
    let database = Postgres::shared().create_database();
    let directory = tempfile::tempdir().unwrap();
    let own = certificates::self_signed(directory.path(), "own", "first.example");
    let tls = format!(
        "tls: {{mode: allow, cert: {}, key: {}}}\n",
        own.certificate.display(),
        own.key.display()
    );
    let sidecar = start(&database, &tls).await;
    let mut old = RawClient::connect_tls(sidecar.port).await;
    old.log_in(USER, PASSWORD, &[("database", &database.name)])
        .await
        .expect("the login succeeds");
    let shown = async || {
        let output = std::process::Command::new("openssl")
            .args(["s_client", "-starttls", "postgres", "-connect"])
            .arg(format!("127.0.0.1:{}", sidecar.port))
            .stdin(std::process::Stdio::null())
            .output()
            .expect("openssl is installed");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(shown().await.contains("first.example"));
    certificates::self_signed(directory.path(), "own", "second.example");
    assert!(reload(&sidecar, &tls).await.contains("reloaded"));
    assert!(shown().await.contains("second.example"));
    assert_eq!(old.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn what_only_a_start_can_change_is_named() {
    let database = Postgres::shared().create_database();
    let sidecar = builder(&database, "").own_threads().start_ready().await;
    let line = reload(&sidecar, "runtime: {threads: 2}\nlog: {stats_interval: 5s}\n").await;
    assert!(
        line.contains("runtime.threads") && line.contains("log.stats_interval"),
        "{line}"
    );
}

#[tokio::test]
async fn another_upstream_replaces_backends_as_they_come_back_and_clients_stay() {
    let (one, two) = (
        Postgres::shared().create_database(),
        Postgres::shared().create_database(),
    );
    let databases = |name: &str| format!("databases: {{front: {{dbname: {name}}}, {}: }}\n", one.name);
    let sidecar = start(&one, &databases(&one.name)).await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, "front").await;
    let mut inside = RawClient::login(sidecar.port, USER, PASSWORD, "front").await;
    assert_eq!(client.value("SELECT current_database()").await, one.name);
    inside.ask("BEGIN").await;
    assert_eq!(inside.value("SELECT current_database()").await, one.name);
    assert!(reload(&sidecar, &databases(&two.name)).await.contains("reloaded"));
    assert_eq!(client.value("SELECT current_database()").await, two.name);
    assert_eq!(
        inside.value("SELECT current_database()").await,
        one.name,
        "a transaction ends where it began"
    );
    inside.ask("COMMIT").await;
    assert_eq!(inside.value("SELECT current_database()").await, two.name);
}

#[tokio::test]
async fn a_name_that_was_taken_away_ends_its_clients_at_their_next_request() {
    let database = Postgres::shared().create_database();
    let databases = |names: &str| format!("databases: {{{}: {names}}}\n", database.name);
    let sidecar = start(
        &database,
        &databases(&format!(", extra: {{dbname: {}}}", database.name)),
    )
    .await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, "extra").await;
    client.ask("BEGIN").await;
    client.value("SELECT 1").await;
    assert!(reload(&sidecar, &databases("")).await.contains("reloaded"));
    assert_eq!(
        client.ask("COMMIT").await[0].command(),
        "COMMIT",
        "a transaction goes to its end"
    );
    client.query("SELECT 1").await;
    let last = client.until_closed().await;
    assert_eq!((last.len(), last[0].sqlstate().as_str()), (1, "57P01"));
    crate::support::eventually("its labels are gone", async || {
        (!sidecar.metrics().await.contains("\"extra\"")).then_some(())
    })
    .await;
}
