//! COPY in both directions, its failures, and what comes late.

use crate::support::postgres::{PASSWORD, Postgres, USER};
use crate::support::raw_client::{RawClient, copy_data, copy_done, copy_fail, flush, query, sync, tags, together};
use crate::support::sidecar::Sidecar;

async fn client_with_table() -> (Sidecar, RawClient) {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut client = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    client.ask("CREATE TABLE numbers (x int)").await;
    (sidecar, client)
}

#[tokio::test]
async fn rows_are_copied_in_and_out() {
    let (_sidecar, mut client) = client_with_table().await;
    client.query("COPY numbers FROM STDIN").await;
    client.expect("G").await;
    client
        .send(&together(&[copy_data(b"1\n2\n"), copy_data(b"3\n"), copy_done()]))
        .await;
    assert_eq!(client.expect("C Z").await[0].command(), "COPY 3");
    let answer = client.ask("COPY numbers TO STDOUT").await;
    assert_eq!(tags(&answer), "HdddcCZ");
}

#[tokio::test]
async fn trap_50_a_failed_copy_and_the_syncs_inside_it_owe_nothing() {
    let (_sidecar, mut client) = client_with_table().await;
    client.query("COPY numbers FROM STDIN").await;
    client.expect("G").await;
    client
        .send(&together(&[
            copy_data(b"1\n"),
            flush(),
            sync(),
            copy_fail("changed my mind"),
        ]))
        .await;
    assert_eq!(client.expect("E Z").await[0].sqlstate(), "57014");
    assert_eq!(client.value("SELECT count(*) FROM numbers").await, "0");
}

#[tokio::test]
async fn trap_49_copy_data_behind_an_error_reaches_nobody() {
    let (_sidecar, mut client) = client_with_table().await;
    client.query("COPY numbers FROM STDIN").await;
    client.expect("G").await;
    client.send(&copy_data(b"not a number\n")).await;
    client.send(&together(&[copy_data(b"1\n"), copy_done()])).await;
    assert_eq!(client.expect("E Z").await[0].sqlstate(), "22P02");
    client.send(&together(&[copy_data(b"2\n"), copy_done()])).await;
    assert_eq!(client.value("SELECT count(*) FROM numbers").await, "0");
}

#[tokio::test]
async fn trap_51_a_client_gone_inside_a_copy_leaves_a_usable_pool() {
    let database = Postgres::shared().create_database();
    let sidecar = Sidecar::builder(&database)
        .set("POOL__MAX_SIZE", "1")
        .start_ready()
        .await;
    let mut first = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    first.ask("CREATE TABLE numbers (x int)").await;
    first.query("COPY numbers FROM STDIN").await;
    first.expect("G").await;
    first.send(&copy_data(b"1\n")).await;
    drop(first);
    let mut second = RawClient::login(sidecar.port, USER, PASSWORD, &database.name).await;
    assert_eq!(second.value("SELECT count(*) FROM numbers").await, "0");
}

#[tokio::test]
async fn trap_53_several_copies_in_one_query_have_one_ready_for_query() {
    let (_sidecar, mut client) = client_with_table().await;
    client
        .send(&query(
            "COPY numbers FROM STDIN; COPY numbers FROM STDIN; COPY numbers TO STDOUT",
        ))
        .await;
    client.expect("G").await;
    client.send(&together(&[copy_data(b"1\n"), copy_done()])).await;
    client.expect("C G").await;
    client.send(&together(&[copy_data(b"2\n"), copy_done()])).await;
    client.expect("C H d d c C Z").await;
}

#[tokio::test]
async fn a_large_copy_passes_whole() {
    let (_sidecar, mut client) = client_with_table().await;
    let total: usize = client
        .ask("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 20000)) TO STDOUT")
        .await
        .iter()
        .filter(|message| message.tag == b'd')
        .map(|message| message.body.len())
        .sum();
    assert_eq!(total, 20_000 * 1001);
}

#[tokio::test]
async fn a_long_copy_moves_the_metrics_while_it_runs() {
    let (sidecar, mut client) = client_with_table().await;
    let counted = async |direction: &str| {
        let labels = [("direction", direction)];
        sidecar.metric("pgsidecar_bytes_total", &labels).await.unwrap_or(0.0)
    };
    let before = counted("to_client").await;
    client
        .query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 20000)) TO STDOUT")
        .await;
    client.expect("H").await;
    // Unread, it fills the buffers and stops there.
    let is_seen = async || (counted("to_client").await - before > 1e6).then_some(());
    crate::support::eventually("bytes of an unread COPY", is_seen).await;
    assert!(counted("to_client").await - before < 19e6, "it still runs");
    client.until_ready().await;
    // A slow one is told of by time.
    client.query("COPY numbers FROM STDIN").await;
    client.expect("G").await;
    let before = counted("to_backend").await;
    crate::support::eventually("bytes of a slow COPY", async || {
        client.send(&copy_data(b"1\n")).await;
        (counted("to_backend").await > before).then_some(())
    })
    .await;
    client.send(&copy_done()).await;
    client.expect("C Z").await;
}
