//! From the first byte to the StartupMessage: drives the handshake over the socket, TLS included.

use bytes::BytesMut;

use super::context::{ClientContext, Door, Snapshot};
use super::{close_with, last_words};
use crate::config::ClientTlsMode;
use crate::net::Stream;
use crate::protocol::handshake::{Handshake, HandshakeStep, Login, Opening, OpeningStep, TlsOffer};
use crate::wire::startup_packet::{CancelKey, StartupPacket};
use crate::wire::{Report, STARTUP_PACKET_LEN_MAX};

/// How a connection's opening ended.
#[derive(Debug)]
pub enum Arrival {
    /// A client that wants to log in, and the bytes that it sent behind its StartupMessage.
    Login(Stream, Box<Login>, BytesMut),
    /// A CancelRequest.
    Cancel(CancelKey),
    /// There is nothing to serve: it was told so, or went away.
    Gone,
}

/// Reads startup packets until there is a login.
pub async fn receive(
    mut stream: Stream,
    door: Door,
    snapshot: &Snapshot,
    context: &ClientContext,
) -> std::io::Result<Arrival> {
    let mut read = BytesMut::with_capacity(1024);
    let opening = loop {
        match Opening::recognise(&read) {
            Some(opening) => break opening,
            None if stream.read_buf(&mut read).await? == 0 => return Ok(Arrival::Gone),
            None => {}
        }
    };
    let mut handshake = match Handshake::new(tls_offer(door, snapshot)).on_opening(opening) {
        OpeningStep::Packets(handshake) => handshake,
        OpeningStep::Close(words) => {
            tracing::info!(client = %stream.peer(), ?opening, "what came is not PostgreSQL's protocol");
            Box::pin(close_with(&mut stream, &words)).await;
            return Ok(Arrival::Gone);
        }
        OpeningStep::Tls(expect_alpn) => {
            let already_read = std::mem::take(&mut read);
            stream = Box::pin(accept_tls(stream, already_read, door, snapshot)).await?;
            match expect_alpn.on_tls(stream.alpn()) {
                Ok(handshake) => handshake,
                Err(refusal) => return Box::pin(refuse(stream, &refusal.0, context)).await,
            }
        }
    };
    loop {
        let packet = match next_packet(&mut stream, &mut read).await? {
            Ok(Some(packet)) => packet,
            Ok(None) => return Ok(Arrival::Gone),
            Err(report) => return Box::pin(refuse(stream, &report, context)).await,
        };
        match handshake.on_packet(&packet, read.len()) {
            Ok(HandshakeStep::AnswerThenTls(answer, next)) => {
                stream.write_all(&answer).await?;
                stream = Box::pin(accept_tls(stream, BytesMut::new(), door, snapshot)).await?;
                handshake = next;
            }
            Ok(HandshakeStep::Answer(answer, next)) => {
                stream.write_all(&answer).await?;
                handshake = next;
            }
            Ok(HandshakeStep::Cancel(key)) => return Ok(Arrival::Cancel(key)),
            Ok(HandshakeStep::Login(login)) => return Ok(Arrival::Login(stream, login, read)),
            Err(refusal) => return Box::pin(refuse(stream, &refusal.0, context)).await,
        }
    }
}

fn tls_offer(door: Door, snapshot: &Snapshot) -> TlsOffer {
    match (door.tls, snapshot.tls_for(door)) {
        (ClientTlsMode::Disable, _) | (_, None) => TlsOffer::Unavailable,
        (ClientTlsMode::Allow, Some(_)) => TlsOffer::Offered,
        (ClientTlsMode::Require | ClientTlsMode::VerifyFull, Some(_)) => TlsOffer::Required,
    }
}

async fn accept_tls(
    stream: Stream,
    already_read: BytesMut,
    door: Door,
    snapshot: &Snapshot,
) -> std::io::Result<Stream> {
    let peer = stream.peer();
    let accepted = match snapshot.tls_for(door) {
        Some(tls) => tls.accept(stream, already_read).await,
        None => Err(std::io::ErrorKind::Unsupported.into()),
    };
    accepted.inspect_err(|error| tracing::info!(client = %peer, %error, "TLS with a client failed"))
}

/// The next whole packet; `None` at the end of the stream.
async fn next_packet(
    stream: &mut Stream,
    read: &mut BytesMut,
) -> std::io::Result<Result<Option<bytes::Bytes>, Report>> {
    loop {
        match StartupPacket::frame_len(read) {
            Ok(Some(len)) if read.len() >= len => return Ok(Ok(Some(read.split_to(len).freeze()))),
            Ok(_) => {}
            Err(bad) => return Ok(Err(crate::protocol::handshake::Refusal::from(bad).0)),
        }
        if read.capacity() == read.len() {
            read.reserve(STARTUP_PACKET_LEN_MAX.saturating_sub(read.len()).max(64));
        }
        if stream.read_buf(read).await? == 0 {
            return Ok(Ok(None));
        }
    }
}

/// Sends an ErrorResponse as the last words.
async fn refuse(mut stream: Stream, report: &Report, context: &ClientContext) -> std::io::Result<Arrival> {
    tracing::info!(client = %stream.peer(), %report, "a client could not begin its login");
    last_words(&mut stream, report, context).await;
    Ok(Arrival::Gone)
}
