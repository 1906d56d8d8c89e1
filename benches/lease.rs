//! A backend's way to a client and back: the parked one at once, as between two transactions of busy clients.

#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on stops")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

use bytes::BytesMut;
use criterion::{Criterion, criterion_group, criterion_main};
use pgsidecar::config::{Config, Sources};
use pgsidecar::metrics::Metrics;
use pgsidecar::pool::{Holder, Pool, Pools, Wish};
use pgsidecar::wire::backend_message::TransactionStatus;
use pgsidecar::wire::startup_packet::CancelKey;
use pgsidecar::wire::{BackendTag, compose};

/// A server that lets everyone in and has nothing to tell. Returns its port.
fn silent_server() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            std::thread::spawn(move || serve(socket.unwrap()));
        }
    });
    port
}

fn serve(mut socket: TcpStream) {
    let (mut buffer, mut greeting, mut nothing) = ([0; 4096], BytesMut::new(), BytesMut::new());
    compose::authentication_ok(&mut greeting);
    compose::parameter_status(&mut greeting, "server_version", "15.7");
    let (process_id, secret) = (1, vec![0; 4].into());
    compose::backend_key_data(&mut greeting, &CancelKey { process_id, secret });
    compose::ready_for_query(&mut greeting, TransactionStatus::Idle);
    compose::frame(&mut nothing, BackendTag::CommandComplete.byte(), &[b"SELECT 0\0"]);
    compose::ready_for_query(&mut nothing, TransactionStatus::Idle);
    let mut answer = &greeting;
    // Each piece is one message here: who asks waits for the answer.
    while matches!(socket.read(&mut buffer), Ok(1..)) {
        if socket.write_all(answer).is_err() {
            return;
        }
        answer = &nothing;
    }
}

fn pool(pools: &Pools) -> Arc<Pool> {
    pools.pool(&pools.default_key()).unwrap()
}

fn pools(port: u16) -> Pools {
    let url = format!("postgres://app:secret@127.0.0.1:{port}/app?sslmode=disable");
    let sources = Sources {
        environment: BTreeMap::from([("PGSIDECAR_UPSTREAM".to_owned(), url)]),
        root: "/nonexistent".into(),
        system_user: Some("app".to_owned()),
        ..Sources::default()
    };
    Pools::new(Arc::new(Config::load(&sources).unwrap().config), Metrics::new()).unwrap()
}

fn lease(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let pools = pools(silent_server());
    let holder = Holder::new(1, "127.0.0.1:1", Arc::default());
    let pool = runtime.block_on(async {
        let pool = pool(&pools);
        pool.lease(&holder, Wish::Any).await.unwrap().park();
        pool
    });
    criterion.bench_function("lease/take the parked backend and park it", |bencher| {
        bencher.iter(|| pool.try_lease(&holder, Wish::Any).unwrap().park());
    });
    criterion.bench_function("lease/by the line", |bencher| {
        bencher.iter(|| runtime.block_on(async { pool.lease(&holder, Wish::Any).await.unwrap().park() }));
    });
}

criterion_group!(benches, lease);
criterion_main!(benches);
