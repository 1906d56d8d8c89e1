//! Texts as clients send them: cut into tokens, read for their effects, shown in a log.
//!
//! What must hold is said twice: by what the code promises of itself (one text under settings that do not matter to it
//! means one thing; what stands before a statement hides nothing of it; a change said again is the same change), and by
//! a second reader, written from the rules of PostgreSQL's manual (sql-syntax-lexical) without a look at the first.

use crate::virtual_session::fingerprint::fingerprint;
use crate::virtual_session::known_texts::KnownTexts;
use crate::virtual_session::pins::PinReason;
use crate::virtual_session::setting_change::{SettingChange, SettingName, SettingScope, SettingValue};
use crate::virtual_session::sql_lexer::{
    EncodingClass, LexError, Lexer, Lexing, StandardConformingStrings, StringKind, Token, TokenKind, identifier_name,
    string_value,
};
use crate::virtual_session::statement_effects::{Effects, classify};
use crate::virtual_session::suspects::{SuspectKind, Suspects};

/// Longer inputs find nothing that shorter ones don't, but for what grows faster than its text: [`grow`].
const INPUT_LEN_MAX: usize = 4096;
/// The length to which an input is grown, in bytes: something that costs its square shows in the fuzzer's own time limit.
const GROWN_LEN: usize = 32 * 1024;
/// What ends one text and begins another.
const SEPARATOR: u8 = 0xff;

/// Bit 0 of the first byte: the text is said again and again, for what that costs. The rest is text, or two behind one
/// another with 0xff in between.
pub(super) fn run(data: &[u8]) {
    let Some((&selector, text)) = data.split_first() else {
        return;
    };
    let text = text.get(..INPUT_LEN_MAX).unwrap_or(text);
    if selector & 1 == 1 {
        return grow(text);
    }
    for lexing in lexings() {
        look_at(text, lexing);
        numbers_do_not_matter(text, lexing);
    }
    settings_that_do_not_matter(text);
    let mut parts = text.splitn(2, |byte| *byte == SEPARATOR);
    if let (Some(first), Some(second)) = (parts.next(), parts.next()) {
        nothing_is_hidden_behind(first, second);
    }
}

/// Its time is all that is looked at, by whoever runs this.
fn grow(text: &[u8]) {
    if text.is_empty() {
        return;
    }
    let (opening, closing) = text.split_at(text.len().div_ceil(2));
    let times = GROWN_LEN / text.len();
    for grown in [
        text.repeat(times),
        [opening.repeat(times), closing.repeat(times)].concat(),
    ] {
        classify(&grown, Lexing::default(), &Suspects::everything());
        fingerprint(&grown, Lexing::default(), false);
    }
}

/// A catalog with nothing to warn of.
fn no_suspects() -> Suspects {
    Suspects::known([])
}

fn lexings() -> impl Iterator<Item = Lexing> {
    use StandardConformingStrings::{Off, On, Uncertain};
    let strings = [On, Off, Uncertain];
    let encodings = [EncodingClass::AsciiSafe, EncodingClass::Unsafe];
    strings
        .into_iter()
        .flat_map(move |strings| encodings.map(|encoding| Lexing { strings, encoding }))
}

/// What holds for any text under any settings.
fn look_at(text: &[u8], lexing: Lexing) {
    let tokens = tokens(text, lexing);
    let suspicious = Suspects::known([
        (SuspectKind::Mention, &b"t"[..]),
        (SuspectKind::Write, b"u"),
        (SuspectKind::Operator, b"@"),
    ]);
    let plain = classify(text, lexing, &no_suspects());
    for suspects in [suspicious, Suspects::everything(), Suspects::every_mention()] {
        let effects = classify(text, lexing, &suspects);
        let kept = plain.pins.iter().all(|reason| effects.pins.contains(reason));
        assert!(
            kept || effects.pins.contains(PinReason::Unlexable),
            "more suspicion finds no less"
        );
    }
    match &tokens {
        Err(_) => assert!(
            plain.pins.contains(PinReason::Unlexable),
            "what does not lex is unknown"
        ),
        Ok(tokens) => {
            look_at_tokens(text, lexing, tokens);
            assert_eq!(
                shown(text, lexing),
                shown(&without_literals(text, tokens), lexing),
                "a literal is shown"
            );
        }
    }
    for cut in [text.len() / 2, text.len().saturating_sub(1)] {
        fingerprint(text.get(..cut).unwrap_or_default(), lexing, true);
    }
    plain.settings().for_each(look_at_change);
    let values: [Option<&[u8]>; 3] = [Some(b"app.x"), None, Some(b"a'\\b")];
    plain.bound(&values).settings().for_each(look_at_change);
}

/// What is known of a Query is what would be read of it, whatever is said in the place of a digit.
fn numbers_do_not_matter(text: &[u8], lexing: Lexing) {
    let (mut known, suspects) = (KnownTexts::default(), no_suspects());
    let read = |text: &[u8]| Effects {
        suspects: suspects.fingerprint(),
        ..classify(text, lexing, &suspects)
    };
    let effects = read(text);
    for _ in 0..2 {
        known.note_query(text, lexing, &effects, &suspects);
    }
    let digits = |text: &[u8]| text.iter().position(u8::is_ascii_digit);
    let Some(at) = digits(text) else {
        return;
    };
    let last = text.iter().rposition(u8::is_ascii_digit).unwrap_or(at);
    for (at, other) in [(at, &b"42"[..]), (last, b"0"), (last, b"7'"), (at, b"a"), (last, b"")] {
        let other = [&text[..at], other, &text[at + 1..]].concat();
        if let Some(found) = known.known_query(&other, lexing, suspects.fingerprint()) {
            assert_eq!(*found, read(&other), "{:?}", String::from_utf8_lossy(&other));
        }
    }
}

fn shown(text: &[u8], lexing: Lexing) -> String {
    fingerprint(text, lexing, false)
}

/// The tokens, which lie behind one another in the text, with nothing but space and comments in between.
fn tokens(text: &[u8], lexing: Lexing) -> Result<Vec<Token>, LexError> {
    let mut lexer = Lexer::new(text, lexing)?;
    let mut tokens = Vec::new();
    let mut end = 0;
    loop {
        let token = lexer.next_token()?;
        let next = token.map_or(text.len(), |token| token.start as usize);
        let between = text.get(end..next).expect("tokens do not overlap");
        assert!(is_nothing(between), "{:?} is no token's", between);
        let Some(token) = token else {
            return Ok(tokens);
        };
        assert!(token.start < token.end && token.end as usize <= text.len());
        end = token.end as usize;
        tokens.push(token);
        assert!(tokens.len() <= text.len(), "a token has a byte at least");
    }
}

/// Space and comments.
fn is_nothing(bytes: &[u8]) -> bool {
    read(bytes, false).is_some_and(|pieces| pieces.is_empty())
}

/// What the text tells where it lexes, beside what the second reader finds in it.
fn look_at_tokens(text: &[u8], lexing: Lexing, tokens: &[Token]) {
    for token in tokens {
        let name = identifier_name(text, *token);
        assert_eq!(
            name.is_some(),
            matches!(token.kind, TokenKind::Word | TokenKind::QuotedIdentifier)
        );
        let value = string_value(text, *token);
        assert!(value.is_none_or(|value| value.len() < token.bytes(text).len()));
    }
    let escapes = lexing.strings == StandardConformingStrings::Off;
    let pieces = read(text, escapes).expect("what lexes ends all that it begins");
    let words = |kind| {
        matches!(
            kind,
            Kind::Word | Kind::Name | Kind::Text | Kind::Semicolon | Kind::Open | Kind::Close
        )
    };
    let found: Vec<_> = tokens
        .iter()
        .map(Piece::from)
        .filter(|piece| words(piece.kind))
        .collect();
    let expected: Vec<_> = pieces.iter().copied().filter(|piece| words(piece.kind)).collect();
    assert_eq!(found, expected, "both readers see one text");
    let effects = classify(text, lexing, &no_suspects());
    if tells_something(text, &pieces) {
        assert!(
            !effects.is_none(),
            "{:?} is said to do nothing",
            String::from_utf8_lossy(text)
        );
    }
}

/// Where both readings of backslashes are possible and the text lexes all the same, it means the same under each; and
/// the encoding matters to nothing that is ASCII.
fn settings_that_do_not_matter(text: &[u8]) {
    use StandardConformingStrings::{Off, On, Uncertain};
    let effects = |strings, encoding| classify(text, Lexing { strings, encoding }, &no_suspects());
    let safe = EncodingClass::AsciiSafe;
    if tokens(
        text,
        Lexing {
            strings: Uncertain,
            encoding: safe,
        },
    )
    .is_ok()
    {
        let uncertain = effects(Uncertain, safe);
        assert_eq!(uncertain, effects(On, safe), "no backslash is read");
        assert_eq!(uncertain, effects(Off, safe), "no backslash is read");
    }
    let unsafe_effects = effects(On, EncodingClass::Unsafe);
    match text.is_ascii() {
        true => assert_eq!(unsafe_effects, effects(On, safe)),
        false => assert!(unsafe_effects.pins.contains(PinReason::Unlexable)),
    }
}

/// A statement does what it does, whatever stands before it.
fn nothing_is_hidden_behind(first: &[u8], second: &[u8]) {
    let is_plain = read(first, false).is_some_and(|pieces| {
        let word = |piece: &Piece| text_of(first, *piece).to_ascii_lowercase();
        !pieces
            .iter()
            .any(|piece| matches!(piece.kind, Kind::Open | Kind::Close) || word(piece) == b"create")
    });
    let lexing = Lexing::default();
    if !is_plain || tokens(first, lexing).is_err() {
        return;
    }
    let alone = classify(second, lexing, &no_suspects());
    let both = classify(&[first, b"\n;", second].concat(), lexing, &no_suspects());
    assert!(
        alone.pins.iter().all(|reason| both.pins.contains(reason)),
        "{alone:?} is hidden in {both:?}"
    );
    assert_eq!(
        alone.settings().count(),
        both.settings()
            .skip(classify(first, lexing, &no_suspects()).settings().count())
            .count()
    );
    assert!(alone.ends_transaction <= both.ends_transaction && alone.notifies <= both.notifies);
    assert!(alone.catalog_change <= both.catalog_change && alone.statement_count <= both.statement_count);
    assert!(both.is_read_only_shape <= alone.is_read_only_shape && both.without_effect <= alone.without_effect);
}

/// A change that is said again to another backend is the same change, however that one reads backslashes.
fn look_at_change(change: &SettingChange) {
    let Some(sql) = change.to_sql() else {
        assert!(matches!(
            change,
            SettingChange::Set {
                name: SettingName::FromBind(_) | SettingName::Unknown,
                ..
            } | SettingChange::Set {
                value: SettingValue::FromBind(_) | SettingValue::Unknown,
                ..
            }
        ));
        return;
    };
    for strings in [StandardConformingStrings::On, StandardConformingStrings::Off] {
        let lexing = Lexing {
            strings,
            ..Lexing::default()
        };
        let again = classify(&sql, lexing, &no_suspects());
        let again: Vec<_> = again.settings().map(of_the_session).collect();
        assert_eq!(again, [of_the_session(change)], "{:?}", String::from_utf8_lossy(&sql));
    }
}

fn of_the_session(change: &SettingChange) -> SettingChange {
    match change.clone() {
        SettingChange::Set { name, value, .. } => SettingChange::Set {
            name,
            value,
            scope: SettingScope::Session,
        },
        other => other,
    }
}

/// The same text with other letters in its strings.
fn without_literals(text: &[u8], tokens: &[Token]) -> Vec<u8> {
    let mut other = text.to_vec();
    let strings = tokens.iter().filter(|token| matches!(token.kind, TokenKind::String(_)));
    for token in strings {
        let bytes = &mut other[token.start as usize..token.end as usize];
        let opening = match token.kind {
            TokenKind::String(StringKind::Dollar) => continue,
            _ => bytes.iter().position(|byte| *byte == b'\'').unwrap_or_default(),
        };
        for byte in bytes
            .iter_mut()
            .skip(opening)
            .filter(|byte| byte.is_ascii_alphanumeric())
        {
            *byte = b'q';
        }
    }
    other
}

// --- the second reader ---

/// What a piece of a text is, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Word,
    /// `"…"`, or `U&"…"`.
    Name,
    Text,
    Semicolon,
    Open,
    Close,
    Dot,
    Comma,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    kind: Kind,
    start: usize,
    end: usize,
}

impl From<&Token> for Piece {
    fn from(token: &Token) -> Self {
        let kind = match token.kind {
            TokenKind::Word => Kind::Word,
            TokenKind::QuotedIdentifier | TokenKind::UnicodeIdentifier => Kind::Name,
            TokenKind::String(_) => Kind::Text,
            TokenKind::Semicolon => Kind::Semicolon,
            TokenKind::OpenParen => Kind::Open,
            TokenKind::CloseParen => Kind::Close,
            _ => Kind::Other,
        };
        Self {
            kind,
            start: token.start as usize,
            end: token.end as usize,
        }
    }
}

fn text_of(text: &[u8], piece: Piece) -> &[u8] {
    text.get(piece.start..piece.end).unwrap_or_default()
}

fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_in_word(byte: u8) -> bool {
    is_letter(byte) || byte.is_ascii_digit() || byte == b'$'
}

/// The text's pieces, space and comments left out; `None` where something is begun and not ended.
fn read(text: &[u8], escapes: bool) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let rest = &text[at..];
        let run = |keep: fn(u8) -> bool| at + rest.iter().position(|byte| !keep(*byte)).unwrap_or(rest.len());
        let (kind, end) = match rest {
            [b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c, ..] => {
                at += 1;
                continue;
            }
            [b'-', b'-', ..] => {
                at = run(|byte| byte != b'\n' && byte != b'\r');
                continue;
            }
            [b'/', b'*', ..] => {
                at = comment_end(text, at)?;
                continue;
            }
            [b'e' | b'E', b'\'', ..] => (Kind::Text, string_end(text, at + 2, true)?),
            [b'b' | b'B' | b'x' | b'X', b'\'', ..] => (Kind::Text, string_end(text, at + 2, false)?),
            [b'n' | b'N', b'\'', ..] => (Kind::Text, string_end(text, at + 2, escapes)?),
            [b'u' | b'U', b'&', b'\'', ..] => (Kind::Text, string_end(text, at + 3, false)?),
            [b'u' | b'U', b'&', b'"', ..] => (Kind::Name, name_end(text, at + 3)?),
            [b'\'', ..] => (Kind::Text, string_end(text, at + 1, escapes)?),
            [b'"', ..] => (Kind::Name, name_end(text, at + 1)?),
            [b'$', b'0'..=b'9', ..] => (Kind::Other, digits_end(text, at + 1)),
            [b'$', ..] => (Kind::Text, dollar_end(text, at)?),
            [b'0'..=b'9', ..] => (Kind::Other, number_end(text, at)),
            [b'.', b'0'..=b'9', ..] => (Kind::Other, number_end(text, at)),
            [b';', ..] => (Kind::Semicolon, at + 1),
            [b'(', ..] => (Kind::Open, at + 1),
            [b')', ..] => (Kind::Close, at + 1),
            [b'.', ..] => (Kind::Dot, at + 1),
            [b',', ..] => (Kind::Comma, at + 1),
            _ if is_letter(byte) => (Kind::Word, run(is_in_word)),
            _ => (Kind::Other, at + 1),
        };
        pieces.push(Piece { kind, start: at, end });
        at = end;
    }
    Some(pieces)
}

/// Where a comment ends that begins here; each one inside it has an end of its own.
fn comment_end(text: &[u8], start: usize) -> Option<usize> {
    let (mut at, mut open) = (start, 0_u32);
    loop {
        match text.get(at..at + 2)? {
            b"/*" => (at, open) = (at + 2, open + 1),
            b"*/" => (at, open) = (at + 2, open - 1),
            _ => at += 1,
        }
        if open == 0 {
            return Some(at);
        }
    }
}

fn name_end(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        match (text.get(at)?, text.get(at + 1)) {
            (b'"', Some(b'"')) => at += 2,
            (b'"', _) => return Some(at + 1),
            _ => at += 1,
        }
    }
}

fn string_end(text: &[u8], start: usize, escapes: bool) -> Option<usize> {
    let mut at = start;
    loop {
        match (text.get(at)?, text.get(at + 1)) {
            (b'\\', _) if escapes => at += 2,
            (b'\'', Some(b'\'')) => at += 2,
            (b'\'', _) => match continued_at(text, at + 1) {
                Some(again) => at = again,
                None => return Some(at + 1),
            },
            _ => at += 1,
        }
    }
}

/// A string goes on behind a line break, and comments before or after that.
fn continued_at(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    let mut has_break = false;
    loop {
        match text.get(at)? {
            b'\n' | b'\r' => has_break = true,
            b' ' | b'\t' | 0x0b | 0x0c => {}
            b'-' if text.get(at + 1) == Some(&b'-') => {
                let line = text.get(at..)?;
                at += line.iter().position(|byte| matches!(byte, b'\n' | b'\r'))?;
                continue;
            }
            b'\'' if has_break => return Some(at + 1),
            _ => return None,
        }
        at += 1;
    }
}

/// `$tag$ … $tag$`; a `$` that begins no such thing is a piece of its own.
fn dollar_end(text: &[u8], start: usize) -> Option<usize> {
    let rest = text.get(start..)?;
    let tag_len = rest.iter().skip(1).position(|byte| *byte == b'$').map(|len| len + 2);
    let Some(tag) = tag_len.and_then(|len| rest.get(..len)) else {
        return Some(start + 1);
    };
    let name = tag.get(1..tag.len() - 1)?;
    if name.first().is_some_and(u8::is_ascii_digit) || !name.iter().all(|byte| is_in_word(*byte)) {
        return Some(start + 1);
    }
    let body = rest.get(tag.len()..)?;
    let len = body.windows(tag.len()).position(|window| window == tag)?;
    Some(start + tag.len() + len + tag.len())
}

fn digits_end(text: &[u8], start: usize) -> usize {
    let rest = text.get(start..).unwrap_or_default();
    start
        + rest
            .iter()
            .position(|byte| !byte.is_ascii_digit())
            .unwrap_or(rest.len())
}

/// A number; the letters right behind it are a word.
fn number_end(text: &[u8], start: usize) -> usize {
    let mut at = digits_end(text, start);
    if text.get(at) == Some(&b'.') && text.get(at + 1) != Some(&b'.') {
        at = digits_end(text, at + 1);
    }
    match text.get(at..).unwrap_or_default() {
        [b'e' | b'E', b'0'..=b'9', ..] => digits_end(text, at + 1),
        [b'e' | b'E', b'+' | b'-', b'0'..=b'9', ..] => digits_end(text, at + 2),
        _ => at,
    }
}

/// Statements that begin so do something to the session or its transaction.
const LEADS: [&[u8]; 11] = [
    b"listen",
    b"unlisten",
    b"load",
    b"do",
    b"prepare",
    b"execute",
    b"deallocate",
    b"discard",
    b"notify",
    b"savepoint",
    b"begin",
];
/// Calls that do, wherever they stand.
const CALLS: [&[u8]; 8] = [
    b"set_config",
    b"pg_advisory_lock",
    b"setseed",
    b"nextval",
    b"currval",
    b"lastval",
    b"pg_notify",
    b"no_function_of_postgresqls",
];

/// What the second reader is sure of: a statement is not an ordinary one. Much more is not.
fn tells_something(text: &[u8], pieces: &[Piece]) -> bool {
    let word = |piece: Option<&Piece>| {
        piece
            .filter(|piece| piece.kind == Kind::Word)
            .map(|piece| text_of(text, *piece).to_ascii_lowercase())
    };
    // What stands in a routine's body is no statement of the text's.
    if pieces
        .iter()
        .any(|piece| text_of(text, *piece).eq_ignore_ascii_case(b"atomic"))
    {
        return false;
    }
    let (mut depth, mut is_start) = (0_u32, true);
    for (index, piece) in pieces.iter().enumerate() {
        match piece.kind {
            Kind::Semicolon => is_start |= depth == 0,
            Kind::Open => depth += 1,
            Kind::Close if depth == 0 => return false,
            Kind::Close => depth -= 1,
            Kind::Word if is_start => {
                let (lead, next) = (word(Some(piece)).unwrap_or_default(), word(pieces.get(index + 1)));
                let lasts =
                    |next: &Vec<u8>| !matches!(&next[..], b"transaction" | b"constraints" | b"local" | b"session");
                let sets = matches!(&lead[..], b"set" | b"reset") && next.as_ref().is_some_and(lasts);
                // Alone it is no SQL.
                let is_whole = pieces.get(index + 1).is_some_and(|next| next.kind != Kind::Semicolon);
                if sets || (is_whole && LEADS.contains(&&lead[..])) {
                    return true;
                }
            }
            _ => {}
        }
        is_start &= piece.kind == Kind::Semicolon;
    }
    depth == 0 && calls_something(text, pieces)
}

fn calls_something(text: &[u8], pieces: &[Piece]) -> bool {
    let is_select = pieces
        .first()
        .is_some_and(|first| text_of(text, *first).eq_ignore_ascii_case(b"select"));
    is_select
        && pieces.windows(3).any(|window| {
            let [before, name, open] = window else { return false };
            let folded = match name.kind {
                Kind::Word => text_of(text, *name).to_ascii_lowercase(),
                Kind::Name => text_of(text, *name).trim_ascii().to_vec(),
                _ => return false,
            };
            let folded = folded
                .strip_prefix(b"\"")
                .and_then(|name| name.strip_suffix(b"\""))
                .unwrap_or(&folded);
            let begins = matches!(before.kind, Kind::Comma) || text_of(text, *before).eq_ignore_ascii_case(b"select");
            begins && open.kind == Kind::Open && CALLS.contains(&folded)
        })
}

/// So that every effect is looked at, whatever is added to it.
#[cfg(test)]
mod tests {
    const WORDS: [&str; 64] = [
        "select",
        "set",
        "reset",
        "local",
        "session",
        "role",
        "time zone",
        "to",
        "=",
        "'a'",
        "'",
        "\"",
        "\"a\"",
        "$$",
        "$a$",
        "E'",
        "\\",
        "\\'",
        "''",
        "--",
        "\n",
        "/*",
        "*/",
        ";",
        "(",
        ")",
        ",",
        ".",
        "::",
        "set_config(",
        "'app.x'",
        "false",
        "true",
        "$1",
        "u&\"",
        "u&'",
        "listen",
        "discard all",
        "all",
        "default",
        "create",
        "function",
        "begin",
        "atomic",
        "end",
        "insert into",
        "nextval(",
        "from",
        "t",
        "with",
        "update",
        "f(",
        "do",
        "prepare",
        "as",
        "explain",
        "1",
        "1e5",
        "\u{e9}",
        "names",
        "transaction",
        "isolation level",
        "interval",
        "copy",
    ];

    #[test]
    fn no_text_is_misread() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut number = move |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed >> 33).unwrap_or_default() % below
        };
        for _ in 0..10_000 {
            let mut data = vec![0];
            for _ in 0..number(14) {
                match number(12) {
                    0 => data.push(u8::try_from(number(256)).unwrap_or_default()),
                    _ => data.extend(WORDS[number(WORDS.len())].bytes()),
                }
                data.extend([&b""[..], b" "][number(2)]);
            }
            let shown = String::from_utf8_lossy(&data).into_owned();
            assert!(std::panic::catch_unwind(|| super::run(&data)).is_ok(), "{shown:?}");
        }
    }
}
