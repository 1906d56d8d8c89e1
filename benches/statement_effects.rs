//! What a text may do to its session: ordinary statements, which nearly all are, and some that have effects.

#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pgsidecar::virtual_session::sql_lexer::Lexing;
use pgsidecar::virtual_session::statement_effects::classify;
use pgsidecar::virtual_session::suspects::{SuspectKind, Suspects};

const TEXTS: [(&str, &str); 6] = [
    ("point select", "SELECT abalance FROM pgbench_accounts WHERE aid = 42"),
    (
        "update",
        "UPDATE pgbench_accounts SET abalance = abalance + -417 WHERE aid = 6213",
    ),
    (
        "join",
        "SELECT o.id, o.total, c.name FROM shop.orders AS o JOIN shop.customers AS c ON c.id = o.customer_id \
         WHERE o.state IN ('open', 'paid') AND o.created_at > now() - interval '7 days' AND lower(c.name) LIKE $1 \
         ORDER BY o.created_at DESC, o.id LIMIT 50 OFFSET 100",
    ),
    ("begin", "BEGIN"),
    ("set", "SET search_path TO tenant_17, public"),
    (
        "temporary table",
        "CREATE TEMPORARY TABLE scratch AS SELECT * FROM pgbench_accounts",
    ),
];

fn statement_effects(criterion: &mut Criterion) {
    // A database whose catalog was read, with some routines and triggers that may change the session.
    let names: Vec<String> = (0..50).map(|number| format!("suspect_{number}")).collect();
    let suspects = Suspects::known(names.iter().map(|name| (SuspectKind::Mention, name.as_bytes())));
    let mut group = criterion.benchmark_group("statement_effects");
    for (name, text) in TEXTS {
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| classify(black_box(text.as_bytes()), Lexing::default(), &suspects));
        });
    }
    group.finish();
}

criterion_group!(benches, statement_effects);
criterion_main!(benches);
