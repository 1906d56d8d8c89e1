//! Requests for `tests/django`, by one thread that costs the app next to nothing of the processors they share.
//!
//! ```text
//! http_burst PORT PATH WORKERS REQUESTS
//! ```
//!
//! So many workers each take the next request as soon as their own is answered: GET by HTTP/1.1 to 127.0.0.1, in a connection
//! of its own. For each request, in the order they began, a line: the two durations of the answer's Server-Timing, or `error`
//! for any answer but 200 with `"schools"` in it.

#![allow(clippy::unwrap_used, reason = "a load generator that can't go on stops")]

use std::cell::{Cell, RefCell};
use std::io::{BufWriter, Write};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::header::{HOST, HeaderMap};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::timeout;

/// A server that does not answer for so long has failed.
const PATIENCE: Duration = Duration::from_secs(30);
const EXPECTED: &[u8] = b"\"schools\"";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [port, path, workers, requests] = arguments.as_slice() else {
        panic!("http_burst PORT PATH WORKERS REQUESTS");
    };
    let (workers, requests): (usize, usize) = (workers.parse().unwrap(), requests.parse().unwrap());
    let load = Rc::new(Load {
        port: port.parse().unwrap(),
        path: path.clone(),
        begun: Cell::new(0),
        answers: RefCell::new(vec![None; requests]),
    });
    let tasks = LocalSet::new();
    for _ in 0..workers {
        tasks.spawn_local(Rc::clone(&load).work());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(tasks);
    let mut out = BufWriter::new(std::io::stdout().lock());
    for answer in load.answers.borrow().iter() {
        let line = answer
            .as_ref()
            .map_or("error".to_owned(), |[acquire, total]| format!("{acquire} {total}"));
        writeln!(out, "{line}").unwrap();
    }
    out.flush().unwrap();
}

/// How long the request waited for its connection and how long it took, in milliseconds, as the app says.
type Durations = [f64; 2];

struct Load {
    port: u16,
    path: String,
    begun: Cell<usize>,
    answers: RefCell<Vec<Option<Durations>>>,
}

impl Load {
    async fn work(self: Rc<Self>) {
        loop {
            let index = self.begun.replace(self.begun.get() + 1);
            if index >= self.answers.borrow().len() {
                return;
            }
            let answer = timeout(PATIENCE, self.request()).await;
            self.answers.borrow_mut()[index] = answer.ok().flatten();
        }
    }

    async fn request(&self) -> Option<Durations> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.ok()?;
        let request = Request::get(&self.path).header(HOST, format!("127.0.0.1:{}", self.port));
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        let exchange = async {
            let answer = sender.send_request(request).await.ok()?;
            let durations = (answer.status() == StatusCode::OK).then(|| durations(answer.headers()))??;
            let body = answer.into_body().collect().await.ok()?.to_bytes();
            body.windows(EXPECTED.len())
                .any(|part| part == EXPECTED)
                .then_some(durations)
        };
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            answer = &mut exchange => return answer,
            // A server that closes does so before the exchange has seen its last bytes; what it has seen decides.
            _ = connection => {}
        }
        exchange.await
    }
}

/// `acquire;dur=0.712, total;dur=155.1`
fn durations(headers: &HeaderMap) -> Option<Durations> {
    let timing = headers.get("server-timing")?.to_str().ok()?;
    let mut found = timing.split(',').map(|part| part.split_once(";dur=")?.1.parse().ok());
    let durations = [found.next()??, found.next()??];
    found.next().is_none().then_some(durations)
}
