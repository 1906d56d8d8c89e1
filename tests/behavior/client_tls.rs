//! TLS towards clients: asked for or direct, demanded or not, with certificates on either side.

use std::io::Write as _;
use std::process::Stdio;

use bytes::BytesMut;
use pgsidecar::wire::compose;

use crate::support::certificates;
use crate::support::postgres::{Database, PASSWORD, Postgres, USER};
use crate::support::process::{mortal, psql, run};
use crate::support::raw_client::RawClient;
use crate::support::sidecar::{Builder, Sidecar};

fn with_tls(database: &Database, mode: &str) -> Builder {
    let place = database.directory.display();
    Sidecar::builder(database)
        .set("TLS__MODE", mode)
        .set("TLS__CERT", format!("{place}/server.crt"))
        .set("TLS__KEY", format!("{place}/server.key"))
}

#[tokio::test]
async fn psql_binds_its_scram_exchange_to_the_channel() {
    let database = Postgres::shared().create_database();
    let sidecar = with_tls(&database, "allow").start_ready().await;
    let place = database.directory.display();
    let url = format!(
        "{}?sslmode=verify-ca&sslrootcert={place}/server.crt&channel_binding=require",
        sidecar.url(&database)
    );
    assert_eq!(psql(&url, &["SELECT 1"]).await.ok(), "1");
    // The same without TLS has no channel to bind to.
    let url = format!("{}?sslmode=disable&channel_binding=require", sidecar.url(&database));
    assert_ne!(psql(&url, &["SELECT 1"]).await.code, Some(0));
    let url = format!("{}?sslmode=disable", sidecar.url(&database));
    assert_eq!(psql(&url, &["SELECT 1"]).await.ok(), "1");
}

#[tokio::test]
async fn plus_is_offered_first_and_only_over_tls() {
    let database = Postgres::shared().create_database();
    let sidecar = with_tls(&database, "allow").start_ready().await;
    for (mut client, offered) in [
        (RawClient::connect(sidecar.port).await, &b"SCRAM-SHA-256\0\0"[..]),
        (
            RawClient::connect_tls(sidecar.port).await,
            b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0",
        ),
    ] {
        client.startup(pgsidecar::wire::PROTOCOL_3_0, &[("user", USER)]).await;
        assert_eq!(client.message().await.body.get(4..), Some(offered));
    }
}

#[tokio::test]
async fn trap_83_a_client_that_was_lied_to_about_plus_is_refused() {
    let database = Postgres::shared().create_database();
    let sidecar = with_tls(&database, "allow").start_ready().await;
    let mut client = RawClient::connect_tls(sidecar.port).await;
    client.startup(pgsidecar::wire::PROTOCOL_3_0, &[("user", USER)]).await;
    client.message().await;
    let mut first = BytesMut::new();
    compose::sasl_initial_response(&mut first, "SCRAM-SHA-256", b"y,,n=,r=abcdefgh");
    client.send(&first).await;
    let report = client.message().await.report();
    assert_eq!(
        (report.sqlstate.as_str(), report.message.as_ref()),
        ("28000", "SCRAM channel binding negotiation error")
    );
}

#[tokio::test]
async fn where_tls_is_required_a_plain_login_is_refused_and_a_cancel_is_not() {
    let database = Postgres::shared().create_database();
    let sidecar = with_tls(&database, "require").start_ready().await;
    let mut plain = RawClient::connect(sidecar.port).await;
    plain.startup(pgsidecar::wire::PROTOCOL_3_0, &[("user", USER)]).await;
    assert_eq!(plain.message().await.sqlstate(), "28000");
    assert!(plain.until_closed().await.is_empty());
    let mut client = RawClient::connect_tls(sidecar.port).await;
    client
        .log_in(USER, PASSWORD, &[("database", &database.name)])
        .await
        .expect("the password is right");
    let key = client.cancel_key.clone().expect("BackendKeyData came");
    client.query("SELECT pg_sleep(60)").await;
    sidecar
        .wait_metric("pgsidecar_backends", &[("state", "active")], |backends| backends == 1.0)
        .await;
    crate::support::raw_client::cancel(sidecar.port, &key).await;
    assert_eq!(client.expect("T E Z").await[1].sqlstate(), "57014");
}

#[tokio::test]
async fn trap_05_direct_tls_needs_its_alpn() {
    let database = Postgres::shared().create_database();
    let sidecar = with_tls(&database, "allow").start_ready().await;
    let mut client = RawClient::connect_direct_tls(sidecar.port, &["postgresql"])
        .await
        .expect("direct TLS");
    client
        .log_in(USER, PASSWORD, &[("database", &database.name)])
        .await
        .expect("the password is right");
    assert_eq!(client.value("SELECT 1").await, "1");
    // Without it nothing is read of what follows; with another one there is no handshake.
    let mut nameless = RawClient::connect_direct_tls(sidecar.port, &[])
        .await
        .expect("the handshake itself");
    let _ = nameless.try_send(b"\0\0\0\x08\0\x03\0\0").await;
    assert!(nameless.until_closed().await.iter().all(|message| message.tag == b'E'));
    assert!(
        RawClient::connect_direct_tls(sidecar.port, &["http/1.1"])
            .await
            .is_err()
    );
}

/// OpenSSL's own client, with ALPN (trap 5) and without a goodbye at its end (trap 94).
#[tokio::test]
async fn trap_94_openssl_agrees_on_alpn_and_its_end_without_goodbye_is_no_error() {
    let database = Postgres::shared().create_database();
    let sidecar = with_tls(&database, "allow").start_ready().await;
    let address = format!("127.0.0.1:{}", sidecar.port);
    let arguments = ["s_client", "-connect", &address, "-alpn", "postgresql"];
    for ask in [&[][..], &["-starttls", "postgres"]] {
        let mut command = mortal("openssl");
        command
            .args(arguments)
            .args(ask)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().expect("openssl is installed");
        // A TerminateMessage is no startup packet; what matters is the handshake before it.
        child.stdin.take().unwrap().write_all(b"Q\n").unwrap();
        let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap())
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("ALPN protocol: postgresql"), "{ask:?}: {text}");
        assert!(text.contains("TLSv1.3"), "{text}");
    }
    let mut client = RawClient::connect_tls(sidecar.port).await;
    client
        .log_in(USER, PASSWORD, &[("database", &database.name)])
        .await
        .expect("the password is right");
    assert_eq!(client.value("SELECT 1").await, "1");
    drop(client);
    sidecar
        .wait_metric("pgsidecar_clients", &[], |clients| clients == 0.0)
        .await;
    assert!(!sidecar.log().contains("ERROR"), "{}", sidecar.log());
}

#[tokio::test]
async fn trap_04_no_encryption_is_asked_for_inside_tls() {
    let database = Postgres::shared().create_database();
    let sidecar = with_tls(&database, "allow").start_ready().await;
    for (number, ask) in [
        (5679, compose::ssl_request as fn(&mut BytesMut)),
        (5680, compose::gssenc_request),
    ] {
        let mut client = RawClient::connect_tls(sidecar.port).await;
        let mut request = BytesMut::new();
        ask(&mut request);
        client.send(&request).await;
        let report = client.message().await.report();
        assert_eq!(report.sqlstate.as_str(), "0A000");
        assert!(
            report
                .message
                .starts_with(&format!("unsupported frontend protocol 1234.{number}")),
            "{report}"
        );
    }
}

#[tokio::test]
async fn trap_03_bytes_that_came_before_tls_are_never_read_after_it() {
    let database = Postgres::shared().create_database();
    let sidecar = with_tls(&database, "allow").start_ready().await;
    let mut client = RawClient::connect(sidecar.port).await;
    let mut request = BytesMut::new();
    compose::ssl_request(&mut request);
    compose::startup_message(&mut request, pgsidecar::wire::PROTOCOL_3_0, [("user", "injected")]);
    client.send(&request).await;
    let report = client.message().await.report();
    assert_eq!(
        (report.sqlstate.as_str(), report.message.as_ref()),
        ("08P01", "received unencrypted data after SSL request")
    );
    assert!(client.until_closed().await.is_empty());
}

#[tokio::test]
async fn a_certificate_logs_in_the_user_that_it_names() {
    let database = Postgres::shared().create_database();
    let place = database.directory.display().to_string();
    let config = format!(
        "listen:
  - {{address: '127.0.0.1:$PORT', tls: verify-full, auth: cert}}
  - {{address: '127.0.0.1:$METRICS_PORT1', tls: allow}}
tls: {{mode: allow, cert: {place}/server.crt, key: {place}/server.key, client_ca: {place}/authority.crt}}
users: [{{name: {USER}, password: {PASSWORD}}}, {{name: certified}}]
databases: {{named: {{dbname: {}, user: {USER}}}}}",
        database.name
    );
    let other = crate::support::ports::free_port();
    let config = config.replace("$METRICS_PORT1", &other.to_string());
    let sidecar = Sidecar::builder(&database).config(config).own_listen().start().await;
    let certified = format!("sslmode=require&sslcert={place}/client.crt&sslkey={place}/client.key");
    let url = |user: &str, options: &str| format!("postgres://{user}@127.0.0.1:{}/named?{options}", sidecar.port);
    assert_eq!(psql(&url("certified", &certified), &["SELECT 1"]).await.ok(), "1");
    let refused = psql(&url(USER, &certified), &["SELECT 1"]).await;
    assert!(
        refused
            .stderr
            .contains("certificate authentication failed for user \"app\""),
        "{}",
        refused.stderr
    );
    let without = psql(&url("certified", "sslmode=require&sslcert=/nowhere"), &["SELECT 1"]).await;
    assert_ne!(without.code, Some(0), "a certificate is demanded here");
    // The other listener lets clients do without.
    let url = format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{other}/named?sslmode=require&sslcert=/nowhere");
    assert_eq!(psql(&url, &["SELECT 1"]).await.ok(), "1");
    // A stranger's authority vouches for nobody.
    let directory = tempfile::tempdir().unwrap();
    let stranger = certificates::self_signed(directory.path(), "stranger", "stranger");
    certificates::signed_by(directory.path(), &stranger, "forged", "certified");
    let forged = directory.path().display();
    let url = format!(
        "postgres://certified@127.0.0.1:{}/named?sslmode=require&sslcert={forged}/forged.crt&sslkey={forged}/forged.key",
        sidecar.port
    );
    assert_ne!(psql(&url, &["SELECT 1"]).await.code, Some(0));
}

#[tokio::test]
async fn tls_on_a_plain_port_is_refused_as_tls_says_it() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let error = RawClient::connect_direct_tls(sidecar.port, &["postgresql"])
        .await
        .expect_err("there is no TLS");
    assert!(error.to_string().contains("HandshakeFailure"), "{error}");
    let mut client = RawClient::connect(sidecar.port).await;
    client
        .log_in(USER, PASSWORD, &[("database", &database.name)])
        .await
        .expect("nothing else is disturbed");
}

/// libpq 18 (psycopg's wheel brings it): direct TLS with ALPN, protocol 3.2 at least, a bound channel, a cancel over TLS
/// with the long key.
const LIBPQ_18: &str = r#"
import sys, threading, psycopg
assert psycopg.pq.version() >= 180000, psycopg.pq.version()
for options in ["sslnegotiation=direct", "min_protocol_version=3.2", "max_protocol_version=latest"]:
    url = sys.argv[1] + "?sslmode=require&channel_binding=require&require_auth=scram-sha-256&" + options
    with psycopg.connect(url, autocommit=True) as connection:
        version = connection.pgconn.full_protocol_version
        assert connection.execute("SELECT 6 * 7").fetchone() == (42,)
        done = threading.Event()
        def cancel():
            while not done.wait(0.2):
                connection.cancel_safe()
        thread = threading.Thread(target=cancel)
        thread.start()
        try:
            connection.execute("SELECT pg_sleep(60)")
        except psycopg.errors.QueryCanceled:
            print(options, version)
        done.set()
        thread.join()
"#;

#[tokio::test]
async fn libpq_18_negotiates_direct_tls_and_protocol_3_2() {
    let database = Postgres::shared().create_database();
    let sidecar = with_tls(&database, "require").start_ready().await;
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/.cache/python/bin/python");
    assert!(
        std::path::Path::new(python).exists(),
        "{python} is there (./tests/run installs it)"
    );
    let mut command = mortal(python);
    command.args(["-c", LIBPQ_18, &sidecar.url(&database)]).env_clear();
    let output = run(command, std::time::Duration::from_secs(60)).await.ok();
    let expected = "sslnegotiation=direct 30000\nmin_protocol_version=3.2 30002\nmax_protocol_version=latest 30002";
    assert_eq!(output, expected);
}
