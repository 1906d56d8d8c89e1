//! The accounting of one transaction: what was sent is expected, what comes settles it.

#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(clippy::unwrap_used, reason = "the replies are those that are owed")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use pgsidecar::protocol::pipeline::{Fate, Pipeline, Request};
use pgsidecar::wire::BackendTag;

const QUERY: [Request; 1] = [Request::Query];
const QUERY_REPLIES: [(BackendTag, &[u8]); 4] = [
    (BackendTag::RowDescription, b""),
    (BackendTag::DataRow, b""),
    (BackendTag::CommandComplete, b"SELECT 1\0"),
    (BackendTag::ReadyForQuery, b"I"),
];
const EXTENDED: [Request; 5] = [
    Request::Parse,
    Request::Bind,
    Request::DescribePortal,
    Request::Execute,
    Request::Sync,
];
const EXTENDED_REPLIES: [(BackendTag, &[u8]); 6] = [
    (BackendTag::ParseComplete, b""),
    (BackendTag::BindComplete, b""),
    (BackendTag::RowDescription, b""),
    (BackendTag::DataRow, b""),
    (BackendTag::CommandComplete, b"SELECT 1\0"),
    (BackendTag::ReadyForQuery, b"I"),
];

fn transaction(line: &mut Pipeline<u32>, requests: &[Request], replies: &[(BackendTag, &[u8])], is_fast: bool) {
    for request in requests {
        line.expect(*request, Fate::Forward, 0);
    }
    for (tag, body) in replies {
        if !(is_fast && line.passes(tag.byte(), |_| true)) {
            black_box(line.on_frame(*tag, body).unwrap());
        }
    }
    assert!(line.is_settled());
}

fn pipeline(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pipeline");
    let mut line = Pipeline::default();
    for (ways, is_fast) in [("as the relay asks", true), ("by all rules", false)] {
        group.bench_function(format!("query, {ways}"), |bencher| {
            bencher.iter(|| transaction(&mut line, black_box(&QUERY), black_box(&QUERY_REPLIES), is_fast));
        });
        group.bench_function(format!("extended, {ways}"), |bencher| {
            bencher.iter(|| transaction(&mut line, black_box(&EXTENDED), black_box(&EXTENDED_REPLIES), is_fast));
        });
    }
    group.finish();
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
