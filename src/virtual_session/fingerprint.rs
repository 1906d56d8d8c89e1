//! A statement as a log may show it: its words, without literals, comments and the values of a SET.

use super::sql_lexer::{Lexer, Lexing, TokenKind};

/// Writes the statement's tokens with `?` for each literal. `is_cut` says that `text` is only the statement's beginning:
/// its last token may be half of one and is left out. What does not lex ends the fingerprint, because the rest may be
/// anything, a secret too.
pub fn fingerprint(text: &[u8], lexing: Lexing, is_cut: bool) -> String {
    let mut written = Writer::default();
    let Ok(mut lexer) = Lexer::new(text, lexing) else {
        return "…".to_owned();
    };
    let mut set = SetClause::Start;
    loop {
        match lexer.next_token() {
            Ok(Some(token)) if is_cut && usize::try_from(token.end).is_ok_and(|end| end >= text.len()) => {
                break written.cut();
            }
            Ok(Some(token)) => {
                let bytes = token.bytes(text);
                let was_value = set == SetClause::Value;
                set = set.after(token.kind, bytes);
                let is_literal = matches!(token.kind, TokenKind::String(_) | TokenKind::Number);
                match (was_value && set == SetClause::Value, is_literal) {
                    (true, _) => written.value(),
                    (false, true) => written.word(b"?", token.start, token.end),
                    (false, false) => written.word(bytes, token.start, token.end),
                }
            }
            Ok(None) => break if is_cut { written.cut() } else { written.text },
            Err(_) => break written.cut(),
        }
    }
}

/// Where in a SET the walk is: its values can be bare words, so all that stands behind `TO` or `=` is left out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SetClause {
    /// Before a statement's first word.
    Start,
    /// Behind SET, before its value.
    Name,
    /// The value.
    Value,
    /// In another statement.
    None,
}

impl SetClause {
    fn after(self, kind: TokenKind, bytes: &[u8]) -> Self {
        let is = |word: &str| kind == TokenKind::Word && bytes.eq_ignore_ascii_case(word.as_bytes());
        match self {
            _ if kind == TokenKind::Semicolon => Self::Start,
            Self::Start if is("set") => Self::Name,
            // ALTER … SET name TO value
            Self::Start if is("alter") => Self::Name,
            Self::Name if is("to") || bytes == b"=" => Self::Value,
            Self::Start => Self::None,
            same => same,
        }
    }
}

#[derive(Default)]
struct Writer {
    text: String,
    last_end: u32,
}

impl Writer {
    fn word(&mut self, bytes: &[u8], start: u32, end: u32) {
        if start > self.last_end && !self.text.is_empty() {
            self.text.push(' ');
        }
        self.text.push_str(&String::from_utf8_lossy(bytes));
        self.last_end = end;
    }

    /// A SET's value, however many tokens it has.
    fn value(&mut self) {
        if !self.text.ends_with(" ?") {
            self.text.push_str(" ?");
        }
    }

    fn cut(mut self) -> String {
        self.text.push_str(if self.text.is_empty() { "…" } else { " …" });
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> String {
        fingerprint(text.as_bytes(), Lexing::default(), false)
    }

    #[test]
    fn literals_and_comments_are_left_out() {
        for (text, expected) in [
            ("SELECT 'secret', 42, E'\\'x', $$body$$, B'1'", "SELECT ?, ?, ?, ?, ?"),
            (
                "update  t set a = 'x'\n where id=$1 -- secret",
                "update t set a = ? where id=$1",
            ),
            ("/* secret */ SELECT \"Col\"", "SELECT \"Col\""),
            ("SET app.tenant TO secret", "SET app.tenant TO ?"),
            (
                "set local app.tenant = a, b; select 1",
                "set local app.tenant = ? ; select ?",
            ),
            ("ALTER ROLE x PASSWORD 'secret'", "ALTER ROLE x PASSWORD ?"),
            ("ALTER ROLE x SET app.key TO secret", "ALTER ROLE x SET app.key TO ?"),
            ("", ""),
        ] {
            assert_eq!(of(text), expected);
        }
    }

    #[test]
    fn what_does_not_lex_ends_the_fingerprint() {
        assert_eq!(of("SELECT 'secret"), "SELECT …");
        assert_eq!(of("SELECT $a$ secret"), "SELECT …");
        assert_eq!(of("'secret"), "…");
    }

    #[test]
    fn no_cut_at_any_byte_shows_a_part_of_a_literal() {
        let text = "SELECT 'secret''s' , 5678, \"name\", E'\\'secret', $q$secret$q$, x'5ec4e7', 5678e5 FROM t";
        for len in 0..text.len() {
            let shown = fingerprint(&text.as_bytes()[..len], Lexing::default(), true);
            assert!(!shown.contains("sec") && !shown.contains('5'), "{len}: {shown}");
        }
    }

    #[test]
    fn an_encoding_that_hides_quotes_shows_nothing() {
        let lexing = Lexing {
            encoding: super::super::sql_lexer::EncodingClass::Unsafe,
            ..Lexing::default()
        };
        assert_eq!(fingerprint("SELECT 'é'".as_bytes(), lexing, false), "…");
    }
}
