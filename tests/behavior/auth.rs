//! Who may log in, and what the others are told.

use std::path::Path;

use crate::support::eventually;
use crate::support::postgres::{Database, OTHER_PASSWORD, OTHER_USER, PASSWORD, Postgres, USER};
use crate::support::process::psql;
use crate::support::raw_client::RawClient;
use crate::support::sidecar::Sidecar;

#[tokio::test]
async fn the_upstreams_own_password_logs_in_by_scram() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(client.authentication, [10, 11, 12, 0], "SASL, continue, final, ok");
}

#[tokio::test]
async fn a_wrong_password_is_refused_with_28p01_and_the_connection_closed() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::connect(sidecar.port).await;
    let refusal = client
        .log_in(USER, "not it", &[("database", &database.name)])
        .await
        .expect_err("it is wrong");
    assert_eq!(refusal.sqlstate.to_string(), "28P01");
    assert_eq!(refusal.severity.as_str(), "FATAL");
    assert_eq!(refusal.message, "password authentication failed for user \"app\"");
    assert!(client.until_closed().await.is_empty());
}

#[tokio::test]
async fn trap_83_an_unknown_user_sees_the_same_exchange_as_a_wrong_password() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::connect(sidecar.port).await;
    let refusal = client
        .log_in("nobody", PASSWORD, &[("database", &database.name)])
        .await
        .expect_err("unknown");
    assert_eq!(refusal.sqlstate.to_string(), "28P01");
    assert_eq!(refusal.message, "password authentication failed for user \"nobody\"");
    assert_eq!(
        client.authentication,
        [10, 11],
        "the exchange goes as far as with a wrong password"
    );
}

#[tokio::test]
async fn configured_users_log_in_and_are_themselves_on_the_backend() {
    let database = Postgres::shared().create_database();
    let users = "[{name: app, password: app_password}, {name: other, password: other_password}]";
    let sidecar = Sidecar::builder(&database).set("USERS", users).start().await;
    for (user, password) in [("app", "app_password"), ("other", "other_password")] {
        let mut client = RawClient::login(sidecar.port, user, password, &database.name).await;
        assert_eq!(client.value("SELECT session_user").await, user);
    }
}

#[tokio::test]
async fn the_log_never_shows_a_password() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("LOG__LEVEL", "trace")
        .set("LOG__CONNECTIONS", "true")
        .start()
        .await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client.value("SELECT 'a literal nobody should see'").await;
    let mut refused = RawClient::connect(sidecar.port).await;
    let _ = refused
        .log_in(USER, "a_wrong_password", &[("database", &database.name)])
        .await;
    sidecar.wait_for_log("28P01").await;
    for secret in [PASSWORD, "a_wrong_password", "a literal nobody should see"] {
        assert!(!sidecar.log().contains(secret), "{secret} in:\n{}", sidecar.log());
    }
}

/// A listener per method, on unix sockets with the numbers 1 to 3 in the sidecar's own directory.
const ONE_PER_METHOD: &str = "
listen:
  - {address: '127.0.0.1:$PORT'}
  - {address: 'unix:$DIRECTORY:1', auth: md5}
  - {address: 'unix:$DIRECTORY:2', auth: password}
  - {address: 'unix:$DIRECTORY:3', auth: trust}
";
const MD5: u16 = 1;
const CLEARTEXT: u16 = 2;
const TRUST: u16 = 3;

async fn over_socket(sidecar: &Sidecar, number: u16) -> RawClient {
    let path = sidecar.socket_directory().join(format!(".s.PGSQL.{number}"));
    RawClient::connect_unix(&path).await
}

/// Logs in by a listener of [`ONE_PER_METHOD`], and says whom PostgreSQL takes the client for, and what was asked.
async fn whoami(sidecar: &Sidecar, number: u16, user: &str, password: &str, database: &Database) -> (String, Vec<u32>) {
    let mut client = over_socket(sidecar, number).await;
    client
        .log_in(user, password, &[("database", &database.name)])
        .await
        .unwrap_or_else(|report| panic!("{user} on listener {number}: {report}"));
    (client.value("SELECT session_user").await, client.authentication)
}

fn stored_password(role: &str) -> String {
    let sql = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'");
    Postgres::shared().psql("postgres", &sql)
}

#[tokio::test]
async fn every_method_logs_in_with_every_form_of_a_password_that_it_can_check() {
    let database = Postgres::shared().create_database();
    let (verifier, hash, plain) = (
        stored_password(USER),
        stored_password("hashed"),
        stored_password("plain"),
    );
    let config = format!(
        "{ONE_PER_METHOD}
users:
  - {{name: {OTHER_USER}, password_file: $DIRECTORY/other}}
  - {{name: {USER}, verifier: '{verifier}'}}
  - {{name: hashed, verifier: '{hash}'}}
  - {{name: plain, password_env: PLAIN_VERIFIER}}
  - {{name: trusted}}
"
    );
    let sidecar = Sidecar::builder(&database)
        .file("other", format!("{OTHER_PASSWORD}\n"))
        .variable("PLAIN_VERIFIER", plain)
        .config(config)
        .own_listen()
        .start_ready()
        .await;
    let logged_in = async |number, user, password| whoami(&sidecar, number, user, password, &database).await;
    for (number, user, password, asked) in [
        (MD5, OTHER_USER, OTHER_PASSWORD, &[5, 0][..]),
        (MD5, USER, PASSWORD, &[10, 11, 12, 0]),
        (MD5, "hashed", "hashed_password", &[5, 0]),
        (CLEARTEXT, OTHER_USER, OTHER_PASSWORD, &[3, 0]),
        (CLEARTEXT, USER, PASSWORD, &[3, 0]),
        (CLEARTEXT, "plain", "plain_password", &[3, 0]),
        (TRUST, OTHER_USER, "", &[0]),
        (TRUST, "hashed", "", &[0]),
        (TRUST, "trusted", "", &[0]),
    ] {
        let (seen, codes) = logged_in(number, user, password).await;
        assert_eq!((seen.as_str(), codes.as_slice()), (user, asked), "listener {number}");
    }
    for user in [OTHER_USER, USER] {
        let password = if user == USER { PASSWORD } else { OTHER_PASSWORD };
        let mut client = RawClient::login(sidecar.port, user, password, &database.name).await;
        assert_eq!(client.value("SELECT session_user").await, user);
    }
}

#[tokio::test]
async fn a_client_key_is_passed_through_where_only_a_verifier_is_known() {
    let database = Postgres::shared().create_database();
    let users = format!("[{{name: {OTHER_USER}, verifier: '{}'}}]", stored_password(OTHER_USER));
    let sidecar = Sidecar::builder(&database).set("USERS", users).start_ready().await;
    let url = sidecar.url_as(OTHER_USER, OTHER_PASSWORD, &database.name);
    assert_eq!(psql(&url, &["SELECT session_user"]).await.ok(), OTHER_USER);
}

#[tokio::test]
async fn wrong_passwords_and_unknown_users_are_told_the_same_by_every_method() {
    let database = Postgres::shared().create_database();
    let config = format!("{ONE_PER_METHOD}\nusers: [{{name: {USER}, password: {PASSWORD}}}]");
    let sidecar = Sidecar::builder(&database)
        .config(config)
        .own_listen()
        .start_ready()
        .await;
    for number in [MD5, CLEARTEXT] {
        let mut seen = Vec::new();
        for user in [USER, "nobody"] {
            let mut client = over_socket(&sidecar, number).await;
            let refusal = client.log_in(user, "wrong", &[("database", &database.name)]).await;
            let refusal = refusal.expect_err("the password is wrong");
            assert_eq!(
                refusal.message,
                format!("password authentication failed for user \"{user}\"")
            );
            seen.push((refusal.sqlstate, refusal.severity, client.authentication.clone()));
            assert!(client.until_closed().await.is_empty());
        }
        assert_eq!(seen[0], seen[1], "listener {number}");
    }
}

#[tokio::test]
async fn trust_admits_configured_users_only() {
    let database = Postgres::shared().create_database();
    let config = format!("{ONE_PER_METHOD}\nusers: [{{name: {USER}, password: {PASSWORD}}}]");
    let sidecar = Sidecar::builder(&database)
        .config(config)
        .own_listen()
        .start_ready()
        .await;
    let mut client = over_socket(&sidecar, TRUST).await;
    let refusal = client.log_in("trusted", "", &[("database", &database.name)]).await;
    let refusal = refusal.expect_err("PostgreSQL would have it, but the configuration has not");
    assert_eq!(refusal.sqlstate.to_string(), "28000");
    assert_eq!(refusal.message, "\"trust\" authentication failed for user \"trusted\"");
}

#[tokio::test]
async fn trap_87_a_password_of_64_kilobytes_logs_in_and_a_longer_one_closes_only_itself() {
    let database = Postgres::shared().create_database();
    let long = "p".repeat(65_000);
    let config = format!(
        "{ONE_PER_METHOD}
users: [{{name: {USER}, password_file: $DIRECTORY/long}}]
databases: {{long: {{dbname: {}, user: {USER}}}}}",
        database.name
    );
    let sidecar = Sidecar::builder(&database)
        .file("long", format!("{long}\r\n"))
        .config(config)
        .own_listen()
        .start()
        .await;
    let mut bystander = None;
    for number in [MD5, CLEARTEXT] {
        let mut client = over_socket(&sidecar, number).await;
        client
            .log_in(USER, &long, &[("database", "long")])
            .await
            .expect("the password is right");
        assert_eq!(client.value("SELECT 1").await, "1");
        bystander = Some(client);
    }
    let mut client = RawClient::connect(sidecar.port).await;
    client
        .log_in(USER, &long, &[("database", "long")])
        .await
        .expect("and by SCRAM");
    let mut client = over_socket(&sidecar, CLEARTEXT).await;
    let refusal = client.log_in(USER, &"p".repeat(70_000), &[("database", "long")]).await;
    assert_eq!(
        refusal.expect_err("no password is that long").sqlstate.to_string(),
        "08P01"
    );
    assert_eq!(bystander.unwrap().value("SELECT 1").await, "1");
}

#[tokio::test]
async fn trap_87_passwords_are_prepared_as_saslprep_says() {
    let database = Postgres::shared().create_database();
    // A soft hyphen maps to nothing, a no-break space to a space, and the Roman numeral to two letters.
    let users = "[{name: app, password: \"I\\u00adX \\u2163\"}]";
    let config = format!(
        "databases: {{prepared: {{dbname: {}, user: {USER}}}}}\nusers: {users}",
        database.name
    );
    let sidecar = Sidecar::builder(&database).config(config).start().await;
    let url = sidecar.url_as(USER, "IX%C2%A0IV", "prepared");
    assert_eq!(psql(&url, &["SELECT 1"]).await.ok(), "1");
}

#[tokio::test]
async fn trap_88_a_changed_password_file_is_read_before_anyone_is_refused() {
    let database = Postgres::shared().create_database();
    let config = format!(
        "{ONE_PER_METHOD}
users: [{{name: {USER}, password_file: $DIRECTORY/rotated}}]
databases: {{rotated: {{dbname: {}, user: {USER}}}}}",
        database.name
    );
    let sidecar = Sidecar::builder(&database)
        .file("rotated", "first")
        .config(config)
        .own_listen()
        .start()
        .await;
    RawClient::login(sidecar.port, USER, "first", "rotated").await;
    for (password, number) in [("second", None), ("third", Some(MD5)), ("fourth", Some(CLEARTEXT))] {
        std::fs::write(sidecar.socket_directory().join("rotated"), format!("{password}\n")).unwrap();
        let mut client = match number {
            None => RawClient::connect(sidecar.port).await,
            Some(number) => over_socket(&sidecar, number).await,
        };
        client
            .log_in(USER, password, &[("database", "rotated")])
            .await
            .expect("the new password is right");
        assert_eq!(client.value("SELECT 1").await, "1");
    }
    let mut client = RawClient::connect(sidecar.port).await;
    let refusal = client.log_in(USER, "first", &[("database", "rotated")]).await;
    assert_eq!(refusal.expect_err("the old one is not").sqlstate.to_string(), "28P01");
}

#[tokio::test]
async fn users_follow_a_reload_and_nobody_is_dropped() {
    let database = Postgres::shared().create_database();
    let config = |password: &str| {
        format!(
            "users: [{{name: {USER}, password: {password}}}]\ndatabases: {{named: {{dbname: {}, user: {USER}}}}}",
            database.name
        )
    };
    let sidecar = Sidecar::builder(&database).config(config("first")).start().await;
    let mut before = RawClient::login(sidecar.port, USER, "first", "named").await;
    std::fs::write(sidecar.socket_directory().join("config.yaml"), config("second")).unwrap();
    sidecar.signal(nix::sys::signal::Signal::SIGHUP);
    sidecar.wait_for_log("reloaded").await;
    RawClient::login(sidecar.port, USER, "second", "named").await;
    let mut late = RawClient::connect(sidecar.port).await;
    late.log_in(USER, "first", &[("database", "named")])
        .await
        .expect_err("the old password is gone");
    assert_eq!(before.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn where_no_password_is_known_the_start_is_refused_and_the_key_named() {
    for upstream in [
        "postgres://app@127.0.0.1:1/app?sslmode=disable",
        "postgres://trusted@127.0.0.1:1/app?sslmode=disable",
    ] {
        let mut sidecar = crate::support::sidecar::Builder::default().upstream(upstream).spawn();
        assert_eq!(sidecar.wait_exit().await.code(), Some(1), "{}", sidecar.log());
        sidecar.wait_for_log("users").await;
    }
    let mut sidecar = crate::support::sidecar::Builder::default()
        .upstream("postgres://app@127.0.0.1:1/app?sslmode=disable")
        .set("UPSTREAM__PASSWORD_COMMAND", "echo secret")
        .spawn();
    assert_eq!(sidecar.wait_exit().await.code(), Some(1), "{}", sidecar.log());
    let log = eventually("the refusal", async || {
        Some(sidecar.log()).filter(|log| log.contains("users"))
    })
    .await;
    assert!(log.contains("auth_query") && log.lines().count() <= 2, "{log}");
}

/// Trap 12: whoever goes away during the authentication leaves nothing behind.
#[tokio::test]
async fn trap_12_clients_may_leave_at_any_byte_of_the_login() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("LIMITS__MAX_UNAUTHENTICATED", "1")
        .start_ready()
        .await;
    for gone_after in 0..4 {
        let mut client = RawClient::connect(sidecar.port).await;
        match gone_after {
            0 => {}
            1 => client.send(&[0, 0]).await,
            2 => client.startup(pgsidecar::wire::PROTOCOL_3_0, &[("user", USER)]).await,
            _ => {
                client.startup(pgsidecar::wire::PROTOCOL_3_0, &[("user", USER)]).await;
                client.message().await;
                client.send(&crate::support::raw_client::terminate()).await;
            }
        }
        drop(client);
        // The only place is free again.
        eventually("a login", async || {
            let mut next = RawClient::connect(sidecar.port).await;
            next.log_in(USER, PASSWORD, &[("database", &database.name)]).await.ok()
        })
        .await;
    }
    assert!(Path::new(&sidecar.socket()).exists());
}
