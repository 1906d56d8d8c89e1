//! Queries of our own: written whole, their replies read to the last ReadyForQuery. Nothing of a client's is in them.

use std::io;

use bytes::{Buf, Bytes, BytesMut};

use super::Backend;
use crate::net::Stream;
use crate::protocol::Violation;
use crate::wire::backend_message::{ParameterStatus, ReportFields, TransactionStatus};
use crate::wire::{BackendTag, FrontendTag, HEADER_LEN, Header, Malformed, Reader, Report, compose};

/// The largest body that we keep of a reply; larger ones are passed over as they come.
const KEPT_BODY_LEN_MAX: usize = 64 * 1024;
/// Rows that we keep of a reply.
const KEPT_ROWS_MAX: usize = 256;
/// What one read may bring.
const READ_LEN: usize = 8 * 1024;

/// Why a backend can't go on. Every one of them leaves it broken.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The socket failed.
    #[error("the connection to PostgreSQL failed: {0}")]
    Io(#[from] io::Error),
    /// PostgreSQL closed the connection.
    #[error("PostgreSQL closed the connection")]
    Closed,
    /// PostgreSQL ended the session, and why.
    #[error("PostgreSQL ended the session: {0}")]
    Fatal(Report),
    /// What came is no PostgreSQL message that can come here.
    #[error("PostgreSQL broke the protocol: {0}")]
    Violation(#[from] Violation),
}

/// A row's columns as text; `None` is NULL.
pub type Row = Vec<Option<Bytes>>;

/// What a query of ours came to.
#[derive(Debug, Default)]
pub struct QueryOutcome {
    /// The first column of each row, as text; `None` is NULL. At most a few hundred rows are kept.
    pub first_column: Vec<Option<Bytes>>,
    /// The last error, if there was one.
    pub error: Option<Report>,
}

/// What statements with parameters came to.
#[derive(Debug, Default)]
pub struct ParameterisedOutcome {
    /// The rows of each statement, in order; empty for those behind an error. At most a few hundred rows are kept.
    pub rows: Vec<Vec<Row>>,
    /// The error, if there was one.
    pub error: Option<Report>,
}

/// One message, its body only where it is one to look at.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) tag: u8,
    /// Empty where it was passed over.
    pub(crate) body: Bytes,
}

/// Cuts the first whole frame off a buffer whose bodies may be `body_len_max` bytes long.
pub(crate) fn cut_frame(buffer: &mut BytesMut, body_len_max: usize) -> Result<Option<Message>, Violation> {
    let malformed = |cause| Violation::Malformed {
        message: "header",
        cause,
    };
    let Some(header) = Header::peek(buffer).map_err(malformed)? else {
        return Ok(None);
    };
    if header.body_len > body_len_max {
        return Err(malformed(Malformed::Length));
    }
    if buffer.len() < header.frame_len() {
        return Ok(None);
    }
    let mut frame = buffer.split_to(header.frame_len());
    frame.advance(HEADER_LEN);
    Ok(Some(Message {
        tag: header.tag,
        body: frame.freeze(),
    }))
}

/// Reads more bytes; end of stream is an error.
pub(crate) async fn fill(stream: &mut Stream, buffer: &mut BytesMut) -> Result<(), BackendError> {
    buffer.reserve(READ_LEN);
    match stream.read_buf(buffer).await {
        Ok(0) => Err(BackendError::Closed),
        Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Backend {
    /// Runs one Query of ours to its ReadyForQuery. An ErrorResponse is part of the outcome, a FATAL is not.
    pub async fn query(&mut self, sql: &str) -> Result<QueryOutcome, BackendError> {
        let mut out = BytesMut::new();
        // A Query drops the unnamed statement (manual: protocol-flow-ext-query): whoever left one here parses it again.
        self.state.unnamed_dropped();
        compose::query(&mut out, sql.as_bytes());
        self.say(&out).await?;
        self.read_outcome().await
    }

    /// Takes clients' settings off, so that a query of ours sees what a new session would.
    pub async fn make_neutral(&mut self) -> Result<(), BackendError> {
        if let Some(sql) = self.state.take_settings_off() {
            let outcome = self.query(&String::from_utf8_lossy(&sql)).await?;
            if outcome.error.is_some() {
                return Err(Violation::Rule("RESET of a setting failed").into());
            }
        }
        Ok(())
    }

    /// Runs statements of ours as one pipeline up to one Sync: one implicit transaction, unless they open a block. Each
    /// takes all of `parameters` it names, as text, so that no value can be read as SQL. An ErrorResponse is part of the
    /// outcome, a FATAL is not.
    pub async fn query_with(&mut self, statements: &[(&str, &[&str])]) -> Result<ParameterisedOutcome, BackendError> {
        let mut out = BytesMut::new();
        for (sql, parameters) in statements {
            extended(&mut out, sql, parameters);
        }
        compose::bare_frontend(&mut out, FrontendTag::Sync);
        self.state.unnamed_replaced();
        self.say(&out).await?;
        let mut outcome = ParameterisedOutcome::default();
        let mut kept = 0;
        loop {
            let message = self.next_message().await?;
            match BackendTag::from_byte(message.tag) {
                Some(BackendTag::BindComplete) => outcome.rows.push(Vec::new()),
                Some(BackendTag::DataRow) if kept < KEPT_ROWS_MAX => {
                    kept += 1;
                    if let Some(rows) = outcome.rows.last_mut() {
                        rows.push(columns(&message.body)?);
                    }
                }
                Some(BackendTag::ErrorResponse) => outcome.error = Some(error_report(&message.body)?),
                Some(BackendTag::ReadyForQuery) => return Ok(outcome),
                Some(BackendTag::CopyInResponse | BackendTag::CopyBothResponse) => {
                    return Err(Violation::Rule("a query of ours began a COPY").into());
                }
                _ => {}
            }
        }
    }

    /// Writes. Where that fails, what PostgreSQL said before it closed is worth more than the broken pipe.
    async fn say(&mut self, words: &[u8]) -> Result<(), BackendError> {
        let Err(error) = self.stream.write_all(words).await else {
            return Ok(());
        };
        loop {
            match self.next_message().await {
                Ok(_) => {}
                Err(fatal @ BackendError::Fatal(_)) => return Err(fatal),
                Err(_) => return Err(error.into()),
            }
        }
    }

    /// Reads up to and with the next ReadyForQuery.
    pub(crate) async fn read_outcome(&mut self) -> Result<QueryOutcome, BackendError> {
        let mut outcome = QueryOutcome::default();
        loop {
            let message = self.next_message().await?;
            match BackendTag::from_byte(message.tag) {
                Some(BackendTag::DataRow) if outcome.first_column.len() < KEPT_ROWS_MAX => {
                    outcome.first_column.push(first_column(&message.body)?);
                }
                Some(BackendTag::ErrorResponse) => outcome.error = Some(error_report(&message.body)?),
                Some(BackendTag::ReadyForQuery) => return Ok(outcome),
                Some(BackendTag::CopyInResponse | BackendTag::CopyBothResponse) => {
                    return Err(Violation::Rule("a query of ours began a COPY").into());
                }
                _ => {}
            }
        }
    }

    /// The next message. ParameterStatus and ReadyForQuery are taken note of on the way; a FATAL is an error. Bodies
    /// over the limit are read and dropped.
    pub(crate) async fn next_message(&mut self) -> Result<Message, BackendError> {
        loop {
            let malformed = |cause| Violation::Malformed {
                message: "header",
                cause,
            };
            match Header::peek(&self.read_buffer).map_err(malformed)? {
                Some(header) if header.body_len > KEPT_BODY_LEN_MAX => {
                    self.pass_over(header.frame_len()).await?;
                    return Ok(Message {
                        tag: header.tag,
                        body: Bytes::new(),
                    });
                }
                _ => {}
            }
            if let Some(message) = cut_frame(&mut self.read_buffer, KEPT_BODY_LEN_MAX)? {
                self.take_note(&message)?;
                return Ok(message);
            }
            fill(&mut self.stream, &mut self.read_buffer).await?;
        }
    }

    async fn pass_over(&mut self, mut len: usize) -> Result<(), BackendError> {
        loop {
            let here = len.min(self.read_buffer.len());
            self.read_buffer.advance(here);
            len -= here;
            if len == 0 {
                return Ok(());
            }
            fill(&mut self.stream, &mut self.read_buffer).await?;
        }
    }

    fn take_note(&mut self, message: &Message) -> Result<(), BackendError> {
        match BackendTag::from_byte(message.tag) {
            Some(BackendTag::ParameterStatus) => {
                let status = ParameterStatus::parse(&message.body).map_err(|cause| Violation::Malformed {
                    message: "ParameterStatus",
                    cause,
                })?;
                self.learn_parameter(&status);
            }
            Some(BackendTag::ReadyForQuery) => {
                self.transaction_status =
                    TransactionStatus::parse(&message.body).map_err(|cause| Violation::Malformed {
                        message: "ReadyForQuery",
                        cause,
                    })?;
            }
            Some(BackendTag::ErrorResponse) if is_fatal(&message.body) => {
                return Err(BackendError::Fatal(error_report(&message.body)?));
            }
            _ => {}
        }
        Ok(())
    }
}

fn is_fatal(body: &[u8]) -> bool {
    ReportFields::parse(body).is_ok_and(|fields| fields.is_fatal())
}

fn error_report(body: &[u8]) -> Result<Report, Violation> {
    ReportFields::parse(body)
        .map(|fields| fields.to_report())
        .map_err(|cause| Violation::Malformed {
            message: "ErrorResponse",
            cause,
        })
}

/// Parse, Bind and Execute of an unnamed statement; the types of its parameters are PostgreSQL's to infer.
fn extended(out: &mut BytesMut, sql: &str, parameters: &[&str]) {
    compose::parse(out, b"", &[sql.as_bytes(), b"\0\0\0"].concat());
    let mut bind = vec![0, 0, 0, 0];
    bind.extend(u16::try_from(parameters.len()).unwrap_or(u16::MAX).to_be_bytes());
    for parameter in parameters {
        bind.extend(u32::try_from(parameter.len()).unwrap_or(u32::MAX).to_be_bytes());
        bind.extend(parameter.as_bytes());
    }
    bind.extend([0, 0]);
    compose::frame(out, FrontendTag::Bind.byte(), &[&bind]);
    compose::frame(out, FrontendTag::Execute.byte(), &[b"\0\0\0\0\0"]);
}

fn columns(body: &Bytes) -> Result<Row, Violation> {
    let malformed = |cause| Violation::Malformed {
        message: "DataRow",
        cause,
    };
    let mut reader = Reader::new(body);
    let count = reader.i16().map_err(malformed)?;
    let mut row = Row::new();
    for _ in 0..count {
        row.push(match usize::try_from(reader.i32().map_err(malformed)?) {
            Ok(len) => Some(body.slice_ref(reader.bytes(len).map_err(malformed)?)),
            Err(_) => None,
        });
    }
    Ok(row)
}

fn first_column(body: &Bytes) -> Result<Option<Bytes>, Violation> {
    let malformed = |cause| Violation::Malformed {
        message: "DataRow",
        cause,
    };
    let mut reader = Reader::new(body);
    if reader.i16().map_err(malformed)? < 1 {
        return Ok(None);
    }
    match usize::try_from(reader.i32().map_err(malformed)?) {
        Ok(len) => Ok(Some(body.slice_ref(reader.bytes(len).map_err(malformed)?))),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_cut_only_when_it_is_whole() {
        let mut buffer = BytesMut::from(&b"Z\0\0\0\x05"[..]);
        assert!(cut_frame(&mut buffer, 10).unwrap().is_none());
        buffer.extend_from_slice(b"IC");
        let message = cut_frame(&mut buffer, 10).unwrap().unwrap();
        assert_eq!((message.tag, &message.body[..]), (b'Z', &b"I"[..]));
        assert_eq!(&buffer[..], b"C");
    }

    #[test]
    fn trap_02_a_body_over_the_limit_is_refused_before_it_comes() {
        let mut buffer = BytesMut::from(&b"E\0\0\x10\0"[..]);
        assert!(cut_frame(&mut buffer, 100).is_err());
        let mut buffer = BytesMut::from(&b"E\0\0\0\x01"[..]);
        assert!(cut_frame(&mut buffer, 100).is_err());
    }

    #[test]
    fn every_column_of_a_row_is_kept_and_a_short_one_is_an_error() {
        let row = columns(&Bytes::from_static(b"\0\x02\xff\xff\xff\xff\0\0\0\x02on")).unwrap();
        assert_eq!(row, [None, Some(Bytes::from_static(b"on"))]);
        assert!(columns(&Bytes::from_static(b"\0\x02\xff\xff\xff\xff")).is_err());
    }

    #[test]
    fn the_first_column_of_a_short_row_is_an_error_and_null_is_none() {
        assert_eq!(
            first_column(&Bytes::from_static(b"\0\x01\0\0\0\x02on"))
                .unwrap()
                .as_deref(),
            Some(&b"on"[..])
        );
        assert_eq!(
            first_column(&Bytes::from_static(b"\0\x01\xff\xff\xff\xff")).unwrap(),
            None
        );
        assert!(first_column(&Bytes::from_static(b"\0\x01\0\0\0\x09on")).is_err());
        assert!(first_column(&Bytes::from_static(b"\0")).is_err());
    }
}
