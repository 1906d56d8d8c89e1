//! Statements that need a database to themselves find it free of the pools' own backends.

use pgsidecar::wire::SqlState;

use crate::support::postgres::{Database, Postgres, SUPERUSER_PASSWORD};
use crate::support::raw_client::{RawClient, bind, execute, parse, sync, tags, together};
use crate::support::sidecar::{Builder, Sidecar};

async fn start(database: &Database) -> Sidecar {
    Builder::default()
        .upstream(database.url_as("postgres", SUPERUSER_PASSWORD))
        .set("POOL__MIN_IDLE", "2")
        .start_ready()
        .await
}

async fn login(sidecar: &Sidecar, database: &str) -> RawClient {
    RawClient::login(sidecar.port, "postgres", SUPERUSER_PASSWORD, database).await
}

async fn wait_idle(sidecar: &Sidecar, database: &str) {
    let labels = [("database", database), ("state", "idle")];
    sidecar
        .wait_metric("pgsidecar_backends", &labels, |idle| idle >= 2.0)
        .await;
}

async fn done(client: &mut RawClient, sql: &str) {
    let answer = client.ask(sql).await;
    assert!(!tags(&answer).contains('E'), "{sql}: {}", answer[0].report());
}

#[tokio::test]
async fn a_database_that_pools_keep_warm_is_copied_renamed_moved_and_dropped_through_them() {
    let database = Postgres::shared().create_database();
    let sidecar = start(&database).await;
    let mut owner = login(&sidecar, &database.name).await;
    let [used, copy, other] = ["used", "copy", "other"].map(|word| format!("{}_{word}", database.name));
    done(&mut owner, &format!("CREATE DATABASE {used}")).await;
    let mut client = login(&sidecar, &used).await;
    done(&mut client, "CREATE TABLE kept AS SELECT 42 AS n").await;
    wait_idle(&sidecar, &used).await;
    done(&mut owner, &format!("CREATE DATABASE {copy} TEMPLATE = {used}")).await;
    // Its client stayed, and its pool warms again.
    assert_eq!(client.value("SELECT n FROM kept").await, "42");
    wait_idle(&sidecar, &used).await;
    done(&mut owner, &format!("ALTER DATABASE {used} RENAME TO {other}")).await;
    drop(client);
    let mut client = login(&sidecar, &other).await;
    assert_eq!(client.value("SELECT n FROM kept").await, "42");
    wait_idle(&sidecar, &other).await;
    let drop = together(&[
        parse("", &format!("DROP DATABASE IF EXISTS {other}")),
        bind("", "", &[]),
        execute("", 0),
        sync(),
    ]);
    owner.send(&drop).await;
    let answer = owner.until_ready().await;
    assert_eq!(tags(&answer), "12CZ", "{}", answer[0].report());
    done(&mut owner, &format!("DROP DATABASE \"{copy}\"")).await;
}

#[tokio::test]
async fn who_asks_for_a_database_that_is_being_dropped_waits_for_the_end_of_that() {
    let database = Postgres::shared().create_database();
    let doomed = Postgres::shared().create_database();
    let sidecar = start(&database).await;
    let mut owner = login(&sidecar, &database.name).await;
    let mut client = login(&sidecar, &doomed.name).await;
    assert_eq!(client.value("SELECT 1").await, "1");
    // PostgreSQL waits some seconds for those who are connected past the pool.
    let mut outsider = RawClient::connect(doomed.port).await;
    outsider
        .log_in("postgres", SUPERUSER_PASSWORD, &[("database", &doomed.name)])
        .await
        .unwrap();
    owner.query(&format!("DROP DATABASE {}", doomed.name)).await;
    sidecar
        .wait_metric(
            "pgsidecar_backends",
            &[("database", &doomed.name), ("state", "idle")],
            |idle| idle == 0.0,
        )
        .await;
    client.query("SELECT 2").await;
    sidecar
        .wait_metric("pgsidecar_clients", &[("state", "waiting")], |waiting| waiting == 1.0)
        .await;
    drop(outsider);
    assert_eq!(tags(&owner.until_ready().await), "CZ");
    let told = client.until_ready_or_end().await;
    assert_eq!(told[0].report().sqlstate, SqlState::INVALID_CATALOG_NAME);
}
