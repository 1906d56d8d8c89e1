//! First packets: encryption requests, versions, parameters, and what is no startup packet at all.

use bytes::BytesMut;
use pgsidecar::wire::{PROTOCOL_3_0, PROTOCOL_3_2, compose};

use crate::support::postgres::{PASSWORD, Postgres, USER};
use crate::support::process::psql;
use crate::support::raw_client::RawClient;
use crate::support::sidecar::Sidecar;

#[tokio::test]
async fn psql_runs_a_query_over_tcp_and_over_the_unix_socket() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    assert_eq!(psql(&sidecar.url(&database), &["SELECT 6 * 7"]).await.ok(), "42");
    let directory = sidecar.socket_directory().display().to_string().replace('/', "%2F");
    let url = format!(
        "postgres://{USER}:{PASSWORD}@{directory}:{}/{}",
        sidecar.port, database.name
    );
    assert_eq!(psql(&url, &["SELECT 6 * 7"]).await.ok(), "42");
}

#[tokio::test]
async fn psql_runs_a_query_on_postgresql_18() {
    let database = Postgres::shared_18().create_database();
    let sidecar = Sidecar::start(&database).await;
    assert_eq!(
        psql(&sidecar.url(&database), &["SHOW server_version_num"])
            .await
            .ok()
            .get(..2),
        Some("18")
    );
}

#[tokio::test]
async fn trap_04_gss_and_then_tls_are_declined_where_neither_is_configured() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::connect(sidecar.port).await;
    let mut request = BytesMut::new();
    compose::gssenc_request(&mut request);
    client.send(&request).await;
    assert_eq!(client.byte().await, Some(b'N'));
    request.clear();
    compose::ssl_request(&mut request);
    client.send(&request).await;
    assert_eq!(client.byte().await, Some(b'N'));
    client
        .log_in(USER, PASSWORD, &[("database", &database.name)])
        .await
        .expect("the login goes on");
}

#[tokio::test]
async fn trap_01_a_startup_packet_may_arrive_byte_by_byte() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::connect(sidecar.port).await;
    let mut packet = BytesMut::new();
    compose::startup_message(
        &mut packet,
        PROTOCOL_3_0,
        [("user", USER), ("database", database.name.as_str())],
    );
    for byte in packet {
        client.send(&[byte]).await;
    }
    client.authenticate(USER, PASSWORD).await.expect("the login succeeds");
}

#[tokio::test]
async fn trap_02_a_length_out_of_range_is_refused_and_disturbs_nobody() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut bystander = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    for word in [0u32, 7, 10_001, 0x7fff_ffff, u32::MAX] {
        let mut client = RawClient::connect(sidecar.port).await;
        let _ = client.try_send(&word.to_be_bytes()).await;
        let _ = client.try_send(&[0; 4]).await;
        assert!(
            client.until_closed().await.iter().all(|message| message.tag == b'E'),
            "{word:#x}"
        );
    }
    assert_eq!(bystander.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn http_on_the_postgresql_port_is_turned_away() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::connect(sidecar.port).await;
    client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    client.bytes_until_closed().await;
}

#[tokio::test]
async fn trap_06_a_newer_minor_version_is_negotiated_once() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::connect(sidecar.port).await;
    let options = [("user", USER), ("database", &database.name), ("_pq_.grease", "1")];
    client.startup((3 << 16) | 9999, &options).await;
    let message = client.message().await;
    assert_eq!(char::from(message.tag), 'v');
    assert_eq!(
        message.body.get(..4),
        Some(&PROTOCOL_3_2.to_be_bytes()[..]),
        "the newest version that we speak"
    );
    assert!(message.body.ends_with(b"_pq_.grease\0"));
    client.authenticate(USER, PASSWORD).await.expect("the login goes on");
}

#[tokio::test]
async fn trap_06_another_major_version_is_refused_with_0a000() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::connect(sidecar.port).await;
    client.startup(2 << 16, &[("user", USER)]).await;
    assert_eq!(client.message().await.sqlstate(), "0A000");
    assert!(client.until_closed().await.is_empty());
}

#[tokio::test]
async fn the_greeting_reports_what_postgresql_reports() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let parameters = [
        ("database", database.name.as_str()),
        ("application_name", "greeted"),
        ("timezone", "asia/tokyo"),
    ];
    let mut direct = RawClient::connect(database.port).await;
    direct
        .log_in(USER, PASSWORD, &parameters)
        .await
        .expect("PostgreSQL lets us in");
    let mut through = RawClient::connect(sidecar.port).await;
    through
        .log_in(USER, PASSWORD, &parameters)
        .await
        .expect("the login succeeds");
    direct.parameters.sort();
    through.parameters.sort();
    assert_eq!(through.parameters, direct.parameters);
}

#[tokio::test]
async fn process_ids_are_unique_and_can_name_no_backend() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
        let key = client.cancel_key.clone().expect("BackendKeyData came");
        assert!(key.process_id > 1 << 22 && !seen.contains(&key.process_id), "{key:?}");
        assert_eq!(key.secret.len(), 4);
        seen.push(key.process_id);
    }
}

#[tokio::test]
async fn protocol_3_2_gets_a_cancel_key_of_32_bytes() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::connect(sidecar.port).await;
    client
        .startup(PROTOCOL_3_2, &[("user", USER), ("database", &database.name)])
        .await;
    client.authenticate(USER, PASSWORD).await.expect("the login succeeds");
    assert_eq!(client.cancel_key.expect("BackendKeyData came").secret.len(), 32);
}

#[tokio::test]
async fn a_database_that_does_not_exist_is_refused_in_postgresqls_words() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::connect(sidecar.port).await;
    let refusal = client
        .log_in(USER, PASSWORD, &[("database", "nowhere")])
        .await
        .expect_err("no such database");
    assert_eq!(refusal.sqlstate.to_string(), "3D000");
    assert_eq!(refusal.message, "database \"nowhere\" does not exist");
}
