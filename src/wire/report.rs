//! What we tell a peer when something went wrong: an ErrorResponse or NoticeResponse in PostgreSQL's own terms.

use std::borrow::Cow;
use std::fmt;

/// A five-character error code (manual, appendix A).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

macro_rules! sqlstates {
    ($($(#[$meta:meta])* $name:ident = $code:literal;)*) => {
        #[allow(missing_docs, reason = "the names are appendix A's own")]
        impl SqlState { $($(#[$meta])* pub const $name: Self = Self(*$code);)* }
    };
}

sqlstates! {
    CONNECTION_DOES_NOT_EXIST = b"08003";
    CONNECTION_FAILURE = b"08006";
    TRANSACTION_RESOLUTION_UNKNOWN = b"08007";
    PROTOCOL_VIOLATION = b"08P01";
    FEATURE_NOT_SUPPORTED = b"0A000";
    INVALID_PARAMETER_VALUE = b"22023";
    ACTIVE_SQL_TRANSACTION = b"25001";
    IN_FAILED_SQL_TRANSACTION = b"25P02";
    IDLE_IN_TRANSACTION_SESSION_TIMEOUT = b"25P03";
    TRANSACTION_TIMEOUT = b"25P04";
    INVALID_SQL_STATEMENT_NAME = b"26000";
    INVALID_AUTHORIZATION_SPECIFICATION = b"28000";
    INVALID_PASSWORD = b"28P01";
    INVALID_CATALOG_NAME = b"3D000";
    SYNTAX_ERROR = b"42601";
    DUPLICATE_PREPARED_STATEMENT = b"42P05";
    INSUFFICIENT_PRIVILEGE = b"42501";
    INSUFFICIENT_RESOURCES = b"53000";
    TOO_MANY_CONNECTIONS = b"53300";
    CONFIGURATION_LIMIT_EXCEEDED = b"53400";
    PROGRAM_LIMIT_EXCEEDED = b"54000";
    OBJECT_NOT_IN_PREREQUISITE_STATE = b"55000";
    QUERY_CANCELED = b"57014";
    ADMIN_SHUTDOWN = b"57P01";
    CRASH_SHUTDOWN = b"57P02";
    CANNOT_CONNECT_NOW = b"57P03";
    DATABASE_DROPPED = b"57P04";
    IDLE_SESSION_TIMEOUT = b"57P05";
    SYSTEM_ERROR = b"58000";
    INTERNAL_ERROR = b"XX000";
}

impl SqlState {
    /// The code in these bytes, if they are five ASCII letters or digits.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let code = <[u8; 5]>::try_from(bytes).ok()?;
        code.iter().all(u8::is_ascii_alphanumeric).then_some(Self(code))
    }

    /// The code as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }

    /// The first two characters: the error's class.
    pub fn class(&self) -> &str {
        self.as_str().get(..2).unwrap_or("XX")
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How grave a report is. FATAL and PANIC end the connection that they are sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the manual's own")]
pub enum Severity {
    Error,
    Fatal,
    Panic,
    Warning,
    Notice,
}

impl Severity {
    /// The untranslated word of field `V`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
            Self::Panic => "PANIC",
            Self::Warning => "WARNING",
            Self::Notice => "NOTICE",
        }
    }
}

/// An ErrorResponse or NoticeResponse that we originate or read at a login (manual: protocol-error-fields).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Fields `S` and `V`.
    pub severity: Severity,
    /// Field `C`.
    pub sqlstate: SqlState,
    /// Field `M`.
    pub message: Cow<'static, str>,
    /// Field `D`.
    pub detail: Option<String>,
    /// Field `H`.
    pub hint: Option<String>,
    /// For the operator's log only, never sent: addresses and what the system said.
    pub detail_log: Option<Box<DetailLog>>,
}

/// What only the log may tell of a [`Report`]. Behind a pointer, because few have it and reports are returned by value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetailLog(pub String);

impl Report {
    /// An ERROR: the connection goes on.
    pub fn error(sqlstate: SqlState, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            severity: Severity::Error,
            sqlstate,
            message: message.into(),
            detail: None,
            hint: None,
            detail_log: None,
        }
    }

    /// A FATAL: the connection is closed behind it.
    pub fn fatal(sqlstate: SqlState, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            severity: Severity::Fatal,
            ..Self::error(sqlstate, message)
        }
    }

    /// The same with a DETAIL.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The same with a HINT.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with what only the log may tell.
    #[must_use]
    pub fn with_detail_log(mut self, detail: impl Into<String>) -> Self {
        self.detail_log = Some(Box::new(DetailLog(detail.into())));
        self
    }

    /// The same with another severity.
    #[must_use]
    pub fn with_severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }
}

impl fmt::Display for Report {
    /// For the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.severity.as_str(), self.message, self.sqlstate)?;
        if let Some(detail) = &self.detail {
            write!(f, "; {detail}")?;
        }
        if let Some(detail) = &self.detail_log {
            write!(f, "; {}", detail.0)?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}
