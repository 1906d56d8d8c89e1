//! The settings that PostgreSQL reports by itself (manual: protocol-async, "ParameterStatus").

use crate::virtual_session::lexing_of;
use crate::virtual_session::sql_lexer::Lexing;

/// More names than any PostgreSQL reports; what a peer sends beyond is dropped.
const PARAMETERS_MAX: usize = 64;
/// A longer value is no setting that a client's greeting can carry.
const VALUE_LEN_MAX: usize = 8 * 1024;

/// Whether a SET can make this reported value, which then belongs to a client; the others belong to the server, or to who
/// one is there.
pub fn is_settable(name: &str) -> bool {
    const OF_THE_SERVER: [&str; 6] = [
        "server_version",
        "server_encoding",
        "integer_datetimes",
        "is_superuser",
        "session_authorization",
        "in_hot_standby",
    ];
    !OF_THE_SERVER.iter().any(|own| own.eq_ignore_ascii_case(name))
}

/// Reported names and their values, in the order of their first report. Values are bytes: they come in whatever encoding
/// the server takes for the client's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerParameters {
    entries: Vec<(Box<str>, Box<[u8]>)>,
}

impl ServerParameters {
    /// What was reported at a login.
    pub fn new(reported: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let mut parameters = Self::default();
        for (name, value) in reported {
            parameters.set(&name, &value);
        }
        parameters
    }

    /// The value of a parameter. Names are as PostgreSQL reports them (`TimeZone`).
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.entries
            .iter()
            .find(|(key, _)| &**key == name)
            .map(|(_, value)| &**value)
    }

    /// The same, where it is UTF-8.
    pub fn text(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.get(name)?).ok()
    }

    /// Whether PostgreSQL reports this setting, whatever the capitals of the name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.iter().any(|(key, _)| key.eq_ignore_ascii_case(name))
    }

    /// Keeps a report. Says whether it was news.
    pub fn set(&mut self, name: &str, value: &[u8]) -> bool {
        if value.len() > VALUE_LEN_MAX {
            return false;
        }
        let has_room = self.entries.len() < PARAMETERS_MAX;
        match self.entries.iter_mut().find(|(key, _)| &**key == name) {
            Some((_, old)) if &**old == value => false,
            Some((_, old)) => {
                *old = value.into();
                true
            }
            None if has_room => {
                self.entries.push((name.into(), value.into()));
                true
            }
            None => false,
        }
    }

    /// Every name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.entries.iter().map(|(name, value)| (&**name, &**value))
    }

    /// How texts are read under these values.
    pub fn lexing(&self) -> Lexing {
        lexing_of(
            Lexing::default(),
            self.text("standard_conforming_strings"),
            self.text("client_encoding"),
        )
    }

    /// Whether nothing was reported.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The major version that `server_version` names; 0 where it names none.
    pub fn server_major_version(&self) -> u32 {
        let version = self.text("server_version").unwrap_or_default();
        let digits = version
            .split(|character: char| !character.is_ascii_digit())
            .next()
            .unwrap_or_default();
        digits.parse().unwrap_or(0)
    }

    /// A server that replays another's changes (PostgreSQL 14 and later report it).
    pub fn in_hot_standby(&self) -> Option<bool> {
        self.get("in_hot_standby").map(|value| value == b"on")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_news_only_when_it_differs() {
        let mut parameters = ServerParameters::new([("TimeZone".to_owned(), b"UTC".to_vec())]);
        assert!(!parameters.set("TimeZone", b"UTC"));
        assert!(parameters.set("TimeZone", b"Asia/Shanghai"));
        assert_eq!(parameters.text("TimeZone"), Some("Asia/Shanghai"));
        assert_eq!(parameters.iter().count(), 1);
    }

    #[test]
    fn a_peer_cannot_fill_the_memory_with_parameters() {
        let mut parameters = ServerParameters::default();
        for number in 0..1000 {
            parameters.set(&format!("p{number}"), b"x");
        }
        assert_eq!(parameters.iter().count(), PARAMETERS_MAX);
        assert!(!parameters.set("p0", &vec![b'x'; VALUE_LEN_MAX + 1]));
    }

    #[test]
    fn versions_of_packagers_and_betas_are_read() {
        for (text, major) in [
            ("15.7 (Debian 15.7-0+deb12u1)", 15),
            ("18beta1", 18),
            ("9.6.24", 9),
            ("", 0),
        ] {
            let parameters = ServerParameters::new([("server_version".to_owned(), text.into())]);
            assert_eq!(parameters.server_major_version(), major, "{text}");
        }
    }
}
