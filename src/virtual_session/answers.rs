//! Values of settings that PostgreSQL has accepted, so that who says them again is answered without it.
//!
//! What is remembered is the value that PostgreSQL made of what was said, and under what; not bytes of a reply: those follow
//! from the value, whatever form it was said in. See decision 13.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::VirtualSession;
use super::setting_text::{Said, SettingText, TextValue};
use super::unreported::may_end_ours;

/// The longest application_name (`NAMEDATALEN` - 1), in bytes.
const APPLICATION_NAME_LEN_MAX: usize = 63;
/// The longest value that is remembered, in bytes.
const VALUE_LEN_MAX: usize = 256;
/// Levels of client_min_messages at which a SET that succeeds has nothing to say.
const QUIET: [&str; 3] = ["notice", "warning", "error"];

/// A setting that is to get a value, and all that decides what PostgreSQL says to that.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SettingRequest {
    name: &'static str,
    said: Said,
    session_user: Option<Box<str>>,
    role: Option<Box<str>>,
    /// What DateStyle is, where that is to be set: it keeps what it is not told.
    date_style: Option<Box<[u8]>>,
    /// The client said itself how much it wants to hear, and that is not much.
    is_quiet: bool,
}

impl SettingRequest {
    /// The same as a session asks that has set nothing. `date_style` is what the backend reports.
    pub fn of_neutral(name: &'static str, said: Said, date_style: Option<&[u8]>) -> Self {
        Self {
            name,
            said,
            session_user: None,
            role: None,
            date_style: date_style.filter(|_| name == "datestyle").map(Box::from),
            is_quiet: false,
        }
    }

    /// The setting's name, in lower case.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Most application names are as unique as their clients, and PostgreSQL changes none of these.
    fn is_plain_application_name(&self) -> Option<&str> {
        match &self.said {
            Said::String(value) if self.name == "application_name" && value.len() <= APPLICATION_NAME_LEN_MAX => {
                Some(value)
            }
            _ => None,
        }
    }
}

/// What the clients of one pool have learned of values. Bounded by whoever adds to it.
#[derive(Debug, Default)]
pub struct Answers {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    values: HashMap<SettingRequest, Box<str>>,
    /// How often all was forgotten: what was asked before that is not learned after it.
    age: u64,
}

impl Answers {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be told to [`Self::learn`] with what was asked now.
    pub fn age(&self) -> u64 {
        self.known().age
    }

    /// PostgreSQL has accepted a value, and made this of it. Beyond `count_max` values all are forgotten, and learned anew.
    pub fn learn(&self, request: SettingRequest, value: &str, age: u64, count_max: usize) {
        let is_kept = value.len() <= VALUE_LEN_MAX
            && value.bytes().all(|byte| matches!(byte, b' '..=b'~'))
            && request.is_plain_application_name().is_none()
            // It ties its client to the backend where it was set.
            && !may_end_ours(request.name, Some(value));
        let mut known = self.known();
        if !is_kept || known.age != age || count_max == 0 {
            return;
        }
        if known.values.len() >= count_max && !known.values.contains_key(&request) {
            known.values.clear();
        }
        known.values.insert(request, value.into());
    }

    /// What PostgreSQL makes of it; `None` where that is not known.
    pub fn value(&self, request: &SettingRequest) -> Option<Box<str>> {
        if let Some(name) = request.is_plain_application_name() {
            return Some(name.into());
        }
        let known = self.known();
        if let Some(value) = known.values.get(request) {
            return Some(value.clone());
        }
        // Who wants to hear less than others is told no more than they.
        let loud = SettingRequest {
            is_quiet: false,
            ..request.clone()
        };
        known.values.get(&loud).filter(|_| request.is_quiet).cloned()
    }

    /// The catalog, the server or its configuration has changed, or PostgreSQL has refused what was thought to be accepted.
    pub fn forget(&self) {
        let mut known = self.known();
        known.values.clear();
        known.age += 1;
    }
}

impl VirtualSession {
    /// What a recognised text asks for in this session, if that could be answered. `bound` is the value of `$1`; `neutral`
    /// tells what a fresh backend reports.
    pub fn setting_request<'a>(
        &self,
        text: &SettingText,
        bound: Option<&[u8]>,
        neutral: impl Fn(&str) -> Option<&'a [u8]>,
    ) -> Option<SettingRequest> {
        let own = |name: &str| self.wanted.value(name);
        // What the ledger can't see may be anything; and who is about to be told something by PostgreSQL is told by it.
        if self.is_bound() || self.unseen_settings != 0 || self.before_reset.is_some() || self.listening.is_some() {
            return None;
        }
        // A routine of somebody's may stand before PostgreSQL's own.
        if own("search_path").is_some_and(|path| path.to_ascii_lowercase().contains("pg_catalog")) {
            return None;
        }
        let level = own("client_min_messages");
        if level.is_some_and(|level| !QUIET.contains(&level)) {
            return None;
        }
        let said = match (&text.value, bound) {
            (TextValue::Said(said), None) => said.clone(),
            (TextValue::Parameter, Some(value)) => Said::string(text.name, value)?,
            _ => return None,
        };
        let date_style = own("DateStyle").map(str::as_bytes).or_else(|| neutral("DateStyle"));
        Some(SettingRequest {
            session_user: own("session_authorization").map(Box::from),
            role: own("role").map(Box::from),
            is_quiet: level.is_some(),
            ..SettingRequest::of_neutral(text.name, said, date_style)
        })
    }

    /// What the clients of the pool have learned of values.
    pub fn answers(&self) -> &Answers {
        &self.shared.answers
    }

    /// A setting has got this value, which PostgreSQL need not be told before the client's next statement. `neutral` is the
    /// name and value that a fresh backend reports, where it does.
    pub fn setting_answered(&mut self, request: &SettingRequest, value: &str, neutral: Option<(&str, &[u8])>) {
        let told_all = std::sync::Arc::ptr_eq(&self.told, &self.wanted);
        match neutral {
            Some((name, neutral)) => {
                let entry = (neutral != value.as_bytes()).then_some(value);
                self.want(self.wanted.with(name, entry));
            }
            // Whether it is the default of a new backend is not known: it is said again, which costs no round trip.
            None => {
                let name = self.wanted.entry(request.name).map(|(name, _)| name.clone());
                self.want(self.wanted.with(name.as_deref().unwrap_or(request.name), Some(value)));
                if told_all {
                    // It is not reported.
                    self.told = self.wanted.clone();
                }
            }
        }
    }

    /// The number of the settings in force that the ledger can't see yet. It changes with every statement that may change
    /// one.
    pub const fn unseen_settings(&self) -> u64 {
        self.unseen_settings
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::parameters::Settings;
    use super::super::setting_text::setting_text;
    use super::super::sql_lexer::Lexing;
    use super::super::{BackendState, SharedLedger};
    use super::*;

    fn client(startup: &[(&str, &str)]) -> VirtualSession {
        let startup = Settings::new(startup.iter().map(|(name, value)| ((*name).into(), (*value).into())));
        VirtualSession::new(1, Arc::new(SharedLedger::new(7)), startup, Lexing::default())
    }

    fn request(session: &VirtualSession, sql: &str) -> Option<SettingRequest> {
        let text = setting_text(sql.as_bytes()).expect("a text that is recognised");
        session.setting_request(&text, None, |name| (name == "DateStyle").then_some(b"ISO, MDY"))
    }

    #[test]
    fn a_value_is_known_when_postgresql_has_accepted_it_from_the_same_user_and_role() {
        let plain = client(&[]);
        let asked = request(&plain, "SET TimeZone TO 'utc'").unwrap();
        assert_eq!(plain.answers().value(&asked), None);
        plain.answers().learn(asked, "UTC", 0, 10);
        let value = |startup: &[(&str, &str)], sql: &str| {
            let request = request(&client(startup), sql)?;
            plain.answers().value(&request).map(String::from)
        };
        assert_eq!(
            value(&[], "SELECT set_config('timezone', 'utc', false)").as_deref(),
            Some("UTC")
        );
        assert_eq!(value(&[], "SET TIME ZONE utc"), None, "a word is not a string");
        assert_eq!(
            value(&[("work_mem", "1MB")], "SET TIME ZONE 'utc'").as_deref(),
            Some("UTC")
        );
        assert_eq!(value(&[("role", "team")], "SET TIME ZONE 'utc'"), None);
        assert_eq!(value(&[("session_authorization", "team")], "SET TIME ZONE 'utc'"), None);
        assert_eq!(value(&[("search_path", "a, pg_catalog")], "SET TIME ZONE 'utc'"), None);
        assert_eq!(value(&[("client_min_messages", "debug1")], "SET TIME ZONE 'utc'"), None);
        assert_eq!(
            value(&[("client_min_messages", "warning")], "SET TIME ZONE 'utc'").as_deref(),
            Some("UTC")
        );
    }

    #[test]
    fn what_was_learned_by_one_who_hears_little_is_not_told_to_others() {
        let quiet = client(&[("client_min_messages", "warning")]);
        let asked = request(&quiet, "SET jit TO off").unwrap();
        quiet.answers().learn(asked.clone(), "off", 0, 10);
        assert!(quiet.answers().value(&asked).is_some());
        let asked = request(&client(&[]), "SET jit TO off").unwrap();
        assert!(quiet.answers().value(&asked).is_none());
    }

    #[test]
    fn a_date_style_depends_on_the_one_before() {
        let plain = client(&[]);
        let asked = request(&plain, "SET DateStyle TO 'German'").unwrap();
        plain.answers().learn(asked.clone(), "German, MDY", 0, 10);
        assert!(plain.answers().value(&asked).is_some());
        let other = request(&client(&[("DateStyle", "SQL, DMY")]), "SET DateStyle TO 'German'").unwrap();
        assert!(plain.answers().value(&other).is_none());
    }

    #[test]
    fn the_memory_has_a_bound_and_forgets_what_was_asked_before_it_was_emptied() {
        let session = client(&[]);
        let asked = |number: usize| request(&session, &format!("SET work_mem TO '{number}MB'")).unwrap();
        for number in 0..25 {
            session.answers().learn(asked(number), "1MB", 0, 10);
        }
        assert!(session.answers().known().values.len() <= 10);
        session.answers().forget();
        session.answers().learn(asked(1), "1MB", 0, 10);
        assert!(session.answers().value(&asked(1)).is_none());
        session.answers().learn(asked(1), "1MB", session.answers().age(), 10);
        assert!(session.answers().value(&asked(1)).is_some());
        session.answers().learn(asked(2), "1MB", session.answers().age(), 0);
        assert!(session.answers().value(&asked(2)).is_none());
    }

    /// Trap 61: a timeout that could end a statement of ours ties its client to its backend.
    #[test]
    fn trap_61_a_short_timeout_is_never_answered() {
        let session = client(&[]);
        let asked = request(&session, "SET statement_timeout TO '5'").unwrap();
        session.answers().learn(asked.clone(), "5ms", 0, 10);
        assert!(session.answers().value(&asked).is_none());
    }

    #[test]
    fn an_answer_becomes_what_a_backend_is_brought_to_and_what_the_client_is_told() {
        let mut session = client(&[("TimeZone", "Asia/Tokyo")]);
        let neutral = |name: &str| (name == "TimeZone").then_some(("TimeZone", b"UTC".as_slice()));
        let asked = request(&session, "SET TimeZone TO 'Europe/Paris'").unwrap();
        session.setting_answered(&asked, "Europe/Paris", neutral("TimeZone"));
        assert_eq!(
            session.news(neutral),
            [("TimeZone".to_owned(), b"Europe/Paris".to_vec())]
        );
        assert!(session.news(neutral).is_empty());
        let sql = session.prelude_for(&mut BackendState::default()).unwrap();
        assert!(String::from_utf8(sql).unwrap().contains("'TimeZone','Europe/Paris'"));
        // The server's own value needs no entry; one that is not reported gets one.
        session.setting_answered(&asked, "UTC", neutral("TimeZone"));
        assert!(session.settings().entries().is_empty());
        assert_eq!(session.news(neutral), [("TimeZone".to_owned(), b"UTC".to_vec())]);
        let asked = request(&session, "SET work_mem TO '4MB'").unwrap();
        session.setting_answered(&asked, "4MB", None);
        assert_eq!(session.settings().entries(), [("work_mem".into(), "4MB".into())]);
        assert!(session.news(neutral).is_empty());
    }
}
