//! `set_config(name, value, is_local)` in a statement's text.

use super::keywords::Keyword;
use super::pins::PinReason;
use super::setting_change::{SettingChange, SettingName, SettingScope, SettingValue};
use super::sql_lexer::{Lexer, Token, TokenKind, string_value};
use super::statement_effects::{Action, Step};
use super::statement_scan::{Before, Execution, NameChain, Scan, Unreadable};

/// Tokens of one argument that are looked at. Calls inside calls would be read again for each around them, so that a long
/// text of nothing else took the square of its length.
const ARGUMENT_TOKENS_MAX: usize = 256;

/// An argument as far as the text tells it.
#[derive(Debug, PartialEq, Eq)]
enum Argument {
    Text(Vec<u8>),
    Parameter(u16),
    Boolean(bool),
    Computed,
}

/// Notes a call whose `(` was just read; the scan goes on with its arguments afterwards, for what is hidden in them.
pub(super) fn on_call(scan: &mut Scan<'_>, chain: NameChain) -> Result<(), Unreadable> {
    let mut ahead = scan.lexer;
    let (name, more) = argument(scan.text, &mut ahead)?;
    let (value, last) = if more {
        argument(scan.text, &mut ahead)?
    } else {
        (Argument::Computed, false)
    };
    let (local, _) = if last {
        argument(scan.text, &mut ahead)?
    } else {
        (Argument::Computed, false)
    };

    let name = match name {
        Argument::Text(name) => SettingName::Known(name.to_ascii_lowercase().into()),
        Argument::Parameter(number) => SettingName::FromBind(number),
        Argument::Boolean(_) | Argument::Computed => SettingName::Unknown,
    };
    let in_plain_list = scan.statement.lead == Some(Keyword::Select)
        && scan.statement.execution == Execution::Now
        && scan.statement.depth == 0
        && matches!(chain.before, Before::Keyword(Keyword::Select) | Before::Comma);
    let value = match value {
        Argument::Text(text) => SettingValue::Text(text.into()),
        Argument::Parameter(number) => SettingValue::FromBind(number),
        Argument::Boolean(_) | Argument::Computed => SettingValue::Unknown,
    };
    let scope = match local {
        Argument::Boolean(true) => SettingScope::Local,
        Argument::Boolean(false) => SettingScope::Session,
        Argument::Text(text) if text == b"true" || text == b"t" => SettingScope::Local,
        Argument::Text(text) if text == b"false" || text == b"f" => SettingScope::Session,
        Argument::Parameter(number) => SettingScope::FromBind(number),
        Argument::Text(_) | Argument::Computed => SettingScope::Unknown,
    };
    let scope = match scan.statement.execution {
        Execution::Now => scope,
        Execution::Later | Execution::Definition if scope.may_last() => SettingScope::Later,
        Execution::Later | Execution::Definition => scope,
    };
    note(scan, name, value, scope);
    if !in_plain_list {
        scan.statement.has_clause = true;
    }
    Ok(())
}

/// Notes that a setting gets a value, and pins for what may be left of it.
pub(super) fn note(scan: &mut Scan<'_>, name: SettingName, value: SettingValue, scope: SettingScope) {
    if let SettingName::Known(name) = &name {
        match &**name {
            // These end with the transaction, however they are set.
            b"transaction_isolation" | b"transaction_read_only" | b"transaction_deferrable" => return,
            // The assignment itself seeds the generator; nothing takes it back.
            b"seed" => scan.pin(PinReason::SetSeed),
            // Objects made without a schema would be temporary ones.
            b"search_path" if names_temporary_schema(&value) => scan.pin(PinReason::TemporaryTable),
            _ => {}
        }
    }
    if scope.may_last() {
        scan.pin(match &name {
            SettingName::Known(name) if !name.contains(&b'.') => PinReason::Setting,
            _ => PinReason::CustomSetting,
        });
    }
    scan.step(Action::Setting(SettingChange::Set { name, value, scope }));
}

/// Forgets the values that a statement's set_config calls may not have given after all, or not last.
pub(super) fn make_uncertain(steps: &mut [Step]) {
    for step in steps {
        if let Action::Setting(SettingChange::Set { value, .. }) = &mut step.action {
            *value = SettingValue::Unknown;
        }
    }
}

pub(super) fn names_temporary_schema(value: &SettingValue) -> bool {
    match value {
        SettingValue::Source(bytes) | SettingValue::Text(bytes) => {
            bytes.windows(7).any(|window| window.eq_ignore_ascii_case(b"pg_temp"))
        }
        SettingValue::Default | SettingValue::FromBind(_) | SettingValue::Unknown => false,
    }
}

/// Reads one argument and the `,` or `)` behind it; true for a comma.
fn argument(text: &[u8], lexer: &mut Lexer<'_>) -> Result<(Argument, bool), Unreadable> {
    let first = lexer.next_token()?.ok_or(Unreadable)?;
    let mut value = simple_value(text, first);
    let mut depth = 0_u32;
    let mut token = first;
    let mut in_cast = false;
    for _ in 0..ARGUMENT_TOKENS_MAX {
        match token.kind {
            TokenKind::OpenParen | TokenKind::OpenBracket => depth += 1,
            TokenKind::CloseParen if depth == 0 => return Ok((value, false)),
            TokenKind::CloseParen | TokenKind::CloseBracket => depth = depth.saturating_sub(1),
            TokenKind::Comma if depth == 0 => return Ok((value, true)),
            _ => {}
        }
        token = lexer.next_token()?.ok_or(Unreadable)?;
        in_cast |= token.kind == TokenKind::Typecast;
        let ends = depth == 0 && matches!(token.kind, TokenKind::Comma | TokenKind::CloseParen);
        let of_type = in_cast && is_plain_type(text, token);
        if !ends && !of_type {
            value = Argument::Computed;
        }
    }
    Ok((Argument::Computed, false))
}

/// A cast that changes no value: `::text`, `::varchar`, `::boolean`, with or without `pg_catalog`.
fn is_plain_type(text: &[u8], token: Token) -> bool {
    const PLAIN: [&str; 6] = ["text", "varchar", "bool", "boolean", "pg_catalog", "unknown"];
    match token.kind {
        TokenKind::Typecast | TokenKind::Dot => true,
        TokenKind::Word => PLAIN
            .iter()
            .any(|word| token.bytes(text).eq_ignore_ascii_case(word.as_bytes())),
        _ => false,
    }
}

fn simple_value(text: &[u8], token: Token) -> Argument {
    let bytes = token.bytes(text);
    match token.kind {
        TokenKind::String(_) => string_value(text, token).map_or(Argument::Computed, Argument::Text),
        TokenKind::Parameter => {
            let number = std::str::from_utf8(bytes.get(1..).unwrap_or_default())
                .ok()
                .and_then(|n| n.parse().ok());
            number.map_or(Argument::Computed, Argument::Parameter)
        }
        TokenKind::Word if bytes.eq_ignore_ascii_case(b"true") => Argument::Boolean(true),
        TokenKind::Word if bytes.eq_ignore_ascii_case(b"false") => Argument::Boolean(false),
        _ => Argument::Computed,
    }
}
