//! Passwords looked up in PostgreSQL: in all forms, as long as they are valid, and never by a user's own tricks.

use crate::support::eventually;
use crate::support::postgres::{Database, PASSWORD, Postgres, SUPERUSER_PASSWORD, USER};
use crate::support::process::psql;
use crate::support::raw_client::{RawClient, bind, execute, parse, sync, together};
use crate::support::sidecar::{Builder, Sidecar};

/// PgBouncer's own query.
const TWO_COLUMNS: &str = "SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1";

/// A sidecar whose upstream user is the superuser, and that knows its clients by `query` only.
fn asking(database: &Database, query: &str) -> Builder {
    let query = query.replace('\'', "''");
    Sidecar::builder(database)
        .upstream(database.url_as("postgres", SUPERUSER_PASSWORD))
        .config(format!(
            "auth_query:\n  query: '{query}'\n  cache_ttl: 1h\n  negative_ttl: 0s\n"
        ))
}

/// A role of this name and password, unique in the cluster by the database's name.
fn role(database: &Database, suffix: &str, attributes: &str) -> String {
    let name = format!("{}_{suffix}", database.name);
    Postgres::shared().psql("postgres", &format!("CREATE ROLE \"{name}\" LOGIN {attributes}"));
    name
}

async fn refused(sidecar: &Sidecar, user: &str, password: &str, database: &Database) -> String {
    let mut client = RawClient::connect(sidecar.port).await;
    let refusal = client.log_in(user, password, &[("database", &database.name)]).await;
    let report = refusal.expect_err("the login is refused");
    assert_eq!(
        client.authentication,
        [10, 11],
        "the exchange is as long as a known user's"
    );
    format!("{} {}", report.sqlstate, report.message)
}

fn wrong_password(user: &str) -> String {
    format!("28P01 password authentication failed for user \"{user}\"")
}

#[tokio::test]
async fn one_column_and_two_name_the_password() {
    let database = Postgres::shared().create_database();
    for query in [
        TWO_COLUMNS,
        "SELECT rolpassword FROM pg_catalog.pg_authid WHERE rolname = $1;",
    ] {
        let sidecar = asking(&database, query).start_ready().await;
        let url = sidecar.url_as(USER, PASSWORD, &database.name);
        assert_eq!(psql(&url, &["SELECT session_user"]).await.ok(), USER);
        assert_eq!(refused(&sidecar, USER, "wrong", &database).await, wrong_password(USER));
        assert_eq!(
            refused(&sidecar, "nobody", "wrong", &database).await,
            wrong_password("nobody")
        );
    }
}

#[tokio::test]
async fn a_function_that_only_the_lookup_may_call_is_enough() {
    let database = Postgres::shared().create_database();
    Postgres::shared().psql(
        &database.name,
        "CREATE SCHEMA lookup; CREATE FUNCTION lookup.password_of(name text) RETURNS TABLE (u name, p text)
         LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog
         AS $$ SELECT rolname, rolpassword FROM pg_authid WHERE rolname = name $$;
         REVOKE ALL ON FUNCTION lookup.password_of FROM public; GRANT USAGE ON SCHEMA lookup TO other;
         GRANT EXECUTE ON FUNCTION lookup.password_of TO other",
    );
    let sidecar = Sidecar::builder(&database)
        .upstream(database.url_as("other", "other_password"))
        .set("AUTH__QUERY", "{query: 'SELECT u, p FROM lookup.password_of($1)'}")
        .start_ready()
        .await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(client.value("SELECT session_user").await, USER);
}

#[tokio::test]
async fn a_query_may_return_the_password_itself() {
    let database = Postgres::shared().create_database();
    Postgres::shared().psql(
        &database.name,
        "CREATE SCHEMA accounts; CREATE TABLE accounts.users AS SELECT 'app'::text AS name, 'app_password'::text AS password",
    );
    let query = "SELECT password FROM accounts.users WHERE name = $1";
    let sidecar = asking(&database, query).start_ready().await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(client.value("SELECT session_user").await, USER);
}

#[tokio::test]
async fn a_null_password_is_no_login() {
    let database = Postgres::shared().create_database();
    let sidecar = asking(&database, TWO_COLUMNS).start_ready().await;
    assert_eq!(
        refused(&sidecar, "trusted", "", &database).await,
        wrong_password("trusted")
    );
}

#[tokio::test]
async fn trap_86_valid_until_is_honoured_though_the_query_knows_nothing_of_it() {
    let database = Postgres::shared().create_database();
    let sidecar = asking(&database, TWO_COLUMNS).start_ready().await;
    let login = async |user: &str| {
        let mut client = RawClient::connect(sidecar.port).await;
        client.log_in(user, "pw", &[("database", &database.name)]).await
    };
    let forever = role(&database, "forever", "PASSWORD 'pw' VALID UNTIL 'infinity'");
    login(&forever).await.expect("it is valid");
    let expired = role(&database, "expired", "PASSWORD 'pw' VALID UNTIL '2020-01-01'");
    assert_eq!(
        refused(&sidecar, &expired, "pw", &database).await,
        wrong_password(&expired)
    );
    // What is remembered for an hour is remembered no longer than it is valid.
    let expiring = role(&database, "expiring", "PASSWORD 'pw'");
    Postgres::shared().psql(
        "postgres",
        &format!(
            "DO $$ BEGIN EXECUTE format('ALTER ROLE {expiring} VALID UNTIL %L', clock_timestamp() + '5 s'); END $$"
        ),
    );
    login(&expiring).await.expect("it is still valid");
    eventually("the end of the password", async || login(&expiring).await.err()).await;
}

#[tokio::test]
async fn trap_86_no_schema_of_a_users_stands_before_pg_catalog() {
    let database = Postgres::shared().create_database();
    Postgres::shared().psql(
        &database.name,
        &format!(
            "CREATE SCHEMA evil;
             CREATE TABLE evil.pg_authid AS SELECT 'app'::name AS rolname, 'known to the attacker'::text AS rolpassword;
             CREATE FUNCTION evil.lower(text) RETURNS text LANGUAGE sql AS 'SELECT ''attacker''';
             ALTER DATABASE {} SET search_path = evil, pg_catalog",
            database.name
        ),
    );
    let query = "SELECT rolname, rolpassword FROM pg_authid WHERE lower(rolname) = lower($1)";
    let sidecar = asking(&database, query).start_ready().await;
    assert_eq!(
        refused(&sidecar, USER, "known to the attacker", &database).await,
        wrong_password(USER)
    );
    RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
}

#[tokio::test]
async fn trap_86_user_names_are_values_and_never_sql() {
    let database = Postgres::shared().create_database();
    let sidecar = asking(&database, TWO_COLUMNS).start_ready().await;
    for user in [
        "' OR true --",
        "app' --",
        "\\' OR true --",
        "$1",
        "$$app$$",
        "'; DROP DATABASE postgres; --",
        "é\u{2028}'\"",
    ] {
        assert_eq!(refused(&sidecar, user, PASSWORD, &database).await, wrong_password(user));
    }
    // A name that needs quoting everywhere logs in like any other.
    let odd = role(&database, "o'd$1d \\ é", "PASSWORD 'pw'");
    let mut client = RawClient::login(sidecar.port, &odd, "pw", &database.name).await;
    assert_eq!(client.value("SELECT session_user").await, odd);
}

#[tokio::test]
async fn a_query_that_fails_refuses_the_login_and_says_why_in_the_log_only() {
    let database = Postgres::shared().create_database();
    for query in [
        "SELECT nonsense FROM pg_authid WHERE rolname = $1",
        "SELECT '$1'",
        "SELECT rolpassword FROM pg_authid WHERE rolname = $1; SELECT 1",
    ] {
        let sidecar = asking(&database, query).start_ready().await;
        let mut client = RawClient::connect(sidecar.port).await;
        let refusal = client.log_in(USER, PASSWORD, &[("database", &database.name)]).await;
        let report = refusal.expect_err("nothing could be looked up");
        assert_eq!((report.message.as_ref(), report.detail), ("auth_query failed", None));
        sidecar.wait_for_log("auth_query failed").await;
    }
}

#[tokio::test]
async fn answers_are_remembered_and_asked_for_once_by_many() {
    let database = Postgres::shared().create_database();
    Postgres::shared().psql(
        &database.name,
        "CREATE SCHEMA counting; CREATE SEQUENCE counting.asked;
         CREATE FUNCTION counting.password_of(name text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
         PERFORM nextval('counting.asked'); RETURN (SELECT rolpassword FROM pg_catalog.pg_authid WHERE rolname = name);
         END $$",
    );
    let sidecar = asking(&database, "SELECT counting.password_of($1)").start_ready().await;
    let logins = (0..8).map(|_| RawClient::login(sidecar.port, USER, PASSWORD, &database.name));
    let mut waiting = tokio::task::JoinSet::new();
    for _ in logins {
        let (port, name) = (sidecar.port, database.name.clone());
        waiting.spawn(async move { RawClient::login(port, USER, PASSWORD, &name).await });
    }
    assert_eq!(waiting.join_all().await.len(), 8);
    let asked = || Postgres::shared().psql(&database.name, "SELECT last_value FROM counting.asked");
    assert_eq!(asked(), "1");
    RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(asked(), "1");
}

#[tokio::test]
async fn trap_88_a_changed_password_is_looked_up_again_before_anyone_is_refused() {
    let database = Postgres::shared().create_database();
    let user = role(&database, "changing", "PASSWORD 'first'");
    let config = format!(
        "listen: [{{address: '127.0.0.1:$PORT'}}, {{address: 'unix:$DIRECTORY:1', auth: password}}]
auth_query: {{query: '{TWO_COLUMNS}', cache_ttl: 1h}}"
    );
    let sidecar = Sidecar::builder(&database)
        .upstream(database.url_as("postgres", SUPERUSER_PASSWORD))
        .config(config)
        .own_listen()
        .start_ready()
        .await;
    RawClient::login(sidecar.port, &user, "first", &database.name).await;
    Postgres::shared().psql("postgres", &format!("ALTER ROLE {user} PASSWORD 'second'"));
    // An answer is asked for again when it is a second old: by the password method the same login succeeds.
    eventually("a login with the new password", async || {
        let mut client = RawClient::connect_unix(&sidecar.socket_directory().join(".s.PGSQL.1")).await;
        client
            .log_in(&user, "second", &[("database", &database.name)])
            .await
            .ok()?;
        Some(client.value("SELECT session_user").await)
    })
    .await;
    Postgres::shared().psql("postgres", &format!("ALTER ROLE {user} PASSWORD 'third'"));
    // By SCRAM the salt was told already: the login after it does.
    eventually("a login with the newest password", async || {
        let mut client = RawClient::connect(sidecar.port).await;
        client
            .log_in(&user, "third", &[("database", &database.name)])
            .await
            .ok()?;
        Some(client.value("SELECT session_user").await)
    })
    .await;
}

/// Trap 88: by SCRAM the old salt would be told, and the client refused, until the answer is asked for anew.
#[tokio::test]
async fn trap_88_a_password_changed_through_the_pool_is_known_at_the_next_login() {
    let database = Postgres::shared().create_database();
    let user = role(&database, "own", "PASSWORD 'first'");
    let config = format!("auth_query: {{query: '{TWO_COLUMNS}', cache_ttl: 1h, negative_ttl: 1h}}");
    let sidecar = Sidecar::builder(&database)
        .upstream(database.url_as("postgres", SUPERUSER_PASSWORD))
        .config(config)
        .start_ready()
        .await;
    let login = async |user: &str, password: &str| {
        let mut client = RawClient::connect(sidecar.port).await;
        let report = client
            .log_in(user, password, &[("database", &database.name)])
            .await
            .err();
        report.map(|report| report.sqlstate.to_string())
    };
    let wrong = Some("28P01".to_owned());
    let mut client = RawClient::login(sidecar.port, &user, "first", &database.name).await;
    client.ask(&format!("ALTER ROLE {user} PASSWORD 'second'")).await;
    assert_eq!(login(&user, "second").await, None, "a role's own change");
    // What psql's \\password and PQencryptPasswordConn make of "third": the text holds a hash.
    let twin = role(&database, "twin", "PASSWORD 'third'");
    let mut superuser = RawClient::login(sidecar.port, "postgres", SUPERUSER_PASSWORD, &database.name).await;
    let verifier = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{twin}'");
    let verifier = superuser.value(&verifier).await;
    client.ask(&format!("ALTER USER {user} PASSWORD '{verifier}'")).await;
    assert_eq!(login(&user, "third").await, None, "as a verifier");
    client
        .send(&together(&[
            parse("p", "/* new */ ALTER USER CURRENT_USER PASSWORD 'fourth'"),
            bind("", "p", &[]),
            execute("", 0),
            sync(),
        ]))
        .await;
    client.expect("1 2 C Z").await;
    assert_eq!(login(&user, "fourth").await, None, "by the extended protocol");
    client.ask(&format!("BEGIN; ALTER ROLE {user} PASSWORD 'fifth'")).await;
    assert_eq!(login(&user, "fourth").await, None, "not committed yet");
    client.ask("COMMIT").await;
    assert_eq!(login(&user, "fifth").await, None, "committed");
    client
        .ask(&format!("DO $$BEGIN ALTER ROLE {user} PASSWORD 'sixth'; END$$"))
        .await;
    assert_eq!(login(&user, "sixth").await, None, "by a block of code");

    let late = format!("{}_late", database.name);
    assert_eq!(login(&late, "pw").await, wrong);
    superuser.ask(&format!("CREATE USER {late} PASSWORD 'pw'")).await;
    assert_eq!(login(&late, "pw").await, None, "created");
    superuser.ask(&format!("ALTER ROLE {late} RENAME TO {late}r")).await;
    assert_eq!(login(&format!("{late}r"), "pw").await, None, "renamed");
    assert_eq!(login(&late, "pw").await, wrong, "gone by its new name");
    superuser.ask(&format!("DROP ROLE {late}r")).await;
    assert_eq!(login(&format!("{late}r"), "pw").await, wrong, "dropped");
}

#[tokio::test]
async fn a_user_created_just_now_logs_in_after_negative_ttl() {
    let database = Postgres::shared().create_database();
    let sidecar = asking(&database, TWO_COLUMNS).start_ready().await;
    let user = format!("{}_late", database.name);
    assert_eq!(refused(&sidecar, &user, "pw", &database).await, wrong_password(&user));
    role(&database, "late", "PASSWORD 'pw'");
    RawClient::login(sidecar.port, &user, "pw", &database.name).await;
}

/// Trap 29: our own questions replace the unnamed statement of whoever used that backend before.
#[tokio::test]
async fn trap_29_a_lookup_on_a_clients_backend_does_not_lose_its_unnamed_statement() {
    let database = Postgres::shared().create_database();
    let sidecar = asking(&database, TWO_COLUMNS)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut client = RawClient::login(sidecar.port, "postgres", SUPERUSER_PASSWORD, &database.name).await;
    client.send(&together(&[parse("", "SELECT 42"), sync()])).await;
    client.expect("1 Z").await;
    assert_eq!(
        refused(&sidecar, "nobody", "wrong", &database).await,
        wrong_password("nobody")
    );
    client
        .send(&together(&[bind("", "", &[]), execute("", 0), sync()]))
        .await;
    let answer = client.expect("2 D C Z").await;
    assert_eq!(answer[1].row(), [Some("42".to_owned())]);
}
