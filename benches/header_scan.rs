//! The walk from header to header, which is all that the relay does with rows: 64 KiB of small rows, and of large ones.

#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(clippy::unwrap_used, reason = "the frames are well-formed")]

use std::hint::black_box;

use bytes::BytesMut;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pgsidecar::wire::{BackendTag, Header, compose};

const RUN_LEN: usize = 64 * 1024;

fn rows(body_len: usize) -> BytesMut {
    let (mut run, body) = (BytesMut::new(), vec![b'x'; body_len]);
    while run.len() < RUN_LEN {
        compose::frame(&mut run, BackendTag::DataRow.byte(), &[&body]);
    }
    run
}

/// How many messages the run has.
fn scan(run: &[u8]) -> usize {
    let (mut rest, mut count) = (run, 0);
    while let Some(header) = Header::peek(rest).unwrap() {
        black_box(header.backend().unwrap());
        rest = rest.get(header.frame_len()..).unwrap_or_default();
        count += 1;
    }
    count
}

fn header_scan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("header_scan");
    for body_len in [20, 200, 2000] {
        let run = rows(body_len);
        group.throughput(Throughput::Elements(scan(&run) as u64));
        group.bench_with_input(BenchmarkId::new("rows", body_len), &run, |bencher, run| {
            bencher.iter(|| scan(black_box(run)));
        });
    }
    group.finish();
}

criterion_group!(benches, header_scan);
criterion_main!(benches);
