//! Views of PostgreSQL's messages: what the relay and the login look at.

use super::{Malformed, Reader, Report, Severity, SqlState};

/// Where a session stands between messages: the byte of ReadyForQuery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum TransactionStatus {
    /// `I`: no transaction block.
    #[default]
    Idle,
    /// `T`: in a transaction block.
    InTransaction,
    /// `E`: in a failed transaction block; everything is refused until it ends.
    Failed,
}

impl TransactionStatus {
    /// Reads the body of a ReadyForQuery.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        match body {
            b"I" => Ok(Self::Idle),
            b"T" => Ok(Self::InTransaction),
            b"E" => Ok(Self::Failed),
            _ => Err(Malformed::Value),
        }
    }

    /// The byte on the wire.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::InTransaction => b'T',
            Self::Failed => b'E',
        }
    }
}

/// ParameterStatus: a setting that PostgreSQL reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterStatus<'a> {
    /// Capitalised as PostgreSQL does (`TimeZone`).
    pub name: &'a [u8],
    /// In the client's encoding.
    pub value: &'a [u8],
}

impl<'a> ParameterStatus<'a> {
    /// Reads a body.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let (name, value) = (reader.cstr()?, reader.cstr()?);
        reader.finish()?;
        Ok(Self { name, value })
    }
}

/// NotificationResponse: somebody has notified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification<'a> {
    /// Of the session that notified.
    pub process_id: u32,
    /// The channel's name.
    pub channel: &'a [u8],
    /// Empty where none was given.
    pub payload: &'a [u8],
}

impl<'a> Notification<'a> {
    /// Reads a body.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let (process_id, channel, payload) = (reader.u32()?, reader.cstr()?, reader.cstr()?);
        reader.finish()?;
        Ok(Self {
            process_id,
            channel,
            payload,
        })
    }
}

/// CommandComplete: the command tag.
pub fn command_tag(body: &[u8]) -> Result<&[u8], Malformed> {
    let mut reader = Reader::new(body);
    let tag = reader.cstr()?;
    reader.finish()?;
    Ok(tag)
}

/// The fields of an ErrorResponse or NoticeResponse that decisions are made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportFields<'a> {
    /// Field `V`, or `S` where a server before 9.6 sends no `V`.
    pub severity: &'a [u8],
    /// Field `C`; empty when the peer sent none.
    pub sqlstate: &'a [u8],
    /// Field `M`.
    pub message: &'a [u8],
    /// Field `D`.
    pub detail: Option<&'a [u8]>,
    /// Field `H`.
    pub hint: Option<&'a [u8]>,
}

impl<'a> ReportFields<'a> {
    /// Reads a body. Fields that may be missing are empty, never an error (trap 84: peers leave out the code).
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Self {
            severity: b"",
            sqlstate: b"",
            message: b"",
            detail: None,
            hint: None,
        };
        let mut reader = Reader::new(body);
        loop {
            let kind = reader.u8()?;
            if kind == 0 {
                return reader.finish().map(|()| fields);
            }
            let value = reader.cstr()?;
            match kind {
                b'V' => fields.severity = value,
                b'S' if fields.severity.is_empty() => fields.severity = value,
                b'C' => fields.sqlstate = value,
                b'M' => fields.message = value,
                b'D' => fields.detail = Some(value),
                b'H' => fields.hint = Some(value),
                _ => {}
            }
        }
    }

    /// FATAL or PANIC: the sender closes the connection.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity, b"FATAL" | b"PANIC")
    }

    /// An owned copy, its strings made UTF-8. A missing or odd code reads XX000.
    pub fn to_report(&self) -> Report {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Report {
            severity: match self.severity {
                b"FATAL" => Severity::Fatal,
                b"PANIC" => Severity::Panic,
                b"WARNING" => Severity::Warning,
                b"NOTICE" | b"DEBUG" | b"INFO" | b"LOG" => Severity::Notice,
                _ => Severity::Error,
            },
            sqlstate: SqlState::from_bytes(self.sqlstate).unwrap_or(SqlState::INTERNAL_ERROR),
            message: text(self.message).into(),
            detail: self.detail.map(text),
            hint: self.hint.map(text),
            detail_log: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trap_84_an_error_without_a_code_is_still_read() {
        let fields = ReportFields::parse(b"SFATAL\0Mno\0\0").unwrap();
        assert!(fields.is_fatal());
        assert_eq!(fields.to_report().sqlstate, SqlState::INTERNAL_ERROR);
        assert!(ReportFields::parse(b"SFATAL\0").is_err());
    }

    #[test]
    fn notifications_are_read_to_their_end() {
        let heard = Notification::parse(b"\0\0\x01\x02ch\0hello\0").unwrap();
        assert_eq!(
            (heard.process_id, heard.channel, heard.payload),
            (258, &b"ch"[..], &b"hello"[..])
        );
        for malformed in [&b"\0\0\x01\x02ch\0hello"[..], b"\0\0\x01", b"\0\0\x01\x02ch\0\0more"] {
            assert!(Notification::parse(malformed).is_err());
        }
    }

    #[test]
    fn statuses_and_parameters_are_read() {
        assert_eq!(TransactionStatus::parse(b"E"), Ok(TransactionStatus::Failed));
        assert!(TransactionStatus::parse(b"X").is_err());
        let status = ParameterStatus::parse(b"TimeZone\0UTC\0").unwrap();
        assert_eq!((status.name, status.value), (&b"TimeZone"[..], &b"UTC"[..]));
        assert_eq!(command_tag(b"SET\0"), Ok(&b"SET"[..]));
    }
}
