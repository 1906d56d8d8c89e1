//! The client side of `pgsidecar healthcheck`: one GET, one line. For images that have neither curl nor a shell.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The most of an answer that is read; its first line is all that is wanted.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Asks the process that listens on `address` (`metrics.listen`) for `path` and returns the answer's first line.
///
/// # Errors
/// One line that says what went wrong: nothing listens, no answer within `timeout`, or a status other than 200 with the
/// line that came with it.
pub async fn healthcheck(address: SocketAddr, path: &str, timeout: Duration) -> Result<String, String> {
    let address = reachable(address);
    let answer = tokio::time::timeout(timeout, get(address, path)).await;
    let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")));
    match answer {
        Ok((StatusCode::OK, line)) => Ok(line),
        Ok((status, line)) => Err(format!("http://{address}{path}: {}: {line}", status.as_u16())),
        Err(error) => Err(format!("http://{address}{path}: {error}")),
    }
}

/// An address that listens on every interface is reached over loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn get(address: SocketAddr, path: &str) -> Result<(StatusCode, String), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let stream = TcpStream::connect(address).await.map_err(|error| text(&error))?;
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .body(Empty::<Bytes>::new());
    let request = request.map_err(|error| text(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| text(&error))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| text(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| text(&error))?;
        Ok((status, first_line(&body.to_bytes())))
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => return answer,
        // The connection ends before the exchange has seen its last bytes; what it has seen decides.
        _ = connection => {}
    }
    exchange.await
}

fn first_line(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|character| !character.is_control())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interface_is_reached_over_loopback() {
        let checked = |address: &str| reachable(address.parse().expect("an address")).to_string();
        assert_eq!(checked("0.0.0.0:9930"), "127.0.0.1:9930");
        assert_eq!(checked("[::]:9930"), "[::1]:9930");
        assert_eq!(checked("10.0.0.7:9930"), "10.0.0.7:9930");
    }

    #[tokio::test]
    async fn nothing_that_listens_is_one_line() {
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .expect("bind")
            .local_addr()
            .expect("bound");
        let error = healthcheck(free, "/healthz", Duration::from_secs(5))
            .await
            .expect_err("nobody is there");
        assert!(error.contains("refused") && !error.contains('\n'), "{error}");
    }

    #[tokio::test]
    async fn silence_ends_with_the_timeout() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("bound");
        let error = healthcheck(address, "/healthz", Duration::from_millis(50))
            .await
            .expect_err("it never answers");
        assert!(error.ends_with("no answer within 50ms"), "{error}");
    }
}
