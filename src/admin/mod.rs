//! The HTTP endpoint for Prometheus, probes and humans: `/metrics`, `/healthz`, `/readyz` and a status page.
//!
//! It is served beside the data path and must never slow it: what takes longer than a moment is made on a thread for
//! blocking work, one at a time (trap 92); connections are few, short and bounded in every dimension.

mod health;
mod healthcheck;
mod status;
mod status_page;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use healthcheck::healthcheck;
pub use status::{PoolStatus, Status, StatusSource};

use crate::metrics::Metrics;

/// Connections served at once; further ones wait in the listen queue.
const CONNECTIONS_MAX: u32 = 64;
/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a page may take to make, the wait for the one before included.
const RENDER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may last in all. It serves one request: a kept-alive one would hold one of few places.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);
/// The request line and headers together; hyper's smallest.
const REQUEST_BYTES_MAX: usize = 8 * 1024;
const REQUEST_HEADERS_MAX: usize = 64;
/// How long answers under way may take at the very end.
const LAST_ANSWERS_TIMEOUT: Duration = Duration::from_secs(1);
/// What to wait after a failed accept (trap 89: EMFILE does not go away by asking again).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";
const NOT_FOUND: &str = "not found; there are:\n/\n/metrics\n/healthz\n/readyz\n";

/// What the endpoint tells about.
#[derive(Debug, Clone)]
pub struct AdminState {
    /// `/metrics`, and through its readiness `/readyz`.
    pub metrics: Arc<Metrics>,
    /// The status page's pools.
    pub status: StatusSource,
}

/// Serves until `shutdown` is ready; then answers what was asked and returns. It goes last in a drain, so that metrics
/// and health stay up to the end (trap 90). Errors of the listener are logged and waited out, never returned.
pub async fn serve(listener: TcpListener, state: AdminState, shutdown: impl Future<Output = ()>) {
    let endpoint = Arc::new(Endpoint {
        state,
        rendering: Arc::new(Semaphore::new(1)),
    });
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX as usize));
    tokio::select! {
        () = shutdown => {}
        () = accept(&listener, &endpoint, &places) => {}
    }
    drop(listener);
    // All places free means that every answer has been given.
    let _ = tokio::time::timeout(LAST_ANSWERS_TIMEOUT, places.acquire_many(CONNECTIONS_MAX)).await;
}

async fn accept(listener: &TcpListener, endpoint: &Arc<Endpoint>, places: &Arc<Semaphore>) {
    loop {
        let Ok(place) = Arc::clone(places).acquire_owned().await else {
            return; // Nobody closes it.
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve_connection(stream, Arc::clone(endpoint), place));
            }
            Err(error) => {
                tracing::warn!(%error, "the metrics endpoint can't accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, endpoint: Arc<Endpoint>, place: OwnedSemaphorePermit) {
    let service = service_fn(move |request| {
        let endpoint = Arc::clone(&endpoint);
        async move { Ok::<_, Infallible>(endpoint.answer(&request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(REQUEST_BYTES_MAX)
        .max_headers(REQUEST_HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection to the metrics endpoint failed"),
        Err(_) => tracing::debug!("a connection to the metrics endpoint took too long"),
    }
    drop(place);
}

struct Endpoint {
    state: AdminState,
    /// One page is made at a time: ten scrapers at once must not take ten threads' time from the clients.
    rendering: Arc<Semaphore>,
}

impl Endpoint {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        // hyper leaves the body of an answer to HEAD away and keeps its length.
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refusal = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".to_owned());
            refusal
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        match request.uri().path() {
            "/metrics" => {
                let metrics = Arc::clone(&self.state.metrics);
                self.rendered(EXPOSITION, move || metrics.render()).await
            }
            "/healthz" => plain(health::healthz()),
            "/readyz" => plain(health::readyz(self.state.metrics.readiness())),
            "/" => {
                let AdminState { metrics, status } = self.state.clone();
                self.rendered(HTML, move || status_page::render(&status.look(), &metrics))
                    .await
            }
            _ => plain((StatusCode::NOT_FOUND, NOT_FOUND.to_owned())),
        }
    }

    /// Makes a page where blocking harms nobody, and gives up on it after a while. A page that hangs keeps the permit:
    /// those behind it fail as well, and no further thread hangs.
    async fn rendered(
        &self,
        content_type: &'static str,
        render: impl FnOnce() -> String + Send + 'static,
    ) -> Response<Full<Bytes>> {
        let rendering = Arc::clone(&self.rendering);
        let page = async move {
            let permit = rendering.acquire_owned().await.ok()?;
            let page = tokio::task::spawn_blocking(move || {
                let page = render();
                drop(permit);
                page
            });
            page.await.ok()
        };
        match tokio::time::timeout(RENDER_TIMEOUT, page).await {
            Ok(Some(page)) => response(StatusCode::OK, content_type, page),
            Ok(None) => plain((
                StatusCode::INTERNAL_SERVER_ERROR,
                "making this page failed\n".to_owned(),
            )),
            Err(_) => plain((
                StatusCode::SERVICE_UNAVAILABLE,
                "making this page took too long\n".to_owned(),
            )),
        }
    }
}

fn plain((status, text): (StatusCode, String)) -> Response<Full<Bytes>> {
    response(status, TEXT, text)
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    for (name, value) in [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // Whatever a database is called, the page runs nothing and loads nothing.
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'",
        ),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Empty};
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    struct Served {
        address: SocketAddr,
        metrics: Arc<Metrics>,
        stop: oneshot::Sender<()>,
        task: JoinHandle<()>,
    }

    async fn served() -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("bound");
        let metrics = Metrics::new();
        let look = || Status {
            pools: vec![PoolStatus {
                database: "<b>".into(),
                ..PoolStatus::default()
            }],
            ..Status::default()
        };
        let state = AdminState {
            metrics: Arc::clone(&metrics),
            status: StatusSource::new(look),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(serve(listener, state, async move {
            let _ = stopped.await;
        }));
        Served {
            address,
            metrics,
            stop,
            task,
        }
    }

    async fn ask(address: SocketAddr, method: Method, path: &str) -> (StatusCode, hyper::HeaderMap, String) {
        let stream = TcpStream::connect(address).await.expect("connect");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .expect("handshake");
        let connection = tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header(header::HOST, "test");
        let answer = sender
            .send_request(request.body(Empty::<Bytes>::new()).expect("a request"))
            .await
            .expect("an answer");
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        connection.abort();
        (
            parts.status,
            parts.headers,
            String::from_utf8(body.to_vec()).expect("text"),
        )
    }

    #[tokio::test]
    async fn metrics_are_served_in_the_exposition_format() {
        let served = served().await;
        served.metrics.client_connected();
        let (status, headers, body) = ask(served.address, Method::GET, "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers[header::CONTENT_TYPE], EXPOSITION);
        assert!(body.contains("pgsidecar_client_connections_total 1\n"), "{body}");
    }

    #[tokio::test]
    async fn health_is_always_ok_and_readiness_follows_the_facts() {
        let served = served().await;
        assert_eq!(ask(served.address, Method::GET, "/healthz").await.0, StatusCode::OK);
        let (status, _, why) = ask(served.address, Method::GET, "/readyz").await;
        assert_eq!((status, why.lines().count()), (StatusCode::SERVICE_UNAVAILABLE, 1));
        served.metrics.readiness().upstream_login_succeeded();
        assert_eq!(
            ask(served.address, Method::GET, "/readyz?verbose").await.0,
            StatusCode::OK
        );
        served.metrics.readiness().set_draining();
        assert_eq!(
            ask(served.address, Method::GET, "/readyz").await.0,
            StatusCode::SERVICE_UNAVAILABLE
        );
    }

    #[tokio::test]
    async fn healthcheck_tells_the_first_line_or_why_not() {
        let served = served().await;
        let check = |path| healthcheck(served.address, path, Duration::from_secs(5));
        assert_eq!(check("/healthz").await, Ok("ok".to_owned()));
        let error = check("/readyz").await.expect_err("nobody has logged in");
        assert!(
            error.ends_with("/readyz: 503: not ready: no login to PostgreSQL has succeeded since start"),
            "{error}"
        );
        served.metrics.readiness().upstream_login_succeeded();
        assert_eq!(check("/readyz").await, Ok("ready".to_owned()));
    }

    #[tokio::test]
    async fn the_status_page_is_html_that_runs_nothing() {
        let served = served().await;
        let (status, headers, body) = ask(served.address, Method::GET, "/").await;
        assert_eq!(
            (status, &headers[header::CONTENT_TYPE]),
            (StatusCode::OK, &HeaderValue::from_static(HTML))
        );
        assert!(
            headers[header::CONTENT_SECURITY_POLICY]
                .to_str()
                .is_ok_and(|csp| csp.starts_with("default-src 'none'"))
        );
        assert!(body.contains("&lt;b&gt;") && !body.contains("<b>"));
    }

    #[tokio::test]
    async fn head_has_the_length_and_no_body() {
        let served = served().await;
        let (status, headers, body) = ask(served.address, Method::HEAD, "/healthz").await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, ""));
        assert_eq!(headers[header::CONTENT_LENGTH], "3");
    }

    #[tokio::test]
    async fn other_methods_and_paths_are_told_what_there_is() {
        let served = served().await;
        let (status, headers, _) = ask(served.address, Method::POST, "/metrics").await;
        assert_eq!(
            (status, &headers[header::ALLOW]),
            (StatusCode::METHOD_NOT_ALLOWED, &HeaderValue::from_static("GET, HEAD"))
        );
        let (status, _, body) = ask(served.address, Method::GET, "/metric").await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(body.contains("/metrics\n"));
    }

    #[tokio::test]
    async fn an_oversized_request_or_garbage_is_refused_and_disturbs_nobody() {
        let served = served().await;
        let oversized = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(2 * REQUEST_BYTES_MAX));
        for bytes in [
            oversized.as_bytes(),
            b"\x00\x00\x00\x08\x04\xd2\x16\x2f\r\n\r\n".as_slice(),
        ] {
            let mut stream = TcpStream::connect(served.address).await.expect("connect");
            let _ = stream.write_all(bytes).await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
        }
        assert_eq!(ask(served.address, Method::GET, "/healthz").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn a_client_that_sends_nothing_is_closed() {
        let served = served().await;
        let mut silent = TcpStream::connect(served.address).await.expect("connect");
        // Accepted: a later connection has been answered.
        ask(served.address, Method::GET, "/healthz").await;
        tokio::time::pause();
        let mut answer = Vec::new();
        let _ = silent.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{answer:?}");
    }

    #[tokio::test]
    async fn places_taken_by_silence_are_free_again_after_their_time() {
        let served = served().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            silent.push(TcpStream::connect(served.address).await.expect("connect"));
        }
        let asked = tokio::spawn(ask(served.address, Method::GET, "/healthz"));
        tokio::task::yield_now().await;
        tokio::time::pause();
        assert_eq!(asked.await.expect("answered").0, StatusCode::OK);
    }

    #[tokio::test]
    async fn trap_92_a_scrape_that_hangs_fails_alone() {
        let served = served().await;
        let (let_go, hold) = std::sync::mpsc::channel::<()>();
        let hold = std::sync::Mutex::new(hold);
        served.metrics.on_scrape(move || {
            let _ = hold.lock().expect("not poisoned").recv();
        });
        let scrape = tokio::spawn(ask(served.address, Method::GET, "/metrics"));
        assert_eq!(ask(served.address, Method::GET, "/healthz").await.0, StatusCode::OK);
        assert!(!scrape.is_finished());
        drop(let_go);
        assert_eq!(scrape.await.expect("answered").0, StatusCode::OK);
    }

    #[tokio::test]
    async fn trap_90_serving_ends_only_when_told() {
        let served = served().await;
        served.metrics.readiness().set_draining();
        assert_eq!(ask(served.address, Method::GET, "/metrics").await.0, StatusCode::OK);
        served.stop.send(()).expect("it still serves");
        served.task.await.expect("no panic");
        assert!(TcpStream::connect(served.address).await.is_err());
    }
}
