//! The messages that we originate ourselves, appended to a buffer. Encoded by pgwire where it knows them.

use bytes::{BufMut, BytesMut};
use pgwire::messages::Message;
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::response::{ErrorResponse, GssEncResponse, NoticeResponse, ReadyForQuery, SslResponse};
use pgwire::messages::startup::{
    Authentication, BackendKeyData, GssEncRequest, NegotiateProtocolVersion, SASLInitialResponse, SASLResponse,
    SecretKey, SslRequest, Startup,
};

use super::backend_message::TransactionStatus;
use super::startup_packet::CancelKey;
use super::{BackendTag, FrontendTag, Report, Severity};

/// Appends an ErrorResponse, or a NoticeResponse where the severity is one.
pub fn report(out: &mut BytesMut, report: &Report) {
    let said = |text: &str| without_zero(text).to_owned();
    let mut fields = vec![
        (b'S', said(report.severity.as_str())),
        (b'V', said(report.severity.as_str())),
        (b'C', said(report.sqlstate.as_str())),
        (b'M', said(&report.message)),
    ];
    fields.extend(report.detail.as_deref().map(|detail| (b'D', said(detail))));
    fields.extend(report.hint.as_deref().map(|hint| (b'H', said(hint))));
    match report.severity {
        Severity::Warning | Severity::Notice => encode(out, &NoticeResponse::new(fields)),
        Severity::Error | Severity::Fatal | Severity::Panic => encode(out, &ErrorResponse::new(fields)),
    }
}

/// Appends an Authentication message.
pub fn authentication(out: &mut BytesMut, message: &Authentication) {
    encode(out, message);
}

/// Appends AuthenticationOk.
pub fn authentication_ok(out: &mut BytesMut) {
    encode(out, &Authentication::Ok);
}

/// Appends a ParameterStatus, whose value need not be UTF-8. Neither may hold a zero byte; bytes after one are left out.
pub fn parameter_status(out: &mut BytesMut, name: &str, value: impl AsRef<[u8]>) {
    let value = value.as_ref().split(|&byte| byte == 0).next().unwrap_or_default();
    frame(
        out,
        BackendTag::ParameterStatus.byte(),
        &[without_zero(name).as_bytes(), b"\0", value, b"\0"],
    );
}

/// Appends a BackendKeyData.
pub fn backend_key_data(out: &mut BytesMut, key: &CancelKey) {
    let process_id = i32::from_be_bytes(key.process_id.to_be_bytes());
    encode(out, &BackendKeyData::new(process_id, secret_key(key)));
}

/// Appends a ReadyForQuery.
pub fn ready_for_query(out: &mut BytesMut, status: TransactionStatus) {
    use pgwire::messages::response::TransactionStatus as Status;
    encode(
        out,
        &ReadyForQuery::new(match status {
            TransactionStatus::Idle => Status::Idle,
            TransactionStatus::InTransaction => Status::Transaction,
            TransactionStatus::Failed => Status::Error,
        }),
    );
}

/// Appends a NegotiateProtocolVersion: the newest minor version of major 3 that we speak, and options unknown to us.
pub fn negotiate_protocol_version(out: &mut BytesMut, newest_version: u32, unknown_options: Vec<String>) {
    let newest = i32::from_be_bytes(newest_version.to_be_bytes());
    encode(out, &NegotiateProtocolVersion::new(newest, unknown_options));
}

/// Appends the one-byte answer to an SSLRequest.
pub fn ssl_response(out: &mut BytesMut, accept: bool) {
    encode(
        out,
        &if accept {
            SslResponse::Accept
        } else {
            SslResponse::Refuse
        },
    );
}

/// Appends the one-byte refusal of a GSSENCRequest.
pub fn gssenc_refusal(out: &mut BytesMut) {
    encode(out, &GssEncResponse::Refuse);
}

/// Appends an SSLRequest.
pub fn ssl_request(out: &mut BytesMut) {
    encode(out, &SslRequest::new());
}

/// Appends a GSSENCRequest, which only tests send.
pub fn gssenc_request(out: &mut BytesMut) {
    encode(out, &GssEncRequest::new());
}

/// Appends a StartupMessage.
pub fn startup_message<'a>(out: &mut BytesMut, version: u32, parameters: impl IntoIterator<Item = (&'a str, &'a str)>) {
    let mut startup = Startup::new();
    startup.protocol_number_major = u16::try_from(version >> 16).unwrap_or(3);
    startup.protocol_number_minor = u16::try_from(version & 0xffff).unwrap_or(0);
    startup.parameters = parameters
        .into_iter()
        .map(|(name, value)| (without_zero(name).to_owned(), without_zero(value).to_owned()))
        .collect();
    encode(out, &startup);
}

/// Appends a CancelRequest.
pub fn cancel_request(out: &mut BytesMut, key: &CancelKey) {
    let process_id = i32::from_be_bytes(key.process_id.to_be_bytes());
    encode(out, &CancelRequest::new(process_id, secret_key(key)));
}

/// Appends a PasswordMessage, of up to 64 kB: pgwire's encoder stops at 10 000 bytes (trap 87).
pub fn password(out: &mut BytesMut, password: &str) {
    let password = password.split('\0').next().unwrap_or_default();
    frame(out, FrontendTag::Authentication.byte(), &[password.as_bytes(), b"\0"]);
}

/// Appends a SASLInitialResponse.
pub fn sasl_initial_response(out: &mut BytesMut, mechanism: &str, data: &[u8]) {
    encode(
        out,
        &SASLInitialResponse::new(mechanism.to_owned(), Some(data.to_vec().into())),
    );
}

/// Appends a SASLResponse.
pub fn sasl_response(out: &mut BytesMut, data: &[u8]) {
    encode(out, &SASLResponse::new(data.to_vec().into()));
}

/// Appends a Query of ours. Never mixed with a client's text.
pub fn query(out: &mut BytesMut, sql: &[u8]) {
    frame(out, FrontendTag::Query.byte(), &[sql, b"\0"]);
}

/// Appends a Parse: `definition` is everything behind the name (see `frontend_message::Parse`).
pub fn parse(out: &mut BytesMut, name: &[u8], definition: &[u8]) {
    frame(out, FrontendTag::Parse.byte(), &[name, b"\0", definition]);
}

/// Appends a Close of a statement.
pub fn close_statement(out: &mut BytesMut, name: &[u8]) {
    frame(out, FrontendTag::Close.byte(), &[b"S", name, b"\0"]);
}

/// Appends a message of ours that has no body: Sync, Flush, Terminate.
pub fn bare_frontend(out: &mut BytesMut, tag: FrontendTag) {
    frame(out, tag.byte(), &[]);
}

/// Appends an answer of ours that has no body: ParseComplete, CloseComplete.
pub fn bare_backend(out: &mut BytesMut, tag: BackendTag) {
    frame(out, tag.byte(), &[]);
}

/// Appends a frame whose body is these parts. A body over the protocol's limit can't come from what we read.
pub fn frame(out: &mut BytesMut, tag: u8, parts: &[&[u8]]) {
    let body_len: usize = parts.iter().map(|part| part.len()).sum();
    out.put_u8(tag);
    out.put_u32(u32::try_from(body_len + 4).unwrap_or(u32::MAX));
    for part in parts {
        out.put_slice(part);
    }
}

fn encode(out: &mut BytesMut, message: &impl Message) {
    // pgwire's encoders write into memory and fail only for a message over its limit, behind the type byte.
    let len_before = out.len();
    let encoded = message.encode(out);
    debug_assert!(encoded.is_ok());
    if encoded.is_err() {
        out.truncate(len_before);
    }
}

fn secret_key(key: &CancelKey) -> SecretKey {
    match <[u8; 4]>::try_from(&*key.secret) {
        Ok(secret) => SecretKey::I32(i32::from_be_bytes(secret)),
        Err(_) => SecretKey::Bytes(key.secret.to_vec().into()),
    }
}

/// The text up to its first zero byte: a string field can't hold one.
fn without_zero(text: &str) -> &str {
    let end = memchr::memchr(0, text.as_bytes());
    end.and_then(|end| text.get(..end)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{SqlState, backend_message::ReportFields};

    #[test]
    fn a_report_reads_back() {
        let mut out = BytesMut::new();
        let sent = Report::fatal(SqlState::ADMIN_SHUTDOWN, "gone\0hidden").with_hint("come again");
        report(&mut out, &sent);
        let fields = ReportFields::parse(&out[5..]).unwrap();
        assert_eq!(out[0], b'E');
        assert_eq!(
            fields.to_report(),
            Report {
                message: "gone".into(),
                ..sent
            }
        );
    }

    #[test]
    fn frames_carry_their_length() {
        let mut out = BytesMut::new();
        parse(&mut out, b"n", b"select 1\0\0\0");
        assert_eq!(&out[..], b"P\0\0\0\x11n\0select 1\0\0\0");
        out.clear();
        ready_for_query(&mut out, TransactionStatus::Failed);
        assert_eq!(&out[..], b"Z\0\0\0\x05E");
        out.clear();
        cancel_request(
            &mut out,
            &CancelKey {
                process_id: u32::MAX,
                secret: vec![7; 32].into(),
            },
        );
        assert_eq!(out.len(), 12 + 32);
    }
}
