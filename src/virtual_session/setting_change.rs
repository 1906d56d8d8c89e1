//! Changes of settings as a text tells them, in a form that can be said again to another backend.

/// A SET, RESET or set_config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingChange {
    /// A setting gets a value.
    Set {
        /// Which one.
        name: SettingName,
        /// To what.
        value: SettingValue,
        /// Until when.
        scope: SettingScope,
    },
    /// RESET name (lower case).
    Reset(Box<[u8]>),
    /// RESET ALL: every setting but role and session authorization.
    ResetAll,
}

/// The name of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingName {
    /// In lower case. `SET TIME ZONE` is `timezone`, `SET NAMES` `client_encoding`, `SET SCHEMA` `search_path`, and so
    /// on for each special form.
    Known(Box<[u8]>),
    /// The value of a parameter ($1 is 1), bound later.
    FromBind(u16),
    /// Computed by the statement.
    Unknown,
}

/// The value that a setting gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingValue {
    /// What stands right of SET's `TO`, as SQL that reads the same whatever `standard_conforming_strings` is. In the
    /// client's encoding. Starts with `INTERVAL` only for the setting `timezone`, where only SET TIME ZONE takes it.
    Source(Box<[u8]>),
    /// set_config's string. Not the same as SET's: `set_config('search_path', 'a, b', …)` names two schemas,
    /// `SET search_path TO 'a, b'` one.
    Text(Box<[u8]>),
    /// DEFAULT: the value that RESET would give.
    Default,
    /// The value of a parameter ($1 is 1), bound later.
    FromBind(u16),
    /// Computed by the statement, or set only perhaps.
    Unknown,
}

/// How long a value holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SettingScope {
    /// To the end of the session, if the transaction commits.
    Session,
    /// To the end of the transaction.
    Local,
    /// A prepared statement or a cursor gives the value, whenever it is run.
    Later,
    /// set_config's third argument is the value of a parameter ($1 is 1).
    FromBind(u16),
    /// Computed by the statement.
    Unknown,
}

impl SettingScope {
    /// Whether it may outlive the transaction.
    pub const fn may_last(self) -> bool {
        !matches!(self, Self::Local)
    }
}

impl SettingChange {
    /// The setting that RESET, or SET to its default, takes back for the session.
    pub fn taken_back(&self) -> Option<&[u8]> {
        match self {
            Self::Reset(name)
            | Self::Set {
                name: SettingName::Known(name),
                value: SettingValue::Default,
                scope: SettingScope::Session,
            } => Some(name),
            _ => None,
        }
    }

    /// Whether a parameter's value decides which setting it is, or what becomes of it.
    pub const fn is_bound_later(&self) -> bool {
        matches!(
            self,
            Self::Set {
                name: SettingName::FromBind(_),
                ..
            } | Self::Set {
                value: SettingValue::FromBind(_),
                ..
            }
        )
    }

    /// The same with these values of the statement's parameters.
    #[must_use]
    pub fn bound(&self, values: &[Option<&[u8]>]) -> Self {
        let Self::Set { name, value, scope } = self else {
            return self.clone();
        };
        let of = |number: u16| values.get(usize::from(number).checked_sub(1)?).copied().flatten();
        let name = match name {
            SettingName::FromBind(number) => of(*number).map_or(SettingName::Unknown, |name| {
                SettingName::Known(name.to_ascii_lowercase().into())
            }),
            name => name.clone(),
        };
        let value = match value {
            SettingValue::FromBind(number) => {
                of(*number).map_or(SettingValue::Default, |text| SettingValue::Text(text.into()))
            }
            value => value.clone(),
        };
        let scope = *scope;
        Self::Set { name, value, scope }
    }

    /// The statement that makes this change at session level on another backend, whatever that backend's
    /// `standard_conforming_strings` is. `None` where the text doesn't tell it.
    pub fn to_sql(&self) -> Option<Vec<u8>> {
        match self {
            Self::ResetAll => Some(b"RESET ALL".to_vec()),
            Self::Reset(name) => Some([b"RESET ", quoted_name(name).as_slice()].concat()),
            Self::Set {
                name: SettingName::Known(name),
                value,
                ..
            } => value.to_sql(name),
            Self::Set { .. } => None,
        }
    }
}

impl SettingValue {
    fn to_sql(&self, name: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Source(source)
                if source
                    .get(..8)
                    .is_some_and(|word| word.eq_ignore_ascii_case(b"interval")) =>
            {
                Some([b"SET TIME ZONE ", &**source].concat())
            }
            Self::Source(source) if name == b"session_authorization" => {
                Some([b"SET SESSION AUTHORIZATION ", &**source].concat())
            }
            Self::Source(source) => Some([b"SET ", quoted_name(name).as_slice(), b" TO ", source].concat()),
            Self::Default if name == b"session_authorization" => Some(b"SET SESSION AUTHORIZATION DEFAULT".to_vec()),
            Self::Default => Some([b"SET ", quoted_name(name).as_slice(), b" TO DEFAULT"].concat()),
            Self::Text(text) => {
                let (name, text) = (quoted_string(name), quoted_string(text));
                Some(
                    [
                        b"SELECT pg_catalog.set_config(",
                        name.as_slice(),
                        b", ",
                        &text,
                        b", false)",
                    ]
                    .concat(),
                )
            }
            Self::FromBind(_) | Self::Unknown => None,
        }
    }
}

/// The parts of a setting's name, each quoted: `"app"."tenant_id"`.
fn quoted_name(name: &[u8]) -> Vec<u8> {
    let mut quoted = vec![b'"'];
    for &byte in name {
        match byte {
            b'.' => quoted.extend_from_slice(b"\".\""),
            b'"' => quoted.extend_from_slice(b"\"\""),
            _ => quoted.push(byte),
        }
    }
    quoted.push(b'"');
    quoted
}

/// A string constant that reads the same whatever `standard_conforming_strings` is.
pub fn quoted_string(value: &[u8]) -> Vec<u8> {
    let mut quoted = Vec::with_capacity(value.len() + 4);
    // The space keeps the E from growing together with a word before it.
    quoted.extend_from_slice(if value.contains(&b'\\') { b" E'" } else { b"'" });
    for &byte in value {
        if matches!(byte, b'\'' | b'\\') {
            quoted.push(byte);
        }
        quoted.push(byte);
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &[u8], value: SettingValue) -> SettingChange {
        SettingChange::Set {
            name: SettingName::Known(name.into()),
            value,
            scope: SettingScope::Session,
        }
    }

    #[test]
    fn trap_54_a_change_can_be_said_again_in_every_quoting() {
        let sql = |change: SettingChange| change.to_sql().map(|sql| String::from_utf8_lossy(&sql).into_owned());
        let source = |text: &str| SettingValue::Source(text.as_bytes().into());
        assert_eq!(
            sql(set(b"search_path", source("a, \"B\""))).as_deref(),
            Some(r#"SET "search_path" TO a, "B""#)
        );
        assert_eq!(
            sql(set(b"app.x", source("'it''s'"))).as_deref(),
            Some(r#"SET "app"."x" TO 'it''s'"#)
        );
        assert_eq!(
            sql(set(b"timezone", source("INTERVAL '-08:00' HOUR TO MINUTE"))).as_deref(),
            Some("SET TIME ZONE INTERVAL '-08:00' HOUR TO MINUTE")
        );
        assert_eq!(
            sql(set(b"app.x", SettingValue::Text(b"a\\'b".as_slice().into()))).as_deref(),
            Some(r"SELECT pg_catalog.set_config('app.x',  E'a\\''b', false)")
        );
        assert_eq!(
            sql(set(b"role", SettingValue::Default)).as_deref(),
            Some(r#"SET "role" TO DEFAULT"#)
        );
        assert_eq!(
            sql(SettingChange::Reset(b"a.b".as_slice().into())).as_deref(),
            Some(r#"RESET "a"."b""#)
        );
        assert_eq!(sql(SettingChange::ResetAll).as_deref(), Some("RESET ALL"));
        assert_eq!(sql(set(b"x", SettingValue::Unknown)), None);
        let unnamed = SettingChange::Set {
            name: SettingName::FromBind(1),
            value: SettingValue::Default,
            scope: SettingScope::Session,
        };
        assert_eq!(sql(unnamed), None);
    }
}
