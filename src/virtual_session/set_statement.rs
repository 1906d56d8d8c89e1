//! SET and RESET in all their forms, as settings with a name, a value and a scope.

use super::keywords::Keyword;
use super::pins::PinReason;
use super::set_config;
use super::setting_change::{SettingChange, SettingName, SettingScope, SettingValue, quoted_string};
use super::sql_lexer::{StringKind, TokenKind, identifier_name, string_value};
use super::statement_effects::Action;
use super::statement_scan::{Item, Scan, Unreadable};

/// The text behind SET. What can't be read is unknown: SET has no form that may be guessed at.
pub(super) fn set(scan: &mut Scan<'_>) -> Result<(), Unreadable> {
    let Some(mut item) = scan.item()? else { return Ok(()) };
    let mut scope = SettingScope::Session;
    match item.keyword() {
        Some(Keyword::Local) => scope = SettingScope::Local,
        Some(Keyword::Session) => {}
        _ => return set_rest(scan, item, scope),
    }
    match scan.item()? {
        Some(next) => item = next,
        None => return unknown(scan),
    }
    if scope == SettingScope::Session {
        match item.keyword() {
            Some(Keyword::Characteristics) => return set_characteristics(scan, scope),
            Some(Keyword::Authorization) => return set_to(scan, b"session_authorization", scope),
            _ => {}
        }
    }
    set_rest(scan, item, scope)
}

fn set_rest(scan: &mut Scan<'_>, first: Item, scope: SettingScope) -> Result<(), Unreadable> {
    match first.keyword() {
        // Both end with the transaction.
        Some(Keyword::Transaction | Keyword::Constraints) => scan.drain(),
        Some(Keyword::Session) => match scan.item()?.and_then(|item| item.keyword()) {
            Some(Keyword::Characteristics) => set_characteristics(scan, scope),
            Some(Keyword::Authorization) => set_to(scan, b"session_authorization", scope),
            _ => unknown(scan),
        },
        Some(Keyword::Time) => match scan.item()?.and_then(|item| item.keyword()) {
            Some(Keyword::Zone) => set_to(scan, b"timezone", scope),
            _ => unknown(scan),
        },
        Some(Keyword::Xml) => match scan.item()?.and_then(|item| item.keyword()) {
            Some(Keyword::Option) => set_to(scan, b"xmloption", scope),
            _ => unknown(scan),
        },
        Some(Keyword::Names) => set_to(scan, b"client_encoding", scope),
        Some(Keyword::Schema) => set_to(scan, b"search_path", scope),
        Some(Keyword::Role) if !scan.assigns_next() => {
            let value = value(scan, true)?;
            finish(scan, b"role".to_vec(), value, scope)
        }
        _ => set_named(scan, first, scope),
    }
}

/// `SET name {TO | =} value`.
fn set_named(scan: &mut Scan<'_>, first: Item, scope: SettingScope) -> Result<(), Unreadable> {
    let Some((name, next)) = setting_name(scan, first)? else {
        return unknown(scan);
    };
    if !next.is_some_and(|item| is_assignment(item.token.bytes(scan.text))) {
        return unknown(scan);
    }
    let value = value(scan, false)?;
    finish(scan, name, value, scope)
}

/// `=` or `TO`.
pub(super) fn is_assignment(bytes: &[u8]) -> bool {
    bytes == b"=" || bytes.eq_ignore_ascii_case(b"to")
}

/// A special form: the rest is the value of one setting.
fn set_to(scan: &mut Scan<'_>, name: &[u8], scope: SettingScope) -> Result<(), Unreadable> {
    let value = value(scan, false)?;
    finish(scan, name.to_vec(), value, scope)
}

fn finish(
    scan: &mut Scan<'_>,
    name: Vec<u8>,
    value: Option<SettingValue>,
    scope: SettingScope,
) -> Result<(), Unreadable> {
    let Some(value) = value else { return unknown(scan) };
    let value = match (&*name, value) {
        // SET NAMES without a value, SET TIME ZONE LOCAL.
        (b"client_encoding", SettingValue::Source(source)) if source.is_empty() => SettingValue::Default,
        (b"timezone", SettingValue::Source(source)) if source.eq_ignore_ascii_case(b"local") => SettingValue::Default,
        (_, SettingValue::Source(source)) if source.is_empty() => return unknown(scan),
        (_, value) => value,
    };
    set_config::note(scan, SettingName::Known(name.into()), value, scope);
    Ok(())
}

/// `SET SESSION CHARACTERISTICS AS TRANSACTION mode [, …]`: the defaults of later transactions.
fn set_characteristics(scan: &mut Scan<'_>, scope: SettingScope) -> Result<(), Unreadable> {
    let mut words = Vec::new();
    while let Some(item) = scan.item()? {
        match item.token.kind {
            TokenKind::Comma => {}
            TokenKind::Word => words.push(item.token.bytes(scan.text).to_ascii_lowercase()),
            _ => return unknown(scan),
        }
    }
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    let mut rest = match words.as_slice() {
        [b"as", b"transaction", modes @ ..] if !modes.is_empty() => modes,
        _ => return unknown(scan),
    };
    while !rest.is_empty() {
        let (name, source, tail): (&[u8], &[u8], _) = match rest {
            [
                b"isolation",
                b"level",
                b"read",
                level @ (b"committed" | b"uncommitted"),
                tail @ ..,
            ] => {
                let source = if *level == b"committed" {
                    &b"'read committed'"[..]
                } else {
                    b"'read uncommitted'"
                };
                (b"default_transaction_isolation", source, tail)
            }
            [b"isolation", b"level", b"repeatable", b"read", tail @ ..] => {
                (b"default_transaction_isolation", b"'repeatable read'", tail)
            }
            [b"isolation", b"level", b"serializable", tail @ ..] => {
                (b"default_transaction_isolation", b"'serializable'", tail)
            }
            [b"read", b"only", tail @ ..] => (b"default_transaction_read_only", b"on", tail),
            [b"read", b"write", tail @ ..] => (b"default_transaction_read_only", b"off", tail),
            [b"not", b"deferrable", tail @ ..] => (b"default_transaction_deferrable", b"off", tail),
            [b"deferrable", tail @ ..] => (b"default_transaction_deferrable", b"on", tail),
            _ => return unknown(scan),
        };
        set_config::note(
            scan,
            SettingName::Known(name.into()),
            SettingValue::Source(source.into()),
            scope,
        );
        rest = tail;
    }
    Ok(())
}

/// The text behind RESET.
pub(super) fn reset(scan: &mut Scan<'_>) -> Result<(), Unreadable> {
    let Some(first) = scan.item()? else { return Ok(()) };
    let name = match first.keyword() {
        Some(Keyword::All) => {
            scan.step(Action::Setting(SettingChange::ResetAll));
            return scan.drain();
        }
        Some(Keyword::Time) => b"timezone".to_vec(),
        Some(Keyword::Session) => b"session_authorization".to_vec(),
        // RESET TRANSACTION ISOLATION LEVEL ends with the transaction.
        Some(Keyword::Transaction) => return scan.drain(),
        _ => match setting_name(scan, first)? {
            Some((name, None)) => name,
            _ => return unknown(scan),
        },
    };
    scan.drain()?;
    // RESET of a custom setting that the session never had leaves its placeholder.
    if name.contains(&b'.') {
        scan.pin(PinReason::CustomSetting);
    }
    scan.step(Action::Setting(SettingChange::Reset(name.into())));
    Ok(())
}

/// A setting's name and the item behind it.
type NameThen = (Vec<u8>, Option<Item>);

/// `a.b.c` from its first part on, in lower case, and the item behind it.
fn setting_name(scan: &mut Scan<'_>, first: Item) -> Result<Option<NameThen>, Unreadable> {
    let Some(mut name) = identifier_name(scan.text, first.token) else {
        return Ok(None);
    };
    loop {
        let next = scan.item()?;
        if next.is_none_or(|item| item.token.kind != TokenKind::Dot) {
            name.make_ascii_lowercase();
            return Ok(Some((name, next)));
        }
        let Some(part) = scan.item()?.and_then(|item| identifier_name(scan.text, item.token)) else {
            return Ok(None);
        };
        name.push(b'.');
        name.extend(part);
    }
}

/// A list of words, strings and numbers up to the end of the statement; `None` for anything else. For a role, `DEFAULT`
/// does not exist and NONE is a word like others.
fn value(scan: &mut Scan<'_>, is_role: bool) -> Result<Option<SettingValue>, Unreadable> {
    let mut source = Vec::new();
    let mut count = 0_usize;
    let mut default = false;
    while let Some(item) = scan.item()? {
        let bytes = item.token.bytes(scan.text);
        match item.token.kind {
            TokenKind::Comma => {
                source.extend_from_slice(b",");
                continue;
            }
            TokenKind::Word => {
                default |= item.keyword() == Some(Keyword::Default);
                separate(&mut source);
                source.extend_from_slice(bytes);
            }
            TokenKind::QuotedIdentifier | TokenKind::Number => {
                separate(&mut source);
                source.extend_from_slice(bytes);
            }
            TokenKind::Operator if bytes == b"-" || bytes == b"+" => {
                separate(&mut source);
                source.extend_from_slice(bytes);
                continue;
            }
            TokenKind::String(kind) => {
                let Some(constant) = constant(scan.text, item, kind) else {
                    return Ok(None);
                };
                separate(&mut source);
                source.extend(constant);
            }
            // The precision of INTERVAL(6) '…'.
            TokenKind::OpenParen | TokenKind::CloseParen => source.extend_from_slice(bytes),
            _ => return Ok(None),
        }
        count += 1;
    }
    Ok(Some(match default {
        true if count == 1 && !is_role => SettingValue::Default,
        true => SettingValue::Unknown,
        false => SettingValue::Source(source.into()),
    }))
}

/// One space between two parts of a value, none behind a sign or an opening parenthesis.
fn separate(source: &mut Vec<u8>) {
    if !matches!(source.last(), None | Some(b'-' | b'+' | b'(')) {
        source.push(b' ');
    }
}

/// A string constant in a form that every backend reads alike.
fn constant(text: &[u8], item: Item, kind: StringKind) -> Option<Vec<u8>> {
    if let Some(value) = string_value(text, item.token) {
        return Some(quoted_string(&value).trim_ascii_start().to_vec());
    }
    // An E'' with numeric escapes says what it means itself.
    let bytes = item.token.bytes(text);
    let explicit = kind == StringKind::Escape && matches!(bytes.first(), Some(b'e' | b'E'));
    (explicit && !bytes.contains(&b'\n') && !bytes.contains(&b'\r')).then(|| bytes.to_vec())
}

fn unknown(scan: &mut Scan<'_>) -> Result<(), Unreadable> {
    scan.pin(PinReason::Unknown);
    scan.drain()
}
