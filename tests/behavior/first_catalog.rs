//! A client that comes before the catalog of its database was read.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::support::fake_backend::FakeBackend;
use crate::support::postgres::{PASSWORD, USER};
use crate::support::raw_client::RawClient;

/// Who asks for nothing that the catalog tells of waits for nothing: the catalog is not told before that client has its
/// answer. Another's statement, which mentions a routine, waits, and ties nobody.
#[tokio::test]
async fn only_what_mentions_a_routine_waits_for_the_catalog() {
    let answered = Arc::new(Notify::new());
    let may_tell = Arc::clone(&answered);
    let fake = FakeBackend::start(move |mut session| {
        let may_tell = Arc::clone(&may_tell);
        async move {
            session.login().await?;
            if session.number == 0 {
                session.until_query("pg_proc").await?;
                may_tell.notified().await;
                session
                    .complete("SELECT 0", pgsidecar::wire::backend_message::TransactionStatus::Idle)
                    .await?;
            }
            session.serve().await
        }
    })
    .await;
    let sidecar = fake.sidecar().set("POOL__CATALOG_WAIT", "30s").start().await;
    let mut calls = RawClient::login(sidecar.port, USER, PASSWORD, "fake").await;
    let mut plain = RawClient::login(sidecar.port, USER, PASSWORD, "fake").await;
    calls.query("SELECT own_routine()").await;
    assert_eq!(plain.value("SELECT 1").await, "ok");
    let sessions = fake.sessions();
    let mut sent = sessions.iter().flat_map(|session| &session.messages);
    let calls_it = |body: &[u8]| String::from_utf8_lossy(body).contains("own_routine()");
    assert!(!sent.any(|message| calls_it(&message.body)), "{sessions:?}");
    answered.notify_one();
    assert!(calls.until_ready().await.iter().any(|reply| reply.tag == b'D'));
    let pins = sidecar.metric("pgsidecar_pins_total", &[("reason", "unknown")]).await;
    assert_eq!(pins, Some(0.0), "{}", sidecar.log());
}
