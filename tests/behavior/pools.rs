//! Who gets which backend, when they are opened and closed, and what is told to those who get none.

use std::sync::Arc;

use pgsidecar::wire::SqlState;

use crate::support::fake_backend::FakeBackend;
use crate::support::postgres::{Database, OTHER_PASSWORD, OTHER_USER, PASSWORD, Postgres, USER};
use crate::support::raw_client::{RawClient, bind, execute, parse, sync, together};
use crate::support::sidecar::Sidecar;

async fn login(sidecar: &Sidecar, database: &Database) -> RawClient {
    RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await
}

async fn wait_backends(sidecar: &Sidecar, state: &str, condition: impl Fn(f64) -> bool) -> f64 {
    sidecar
        .wait_metric("pgsidecar_backends", &[("state", state)], condition)
        .await
}

async fn wait_waiting(sidecar: &Sidecar, count: f64) {
    sidecar
        .wait_metric("pgsidecar_clients", &[("state", "waiting")], |waiting| waiting == count)
        .await;
}

/// The process ids of the backends that PostgreSQL has for this database.
fn process_ids(database: &Database) -> Vec<String> {
    let sql = format!(
        "SELECT pid FROM pg_stat_activity WHERE datname = '{}' ORDER BY pid",
        database.name
    );
    let listed = Postgres::shared().psql("postgres", &sql);
    listed.lines().map(str::to_owned).collect()
}

fn terminate_all(database: &Database) {
    let sql = format!(
        "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE datname = '{}'",
        database.name
    );
    Postgres::shared().psql("postgres", &sql);
}

// --- opened before anyone asks ---

#[tokio::test]
async fn min_idle_is_open_before_any_client_came() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database).set("POOL__MIN_IDLE", "3").start().await;
    wait_backends(&sidecar, "idle", |idle| idle == 3.0).await;
    assert_eq!(
        sidecar.metric("pgsidecar_client_connections_total", &[]).await,
        Some(0.0)
    );
    assert_eq!(process_ids(&database).len(), 3);
}

#[tokio::test]
async fn trap_75_lost_idle_backends_are_noticed_without_a_query_and_replaced() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database).set("POOL__MIN_IDLE", "3").start().await;
    wait_backends(&sidecar, "idle", |idle| idle == 3.0).await;
    let before = process_ids(&database);
    terminate_all(&database);
    let pool = [("database", database.name.as_str())];
    sidecar
        .wait_metric("pgsidecar_backend_connections_total", &pool, |opened| opened >= 6.0)
        .await;
    wait_backends(&sidecar, "idle", |idle| idle == 3.0).await;
    assert!(process_ids(&database).iter().all(|id| !before.contains(id)));
    assert_eq!(sidecar.metric("pgsidecar_queries_total", &[]).await, Some(0.0));
    assert_eq!(
        sidecar
            .metric("pgsidecar_backend_closed_total", &[("reason", "broken")])
            .await,
        Some(3.0)
    );
}

#[tokio::test]
async fn trap_75_a_backend_that_ended_this_instant_is_not_handed_out() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = login(&sidecar, &database).await;
    for _ in 0..5 {
        let before = client.value("SELECT pg_backend_pid()").await;
        terminate_all(&database);
        assert_ne!(client.value("SELECT pg_backend_pid()").await, before);
    }
}

// --- closed when nobody needs them ---

#[tokio::test]
async fn trap_47_idle_backends_are_closed_down_to_min_idle() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MIN_IDLE", "1")
        .set("POOL__IDLE_TIMEOUT", "300ms")
        .start_ready()
        .await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = login(&sidecar, &database).await;
        client.ask("BEGIN").await;
        clients.push(client);
    }
    for client in &mut clients {
        client.ask("COMMIT").await;
    }
    wait_backends(&sidecar, "idle", |idle| idle == 1.0).await;
    let closed = sidecar
        .metric("pgsidecar_backend_closed_total", &[("reason", "idle_timeout")])
        .await;
    assert!(closed >= Some(3.0), "{closed:?}");
}

#[tokio::test]
async fn trap_47_an_off_timeout_closes_nothing() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MIN_IDLE", "0")
        .set("POOL__IDLE_TIMEOUT", "0")
        .set("POOL__MAX_LIFETIME", "0")
        .start()
        .await;
    let mut client = login(&sidecar, &database).await;
    let backend = client.value("SELECT pg_backend_pid()").await;
    // Several rounds of the keeper's look at idle backends.
    let other = Sidecar::builder(&database)
        .set("POOL__MIN_IDLE", "1")
        .set("POOL__MAX_LIFETIME", "400ms")
        .start_ready()
        .await;
    other
        .wait_metric("pgsidecar_backend_closed_total", &[("reason", "lifetime")], |closed| {
            closed >= 2.0
        })
        .await;
    assert_eq!(client.value("SELECT pg_backend_pid()").await, backend);
}

#[tokio::test]
async fn trap_47_max_lifetime_replaces_idle_backends_at_different_times_and_never_used_ones() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MIN_IDLE", "2")
        .set("POOL__MAX_LIFETIME", "1s")
        .set("POOL__LIFETIME_JITTER", "50%")
        .start_ready()
        .await;
    let mut client = login(&sidecar, &database).await;
    client.ask("BEGIN").await;
    let backend = client.value("SELECT pg_backend_pid()").await;
    sidecar
        .wait_metric("pgsidecar_backend_closed_total", &[("reason", "lifetime")], |closed| {
            closed >= 3.0
        })
        .await;
    assert_eq!(client.value("SELECT pg_backend_pid()").await, backend);
    client.ask("COMMIT").await;
    crate::support::eventually("the old one goes", async || {
        (!process_ids(&database).contains(&backend)).then_some(())
    })
    .await;
}

// --- waiting ---

#[tokio::test]
async fn trap_79_sixteen_waiters_open_sixteen_backends_at_once() {
    let all_there = Arc::new(tokio::sync::Barrier::new(16));
    let fake = FakeBackend::start(move |mut session| {
        let all_there = Arc::clone(&all_there);
        async move {
            // The first one teaches the greeting. No other is answered before all sixteen have come.
            if session.number > 0 {
                all_there.wait().await;
            }
            session.login().await?;
            session.serve().await
        }
    })
    .await;
    let sidecar = fake.sidecar().set("POOL__MAX_SIZE", "17").start().await;
    let mut clients = Vec::new();
    for _ in 0..17 {
        clients.push(RawClient::login(sidecar.port, USER, PASSWORD, "fake").await);
    }
    for client in &mut clients {
        client.query("BEGIN").await;
    }
    fake.wait_sessions(17).await;
    for client in &mut clients {
        client.until_ready().await;
    }
}

#[tokio::test]
async fn who_asked_first_is_served_first() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut holder = login(&sidecar, &database).await;
    holder.ask("CREATE SEQUENCE turn").await;
    holder.ask("BEGIN").await;
    let mut waiters = Vec::new();
    for number in 1..=6 {
        let mut waiter = login(&sidecar, &database).await;
        waiter.query("SELECT nextval('turn') -- not a literal").await;
        wait_waiting(&sidecar, f64::from(number)).await;
        waiters.push(waiter);
    }
    holder.ask("COMMIT").await;
    // The one who had it goes to the end of the line.
    holder.query("SELECT nextval('turn')").await;
    let mut turns = Vec::new();
    for waiter in waiters.iter_mut().chain([&mut holder]) {
        turns.push(waiter.until_ready().await[1].row()[0].clone().unwrap());
    }
    assert_eq!(turns, ["1", "2", "3", "4", "5", "6", "7"]);
}

#[tokio::test]
async fn trap_46_waiters_that_leave_lose_no_backend() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "2")
        .start_ready()
        .await;
    for _ in 0..10 {
        let mut holders = [login(&sidecar, &database).await, login(&sidecar, &database).await];
        for holder in &mut holders {
            holder.ask("BEGIN").await;
        }
        let mut waiters = Vec::new();
        for _ in 0..6 {
            let mut waiter = login(&sidecar, &database).await;
            waiter.query("SELECT 1").await;
            waiters.push(waiter);
        }
        // At the same moment: backends come back, and those who wait for them go away.
        for holder in &mut holders {
            holder.query("COMMIT").await;
        }
        drop(waiters);
        for holder in &mut holders {
            holder.until_ready().await;
        }
    }
    let mut both = [login(&sidecar, &database).await, login(&sidecar, &database).await];
    for client in &mut both {
        client.ask("BEGIN").await;
    }
    wait_backends(&sidecar, "active", |active| active == 2.0).await;
}

#[tokio::test]
async fn the_53300_of_a_timeout_counts_who_holds_and_the_log_names_them() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "3")
        .set("POOL__ACQUIRE_TIMEOUT", "1s")
        .set("LIMITS__QUERY_TIMEOUT", "10m")
        .start_ready()
        .await;
    let mut named = RawClient::connect(sidecar.port).await;
    named
        .log_in(
            USER,
            PASSWORD,
            &[("database", &database.name), ("application_name", "billing")],
        )
        .await
        .expect("the login succeeds");
    named.ask("BEGIN").await;
    named.ask("SELECT 'top_secret', 4711").await;
    let mut pinned = login(&sidecar, &database).await;
    pinned.ask("CREATE TEMP TABLE pinning (x int)").await;
    let mut busy = login(&sidecar, &database).await;
    busy.send(&together(&[
        parse("s", "SELECT pg_sleep($1), 'hidden_value'"),
        bind("", "s", &["60"]),
        execute("", 0),
        sync(),
    ]))
    .await;
    wait_backends(&sidecar, "pinned", |pinned| pinned == 1.0).await;
    wait_backends(&sidecar, "active", |active| active == 2.0).await;
    let mut waiter = login(&sidecar, &database).await;
    let answer = waiter.ask("SELECT 1").await;
    let told = answer[0].report();
    assert_eq!(told.sqlstate, SqlState::TOO_MANY_CONNECTIONS);
    assert_eq!(told.severity, pgsidecar::wire::Severity::Error);
    let detail = told.detail.expect("a DETAIL");
    for part in [
        "Pool size 3",
        "1 active",
        "1 idle in transaction",
        "1 pinned (",
        "1 clients waiting",
        "the longest hold is",
    ] {
        assert!(detail.contains(part), "{part} in {detail}");
    }
    assert!(told.hint.is_some_and(|hint| hint.contains("pool.max_size")));
    assert!(
        !detail.contains("billing"),
        "other clients are no client's business: {detail}"
    );
    let line = sidecar.wait_for_log("a client got no backend in time").await;
    for part in [
        "billing",
        "127.0.0.1:",
        "idle in transaction",
        "SELECT ?, ?",
        "pinned by",
        "CREATE TEMP TABLE pinning (x int)",
        "SELECT pg_sleep($1), ?",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
    for secret in ["top_secret", "4711", "hidden_value", PASSWORD] {
        assert!(!sidecar.log().contains(secret), "{secret} in the log");
    }
    // The one who was refused goes on.
    named.ask("COMMIT").await;
    assert_eq!(waiter.value("SELECT 2").await, "2");
}

#[tokio::test]
async fn trap_19_a_timeout_inside_a_batch_is_one_error_and_silence_up_to_its_sync() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .set("POOL__ACQUIRE_TIMEOUT", "300ms")
        .start_ready()
        .await;
    let mut holder = login(&sidecar, &database).await;
    holder.ask("BEGIN").await;
    let mut waiter = login(&sidecar, &database).await;
    waiter
        .send(&together(&[
            parse("", "SELECT 1"),
            bind("", "", &[]),
            execute("", 0),
            sync(),
        ]))
        .await;
    let answer = waiter.until_ready().await;
    assert_eq!(crate::support::raw_client::tags(&answer), "EZ");
    holder.ask("COMMIT").await;
    assert_eq!(waiter.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn trap_78_timeouts_and_wrong_passwords_ban_nobody() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .set("POOL__ACQUIRE_TIMEOUT", "50ms")
        .start_ready()
        .await;
    let mut holder = login(&sidecar, &database).await;
    holder.ask("BEGIN").await;
    let mut waiter = login(&sidecar, &database).await;
    for _ in 0..10 {
        waiter.ask("SELECT 1").await;
        let mut stranger = RawClient::connect(sidecar.port).await;
        let _ = stranger.log_in(USER, "wrong", &[("database", &database.name)]).await;
    }
    holder.ask("COMMIT").await;
    assert_eq!(waiter.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn trap_77_a_refused_login_leaves_those_who_can_have_an_open_backend_alone() {
    let database = Postgres::shared().create_database();
    let role = format!("limited_{}", database.name);
    Postgres::shared().psql(
        "postgres",
        &format!("CREATE ROLE {role} LOGIN PASSWORD 'limited_password' IN ROLE {USER}"),
    );
    let url = format!(
        "postgres://{role}:limited_password@127.0.0.1:{}/{}?sslmode=disable",
        database.port, database.name
    );
    let sidecar = crate::support::sidecar::Builder::default()
        .upstream(url)
        .set("POOL__MIN_IDLE", "0")
        .start_ready()
        .await;
    let client = async || RawClient::login(sidecar.port, &role, "limited_password", &database.name).await;
    let mut waiter = client().await;
    waiter.value("SELECT 1").await;
    let mut holders = Vec::new();
    // Until whoever comes next needs a login.
    while holders.is_empty() || sidecar.metric("pgsidecar_backends", &[("state", "idle")]).await != Some(0.0) {
        let mut holder = client().await;
        holder.ask("BEGIN").await;
        holders.push(holder);
    }
    Postgres::shared().psql("postgres", &format!("ALTER ROLE {role} NOLOGIN"));
    waiter.query("SELECT 'served'").await;
    sidecar.wait_for_log("is not permitted to log in").await;
    holders[0].ask("COMMIT").await;
    assert_eq!(waiter.until_ready().await[1].row(), [Some("served".to_owned())]);
}

// --- several pools ---

#[tokio::test]
async fn pools_are_made_for_the_databases_and_users_that_clients_name() {
    let (one, two) = (
        Postgres::shared().create_database(),
        Postgres::shared().create_database(),
    );
    Postgres::shared().psql(
        "postgres",
        &format!("GRANT ALL ON DATABASE {} TO {OTHER_USER}", one.name),
    );
    let sidecar = Sidecar::builder(&one)
        .set(
            "USERS",
            format!(
                "[{{name: {USER}, password: {PASSWORD}, pool: {{max_size: 7}}}}, \
                 {{name: {OTHER_USER}, password: {OTHER_PASSWORD}}}]"
            ),
        )
        .start_ready()
        .await;
    for (user, password, database, size) in [
        (USER, PASSWORD, &one, 7.0),
        (USER, PASSWORD, &two, 7.0),
        (OTHER_USER, OTHER_PASSWORD, &one, 20.0),
    ] {
        let mut client = RawClient::login(sidecar.port, user, password, &database.name).await;
        let who = client.value("SELECT session_user || ' ' || current_database()").await;
        assert_eq!(who, format!("{user} {}", database.name));
        let labels = [("database", database.name.as_str()), ("user", user)];
        assert_eq!(sidecar.metric("pgsidecar_pool_max_size", &labels).await, Some(size));
    }
    let told = RawClient::connect(sidecar.port)
        .await
        .log_in(USER, PASSWORD, &[("database", "no_such_database")])
        .await
        .expect_err("PostgreSQL has no such database");
    assert_eq!(told.sqlstate, SqlState::INVALID_CATALOG_NAME);
    assert_eq!(told.message, "database \"no_such_database\" does not exist");
    assert!(
        !sidecar.metrics().await.contains("no_such_database"),
        "trap 92: never a label"
    );
}

#[tokio::test]
async fn databases_restricts_renames_redirects_and_changes_the_user() {
    let (one, two) = (
        Postgres::shared().create_database(),
        Postgres::shared().create_database(),
    );
    Postgres::shared().psql(
        "postgres",
        &format!("GRANT ALL ON DATABASE {} TO {OTHER_USER}", two.name),
    );
    let elsewhere = two.url_as(OTHER_USER, OTHER_PASSWORD);
    let yaml = format!(
        "listen: 127.0.0.1:$PORT\nmetrics: {{listen: '127.0.0.1:$METRICS_PORT'}}\n\
         users: [{{name: {USER}, password: {PASSWORD}, pool: {{idle_timeout: 5m}}}}]\n\
         databases:\n  {}: \n  short: {{dbname: {}, pool: {{max_size: 3, mode: session}}}}\n  \
         far: {{upstream: '{elsewhere}', user: {OTHER_USER}}}\n",
        one.name, two.name
    );
    let sidecar = Sidecar::builder(&one).config(yaml).start_ready().await;
    let who = "SELECT session_user || ' ' || current_database()";
    for (name, expected) in [
        (one.name.as_str(), format!("{USER} {}", one.name)),
        ("short", format!("{USER} {}", two.name)),
        ("far", format!("{OTHER_USER} {}", two.name)),
    ] {
        let mut client = RawClient::login(sidecar.port, USER, PASSWORD, name).await;
        assert_eq!(client.value(who).await, expected);
    }
    let labels = [("database", "short"), ("user", USER)];
    assert_eq!(sidecar.metric("pgsidecar_pool_max_size", &labels).await, Some(3.0));
    for refused in [two.name.as_str(), "postgres"] {
        let told = RawClient::connect(sidecar.port)
            .await
            .log_in(USER, PASSWORD, &[("database", refused)])
            .await
            .expect_err("databases: does not name it");
        assert_eq!(told.sqlstate, SqlState::INVALID_CATALOG_NAME);
    }
}

#[tokio::test]
async fn beyond_max_total_the_longest_idle_backend_of_another_pool_makes_room() {
    let databases: Vec<_> = (0..3).map(|_| Postgres::shared().create_database()).collect();
    let sidecar = Sidecar::builder(&databases[0])
        .set("POOL__MAX_TOTAL", "2")
        .set("POOL__MIN_IDLE", "0")
        .start()
        .await;
    for database in databases.iter().chain(&databases) {
        let mut client = login(&sidecar, database).await;
        assert_eq!(client.value("SELECT current_database()").await, database.name);
        let open: usize = databases.iter().map(|database| process_ids(database).len()).sum();
        // One that is being closed may still be listed for a moment.
        assert!(open <= 3, "{open}");
    }
    sidecar
        .wait_metric("pgsidecar_backend_closed_total", &[("reason", "evicted")], |evicted| {
            evicted >= 3.0
        })
        .await;
    // Both places in use: who comes third waits until one is free, and is served.
    let mut holders = [
        login(&sidecar, &databases[0]).await,
        login(&sidecar, &databases[1]).await,
    ];
    for holder in &mut holders {
        holder.ask("BEGIN").await;
    }
    let mut third = login(&sidecar, &databases[2]).await;
    third.query("SELECT 'served'").await;
    wait_waiting(&sidecar, 1.0).await;
    holders[0].ask("COMMIT").await;
    assert_eq!(third.until_ready().await[1].row(), [Some("served".to_owned())]);
}

#[tokio::test]
async fn beyond_max_pools_one_that_nobody_uses_goes_and_its_labels_with_it() {
    let databases: Vec<_> = (0..3).map(|_| Postgres::shared().create_database()).collect();
    let sidecar = Sidecar::builder(&databases[0])
        .set("POOL__MAX_POOLS", "2")
        .start_ready()
        .await;
    let mut kept = login(&sidecar, &databases[0]).await;
    kept.value("SELECT 1").await;
    login(&sidecar, &databases[1]).await.value("SELECT 1").await;
    assert!(sidecar.metrics().await.contains(&databases[1].name));
    sidecar
        .wait_metric("pgsidecar_clients", &[], |clients| clients == 1.0)
        .await;
    let mut third = login(&sidecar, &databases[2]).await;
    third.value("SELECT 1").await;
    let text = sidecar.metrics().await;
    assert!(text.contains(&databases[0].name) && text.contains(&databases[2].name));
    assert!(!text.contains(&databases[1].name), "its labels are gone");
    // Now both are in use.
    let told = RawClient::connect(sidecar.port)
        .await
        .log_in(USER, PASSWORD, &[("database", &databases[1].name)])
        .await
        .expect_err("two is the limit");
    assert_eq!(told.sqlstate, SqlState::TOO_MANY_CONNECTIONS);
    assert!(told.hint.is_some_and(|hint| hint.contains("pool.max_pools")));
    assert_eq!(kept.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn the_labels_of_a_pool_that_was_idle_for_long_are_gone() {
    let (one, two) = (
        Postgres::shared().create_database(),
        Postgres::shared().create_database(),
    );
    let sidecar = Sidecar::builder(&one)
        .set("POOL__IDLE_TIMEOUT", "300ms")
        .start_ready()
        .await;
    login(&sidecar, &two).await.value("SELECT 1").await;
    crate::support::eventually("the labels go", async || {
        (!sidecar.metrics().await.contains(&two.name)).then_some(())
    })
    .await;
    assert!(
        sidecar.metrics().await.contains(&one.name),
        "the upstream's own pool stays"
    );
    crate::support::eventually("its backends go", async || process_ids(&two).is_empty().then_some(())).await;
}

#[tokio::test]
async fn oldest_wait_is_shown_while_someone_waits() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut holder = login(&sidecar, &database).await;
    holder.ask("BEGIN").await;
    let mut waiter = login(&sidecar, &database).await;
    waiter.query("SELECT 1").await;
    sidecar
        .wait_metric("pgsidecar_oldest_wait_seconds", &[], |oldest| oldest > 0.05)
        .await;
    holder.ask("COMMIT").await;
    waiter.until_ready().await;
    sidecar
        .wait_metric("pgsidecar_oldest_wait_seconds", &[], |oldest| oldest == 0.0)
        .await;
}
