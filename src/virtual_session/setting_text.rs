//! Texts that give one setting a value and do nothing else, in forms to which PostgreSQL's reply is known to the byte.
//!
//! Stricter than [`super::statement_effects`], which must recognise whatever a session may be changed by: here a text that
//! is not recognised costs a round trip, and one that is must be nothing else.

/// Settings that are answered. Anyone may set them, none names an object of the catalog, and what PostgreSQL makes of a value
/// depends on the value alone (`DateStyle` keeps what it is not told, which the memory of answers sees to). Any other name,
/// a custom one above all, may be a library's, which one backend has loaded and another has not.
const ANSWERABLE: [&str; 30] = [
    "application_name",
    "array_nulls",
    "bytea_output",
    "check_function_bodies",
    "client_encoding",
    "client_min_messages",
    "constraint_exclusion",
    "datestyle",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "enable_seqscan",
    "escape_string_warning",
    "extra_float_digits",
    "from_collapse_limit",
    "idle_in_transaction_session_timeout",
    "intervalstyle",
    "jit",
    "join_collapse_limit",
    "lock_timeout",
    "plan_cache_mode",
    "random_page_cost",
    "row_security",
    "standard_conforming_strings",
    "statement_timeout",
    "synchronous_commit",
    "timezone",
    "transaction_timeout",
    "work_mem",
    "xmloption",
];

/// The longest text that is looked at, in bytes.
const TEXT_LEN_MAX: usize = 256;
/// The longest value, in bytes.
const VALUE_LEN_MAX: usize = 128;

/// A recognised text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingText {
    /// In lower case.
    pub name: &'static str,
    /// What it gets.
    pub value: TextValue,
    /// It is a SELECT of set_config, which returns a row; else a SET.
    pub returns_row: bool,
}

impl SettingText {
    const fn set(name: &'static str, said: Said) -> Self {
        Self {
            name,
            value: TextValue::Said(said),
            returns_row: false,
        }
    }
}

/// The value in a recognised text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextValue {
    /// This one.
    Said(Said),
    /// `$1`.
    Parameter,
}

/// A value as it was said. Equal ones come to the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Said {
    /// A string, in whatever form of SET or set_config.
    String(Box<str>),
    /// A word or a number that not every form takes alike: by the whole text.
    Text(Box<str>),
}

impl Said {
    /// A string, if it is one that may be answered: of printable ASCII, which reads the same in every encoding.
    pub fn string(name: &str, value: &[u8]) -> Option<Self> {
        let value = std::str::from_utf8(value).ok()?;
        let is_plain = value.len() <= VALUE_LEN_MAX && value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        // An interval is read by IntervalStyle.
        let is_interval = name == "timezone" && value.get(..8).is_some_and(|it| it.eq_ignore_ascii_case("interval"));
        (is_plain && !is_interval).then(|| Self::String(value.into()))
    }
}

/// The name as it is kept, if settings of this name are answered.
pub fn answerable_name(name: &str) -> Option<&'static str> {
    ANSWERABLE.into_iter().find(|known| known.eq_ignore_ascii_case(name))
}

/// Recognises the text of a Query or Parse. Nearly all others are told by their first word or two.
pub fn setting_text(text: &[u8]) -> Option<SettingText> {
    if text.len() > TEXT_LEN_MAX || !begins_like_one(text) {
        return None;
    }
    let text = std::str::from_utf8(text).ok().filter(|text| text.is_ascii())?;
    let lower = text.to_ascii_lowercase();
    let tokens = tokens(text, &lower)?;
    let tokens = match tokens.as_slice() {
        [tokens @ .., Token::Mark(b';')] => tokens,
        tokens => tokens,
    };
    match tokens {
        [Token::Word("set"), Token::Word("session"), rest @ ..] => {
            characteristics(rest, text).or_else(|| set(rest, text))
        }
        [Token::Word("set"), rest @ ..] => set(rest, text),
        [Token::Word("select"), Token::Word("set_config"), rest @ ..]
        | [
            Token::Word("select"),
            Token::Word("pg_catalog"),
            Token::Mark(b'.'),
            Token::Word("set_config"),
            rest @ ..,
        ] => set_config(rest),
        _ => None,
    }
}

fn begins_like_one(text: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    let is_word = |text: &[u8], word: &[u8]| text.get(..word.len()).is_some_and(|it| it.eq_ignore_ascii_case(word));
    if is_word(text, b"set") {
        return text.get(3).is_some_and(u8::is_ascii_whitespace);
    }
    is_word(text, b"select") && {
        let behind = text.get(6..).unwrap_or_default().trim_ascii_start();
        is_word(behind, b"set_config") || is_word(behind, b"pg_catalog")
    }
}

/// What stands behind SET or SET SESSION.
fn set(tokens: &[Token<'_>], text: &str) -> Option<SettingText> {
    let (name, value) = match tokens {
        [Token::Word("time"), Token::Word("zone"), value] => ("timezone", value),
        [Token::Word("names"), value @ Token::String(_)] => ("client_encoding", value),
        // The grammar makes strings of these words, as of any but a reserved one.
        [
            Token::Word(name),
            Token::Word("to") | Token::Mark(b'='),
            Token::Word(word @ ("on" | "off" | "true" | "false")),
        ] => return Some(SettingText::set(answerable_name(name)?, Said::String((*word).into()))),
        [Token::Word(name), Token::Word("to") | Token::Mark(b'='), value] => (*name, value),
        _ => return None,
    };
    let name = answerable_name(name)?;
    let said = match value {
        Token::String(value) => Said::string(name, value.as_bytes())?,
        Token::Word("default" | "local") => return None,
        Token::Number(number) if is_plain_integer(number) => Said::String((*number).into()),
        Token::Word(_) | Token::Number(_) => Said::Text(text.into()),
        Token::Parameter | Token::Mark(_) => return None,
    };
    Some(SettingText::set(name, said))
}

/// An integer that is written as PostgreSQL writes it, which is what becomes of it.
fn is_plain_integer(number: &str) -> bool {
    let digits = number.strip_prefix('-').unwrap_or(number);
    digits.len() < 10 && digits.bytes().all(|byte| byte.is_ascii_digit()) && (!digits.starts_with('0') || number == "0")
}

/// `CHARACTERISTICS AS TRANSACTION mode`, behind SET SESSION.
fn characteristics(tokens: &[Token<'_>], text: &str) -> Option<SettingText> {
    use Token::Word;
    let [Word("characteristics"), Word("as"), Word("transaction"), mode @ ..] = tokens else {
        return None;
    };
    let name = match mode {
        [Word("isolation"), Word("level"), Word("serializable")]
        | [Word("isolation"), Word("level"), Word("repeatable"), Word("read")]
        | [
            Word("isolation"),
            Word("level"),
            Word("read"),
            Word("committed" | "uncommitted"),
        ] => "default_transaction_isolation",
        [Word("read"), Word("only" | "write")] => "default_transaction_read_only",
        [Word("deferrable")] | [Word("not"), Word("deferrable")] => "default_transaction_deferrable",
        _ => return None,
    };
    Some(SettingText::set(name, Said::Text(text.into())))
}

/// `('name', value, false)` and nothing behind it.
fn set_config(tokens: &[Token<'_>]) -> Option<SettingText> {
    let [
        Token::Mark(b'('),
        Token::String(name),
        Token::Mark(b','),
        value,
        Token::Mark(b','),
        Token::Word("false"),
        Token::Mark(b')'),
    ] = tokens
    else {
        return None;
    };
    let name = answerable_name(name)?;
    let value = match value {
        Token::String(value) => TextValue::Said(Said::string(name, value.as_bytes())?),
        Token::Parameter => TextValue::Parameter,
        _ => return None,
    };
    Some(SettingText {
        name,
        value,
        returns_row: true,
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Token<'a> {
    /// In lower case.
    Word(&'a str),
    /// Without its quotes.
    String(String),
    Number(&'a str),
    /// `$1`.
    Parameter,
    Mark(u8),
}

/// The words of a text, if it has none but these few kinds: no comment, no backslash, no prefix before a string.
fn tokens<'a>(text: &'a str, lower: &'a str) -> Option<Vec<Token<'a>>> {
    let bytes = text.as_bytes();
    let run =
        |from: usize, is_in: fn(&u8) -> bool| from + bytes.iter().skip(from).take_while(|byte| is_in(byte)).count();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let end = match byte {
            b' ' | b'\t' | b'\r' | b'\n' => {
                at += 1;
                continue;
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                let end = run(at, |byte| byte.is_ascii_alphanumeric() || *byte == b'_');
                tokens.push(Token::Word(lower.get(at..end)?));
                end
            }
            b'-' | b'0'..=b'9' => {
                let end = run(at + 1, |byte| byte.is_ascii_digit() || *byte == b'.');
                tokens.push(Token::Number(text.get(at..end)?));
                end
            }
            b'$' if bytes.get(at + 1) == Some(&b'1') => {
                tokens.push(Token::Parameter);
                at + 2
            }
            b'\'' => {
                let (value, end) = string(text, at + 1)?;
                tokens.push(Token::String(value));
                end
            }
            b'(' | b')' | b',' | b'=' | b'.' | b';' => {
                tokens.push(Token::Mark(byte));
                at += 1;
                continue;
            }
            _ => return None,
        };
        // `N'x'`, `8x`, `$12`, `a$b`: something else than it seems.
        let is_joined = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'\'' | b'"' | b'\\');
        if bytes.get(end).is_some_and(is_joined) {
            return None;
        }
        at = end;
    }
    Some(tokens)
}

/// A string from behind its opening quote, with where it ends.
fn string(text: &str, start: usize) -> Option<(String, usize)> {
    let mut value = String::new();
    let mut rest = text.get(start..)?.char_indices().peekable();
    while let Some((offset, character)) = rest.next() {
        match character {
            '\'' if rest.next_if(|(_, next)| *next == '\'').is_none() => return Some((value, start + offset + 1)),
            // Whether it escapes depends on standard_conforming_strings.
            '\\' => return None,
            character => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(name: &'static str, value: &str, returns_row: bool) -> Option<SettingText> {
        Some(SettingText {
            name,
            value: TextValue::Said(Said::String(value.into())),
            returns_row,
        })
    }

    #[test]
    fn a_value_is_the_same_in_every_form() {
        for text in [
            "SET TimeZone TO 'UTC'",
            "set session timezone = 'UTC' ;",
            "SET\tTIMEZONE='UTC'",
            " SET TIME ZONE 'UTC'",
            "SET SESSION TIME ZONE 'UTC'",
        ] {
            assert_eq!(
                setting_text(text.as_bytes()),
                string("timezone", "UTC", false),
                "{text}"
            );
        }
        for text in [
            "SELECT set_config('TimeZone', 'UTC', false)",
            "select\npg_catalog . set_config('timezone','UTC',FALSE);",
        ] {
            assert_eq!(setting_text(text.as_bytes()), string("timezone", "UTC", true), "{text}");
        }
        assert_eq!(
            setting_text(b"SET NAMES 'utf8'"),
            string("client_encoding", "utf8", false)
        );
        assert_eq!(
            setting_text(b"SET application_name = 'it''s'"),
            string("application_name", "it's", false)
        );
        for (text, name, value) in [
            ("SET extra_float_digits = 3", "extra_float_digits", "3"),
            ("SET extra_float_digits TO -15", "extra_float_digits", "-15"),
            ("SET TIME ZONE -8", "timezone", "-8"),
            ("SET statement_timeout=0", "statement_timeout", "0"),
            (
                "SET standard_conforming_strings = ON",
                "standard_conforming_strings",
                "on",
            ),
        ] {
            assert_eq!(setting_text(text.as_bytes()), string(name, value, false), "{text}");
        }
        let bound = setting_text(b"SELECT set_config('TimeZone', $1, false)").unwrap();
        assert_eq!(bound.value, TextValue::Parameter);
    }

    #[test]
    fn other_words_and_numbers_go_by_their_whole_text() {
        for (text, name) in [
            ("SET client_min_messages TO warning", "client_min_messages"),
            ("SET TIME ZONE UTC", "timezone"),
            ("SET work_mem = 08", "work_mem"),
            ("SET work_mem = 4000000000", "work_mem"),
            ("SET random_page_cost = 1.1", "random_page_cost"),
            (
                "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
                "default_transaction_read_only",
            ),
            (
                "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED",
                "default_transaction_isolation",
            ),
        ] {
            let found = setting_text(text.as_bytes()).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(
                (found.name, found.value),
                (name, TextValue::Said(Said::Text(text.into())))
            );
        }
    }

    #[test]
    fn whatever_else_it_may_be_is_not_recognised() {
        for text in [
            "",
            "SET",
            "SET LOCAL TimeZone TO 'UTC'",
            "SET TimeZone TO DEFAULT",
            "SET TIME ZONE LOCAL",
            "SET TIME ZONE DEFAULT",
            "SET TIME ZONE INTERVAL '-08:00' HOUR TO MINUTE",
            "SET TimeZone TO 'INTERVAL ''-08:00'' HOUR TO MINUTE'",
            "SET TimeZone TO 'UTC', 'x'",
            "SET TimeZone TO 'UTC' 'x'",
            "SET TimeZone TO 'UTC'; SELECT 1",
            "SET TimeZone TO 'UTC';;",
            "SET TimeZone TO 'UTC' -- why",
            "SET TimeZone /* why */ TO 'UTC'",
            "SET TimeZone TO E'UTC'",
            "SET TimeZone TO N'UTC'",
            "SET TimeZone TO U&'UTC'",
            "SET TimeZone TO $$UTC$$",
            "SET TimeZone TO 'U\\TC'",
            "SET TimeZone TO 'UTC",
            "SET TimeZone TO 'UTC'x",
            "SET TimeZone TO 'Ünterwegs'",
            "SET TimeZone TO 'a\nb'",
            "SET \"TimeZone\" TO 'UTC'",
            "SET app.tenant TO 'UTC'",
            "SET role TO 'x'",
            "SET ROLE 'x'",
            "SET SESSION AUTHORIZATION 'x'",
            "SET search_path TO 'x'",
            "SET default_tablespace TO 'x'",
            "SET session_replication_role TO 'replica'",
            "SET NAMES utf8",
            "SET extra_float_digits = 3x",
            "SET extra_float_digits = $1",
            "SET extra_float_digits TO to 3",
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY, DEFERRABLE",
            "SET CHARACTERISTICS AS TRANSACTION READ ONLY",
            "SET TRANSACTION READ ONLY",
            "SELECT set_config('TimeZone', 'UTC', true)",
            "SELECT set_config('TimeZone', 'UTC', false) AS x",
            "SELECT set_config('TimeZone', 'UTC', false), 1",
            "SELECT set_config('TimeZone', 'UTC', false) FROM t",
            "SELECT set_config('TimeZone', $2, false)",
            "SELECT set_config('TimeZone', $12, false)",
            "SELECT set_config('TimeZone', null, false)",
            "SELECT set_config('app.tenant', '1', false)",
            "SELECT aside.set_config('TimeZone', 'UTC', false)",
            "SELECT pg_catalog.set_config",
            "SELECT 'set_config'",
        ] {
            assert_eq!(setting_text(text.as_bytes()), None, "{text}");
        }
        let long = format!("SET application_name = '{}'", "x".repeat(VALUE_LEN_MAX + 1));
        assert_eq!(setting_text(long.as_bytes()), None);
        assert_eq!(setting_text(b"SET TimeZone TO 'UTC'\0"), None);
        assert_eq!(
            setting_text(&[b"SET TimeZone TO '".as_slice(), &[0xff, b'\'']].concat()),
            None
        );
    }
}
