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
    let answer = client.text_until_closed().await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("speaks the PostgreSQL protocol"), "{answer}");
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

#[tokio::test]
async fn trap_06_options_that_nobody_knows_are_negotiated_at_any_version() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    for (version, options, negotiated) in [
        (PROTOCOL_3_0, &[][..], None),
        (PROTOCOL_3_2, &[], None),
        (PROTOCOL_3_0, &["_pq_.one", "_pq_.two"], Some(PROTOCOL_3_0)),
        (PROTOCOL_3_2, &["_pq_.one"], Some(PROTOCOL_3_2)),
        ((3 << 16) | 3, &[], Some(PROTOCOL_3_2)),
        (
            (3 << 16) | 9999,
            &["_pq_.test_protocol_negotiation"],
            Some(PROTOCOL_3_2),
        ),
    ] {
        let mut client = RawClient::connect(sidecar.port).await;
        let mut parameters = vec![("user", USER), ("database", database.name.as_str())];
        parameters.extend(options.iter().map(|option| (*option, "")));
        client.startup(version, &parameters).await;
        if let Some(negotiated) = negotiated {
            let message = client.message().await;
            assert_eq!(char::from(message.tag), 'v');
            let count = u32::try_from(options.len()).unwrap();
            let mut expected = [negotiated.to_be_bytes(), count.to_be_bytes()].concat();
            options
                .iter()
                .for_each(|option| expected.extend([option.as_bytes(), b"\0"].concat()));
            assert_eq!(message.body, expected, "{version:#x}");
            client.forget_seen();
        }
        // Exactly once: anything but authentication and greeting would fail here.
        client.authenticate(USER, PASSWORD).await.expect("the login goes on");
        assert_eq!(client.seen_once(), "RSKZ", "{version:#x}");
        let secret = client.cancel_key.clone().expect("BackendKeyData came").secret;
        assert_eq!(secret.len(), if version >= PROTOCOL_3_2 { 32 } else { 4 });
        assert_eq!(client.value("SELECT 1").await, "1");
    }
}

#[tokio::test]
async fn trap_04_encryption_requests_come_in_either_order_and_each_once() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let (mut ssl, mut gss) = (BytesMut::new(), BytesMut::new());
    compose::ssl_request(&mut ssl);
    compose::gssenc_request(&mut gss);
    for requests in [[&ssl, &gss], [&gss, &ssl]] {
        let mut client = RawClient::connect(sidecar.port).await;
        for request in requests {
            client.send(request).await;
            assert_eq!(client.byte().await, Some(b'N'));
        }
        client
            .log_in(USER, PASSWORD, &[("database", &database.name)])
            .await
            .expect("the login goes on");
    }
    for (request, number) in [(&ssl, 5679), (&gss, 5680)] {
        let mut client = RawClient::connect(sidecar.port).await;
        client.send(request).await;
        assert_eq!(client.byte().await, Some(b'N'));
        client.send(request).await;
        let report = client.message().await.report();
        assert_eq!(report.sqlstate.to_string(), "0A000");
        assert!(report.message.contains(&format!("1234.{number}")), "{report}");
        assert!(client.until_closed().await.is_empty());
    }
}

#[tokio::test]
async fn trap_03_data_behind_a_refused_request_is_an_attack() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut client = RawClient::connect(sidecar.port).await;
    let mut request = BytesMut::new();
    compose::gssenc_request(&mut request);
    compose::startup_message(&mut request, PROTOCOL_3_0, [("user", USER)]);
    client.send(&request).await;
    let report = client.message().await.report();
    assert_eq!(
        report.message,
        "received unencrypted data after GSSAPI encryption request"
    );
}

/// Trap 1: PostgreSQL takes startup packets of up to 10000 bytes, however they are cut.
#[tokio::test]
async fn trap_01_a_startup_packet_of_nearly_ten_thousand_bytes_is_accepted() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let long = "x".repeat(9_800);
    for port in [database.port, sidecar.port] {
        let mut client = RawClient::connect(port).await;
        client
            .log_in(USER, PASSWORD, &[("database", &database.name), ("app.long", &long)])
            .await
            .expect("the login succeeds");
        assert_eq!(client.value("SELECT current_setting('app.long')").await, long);
    }
    for port in [database.port, sidecar.port] {
        let mut client = RawClient::connect(port).await;
        let body = format!("user\0{USER}\0app.long\0{}\0\0", "x".repeat(40_000));
        let len = u32::try_from(body.len() + 8).unwrap().to_be_bytes();
        let packet = [&len[..], &PROTOCOL_3_0.to_be_bytes(), body.as_bytes()].concat();
        let _ = client.try_send(&packet).await;
        let told = client.until_closed().await;
        assert!(told.iter().all(|message| message.tag == b'E'));
        if port == sidecar.port {
            assert_eq!(told[0].report().message, "invalid length of startup packet");
        }
    }
}

#[tokio::test]
async fn malformed_startup_packets_are_refused_as_postgresql_refuses_them() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut bystander = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let packet = |body: &[u8]| [&u32::try_from(body.len() + 4).unwrap().to_be_bytes()[..], body].concat();
    let version = PROTOCOL_3_0.to_be_bytes();
    for body in [
        [&version[..], b"user\0app\0"].concat(),
        [&version[..], b"user\0app\0\0trailing"].concat(),
        [&version[..], b"user"].concat(),
        [&version[..], b"\0"].concat(),
        [&version[..], b"user\0\0\0"].concat(),
        [&version[..], b"database\0x\0\0"].concat(),
        vec![0, 4, 0, 0, 0],
        vec![4, 210, 22, 0x7f, 0],
    ] {
        let mut told = Vec::new();
        for port in [database.port, sidecar.port] {
            let mut client = RawClient::connect(port).await;
            client.send(&packet(&body)).await;
            let messages = client.until_closed().await;
            let report = messages.first().map(|message| message.report());
            let words = report.map(|report| {
                // Versions of ours are not the installed PostgreSQL's.
                let message = report.message.split(": server supports").next().map(str::to_owned);
                (report.severity, report.sqlstate, message)
            });
            told.push(words);
        }
        assert_eq!(told[1], told[0], "{body:?}");
    }
    assert_eq!(bystander.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn malformed_messages_during_the_authentication_end_only_their_sender() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut bystander = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    for words in [
        &b"Q\0\0\0\x0dSELECT 1\0"[..],
        b"p\x7f\xff\xff\xff",
        b"p\0\0\0\x03",
        b"p\0\0\0\x04",
        b"p\0\0\0\x08oops",
        b"p\0\0\0\x18SCRAM-SHA-512\0\0\0\0\x02n,",
        b"\0\0\0\0\0\0\0\0\0\0",
    ] {
        let mut client = RawClient::connect(sidecar.port).await;
        client
            .startup(PROTOCOL_3_0, &[("user", USER), ("database", &database.name)])
            .await;
        client.message().await;
        client.send(words).await;
        let told = client.until_closed().await;
        assert_eq!(told.len(), 1, "{words:?}");
        assert_eq!(told[0].report().severity.as_str(), "FATAL", "{words:?}");
        assert_eq!(told[0].sqlstate(), "08P01", "{words:?}");
    }
    assert_eq!(bystander.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn garbage_is_turned_away_and_disturbs_nobody() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::start(&database).await;
    let mut bystander = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let mut random = vec![0; 100_000];
    getrandom::fill(&mut random).unwrap();
    // Not a TLS record by chance.
    random[0] = b'~';
    for garbage in [
        &random[..],
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"EHLO example.org\r\n",
        &[0xff; 64],
        &[0; 64],
    ] {
        let mut client = RawClient::connect(sidecar.port).await;
        let _ = client.try_send(garbage).await;
        let told = client.until_closed().await;
        assert_eq!(told[0].report().message, "invalid length of startup packet");
    }
    assert_eq!(bystander.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn trap_91_a_half_closed_client_is_a_gone_client() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let idle = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let mut in_block = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    in_block.ask("BEGIN").await;
    for mut client in [idle, in_block] {
        client.shutdown().await;
        assert!(client.until_closed().await.is_empty());
    }
    let mut busy = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    busy.query("SELECT pg_sleep(600)").await;
    sidecar
        .wait_metric("pgsidecar_backends", &[("state", "active")], |backends| backends == 1.0)
        .await;
    busy.shutdown().await;
    sidecar
        .wait_metric("pgsidecar_clients", &[], |clients| clients == 0.0)
        .await;
    // The only backend is free again.
    let mut next = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(next.value("SELECT 1").await, "1");
}

#[tokio::test]
async fn trap_93_a_storm_of_connections_is_served() {
    let database = Postgres::shared().create_database();
    // What the clients spend on their keys is not the point.
    let builder = Sidecar::builder(&database).set("AUTH__SCRAM_ITERATIONS", "1");
    let sidecar = builder.start_ready().await;
    let mut storm = tokio::task::JoinSet::new();
    for _ in 0..150 {
        let (port, name) = (sidecar.port, database.name.clone());
        storm.spawn(async move {
            let mut client = RawClient::login(port, USER, PASSWORD, &name).await;
            client.value("SELECT 1").await
        });
    }
    assert!(storm.join_all().await.iter().all(|value| value == "1"));
}

/// A forked worker that ends says Terminate on the socket that its parent goes on using.
#[tokio::test]
async fn trap_93_a_terminate_of_a_forked_child_ends_the_session_and_nothing_else() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut parent = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    let twice = [
        crate::support::raw_client::terminate(),
        crate::support::raw_client::terminate(),
    ]
    .concat();
    parent.send(&twice).await;
    assert!(parent.until_closed().await.is_empty());
    let mut next = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(next.value("SELECT 1").await, "1");
}
