//! The first look at a text: is it one plain SELECT, INSERT, UPDATE, DELETE, BEGIN, COMMIT or ROLLBACK?
//!
//! Nearly every text is, and this tells it in one pass with a few instructions per byte, where the full scan needs a
//! hundred per token. It never guesses: at anything that it does not know, the full scan decides. What it does tell is
//! what the full scan would have told, which the tests compare.

use super::builtin_functions;
use super::keywords::{self, Class};
use super::sql_lexer::{self, EncodingClass, Lexing, StandardConformingStrings};
use super::statement_effects::{Effects, SequenceUse, TransactionControl};
use super::suspects::Suspects;

/// The effects of an ordinary text; `None` where the full scan must look.
pub(super) fn ordinary_effects(text: &[u8], lexing: Lexing, suspects: &Suspects) -> Option<Effects> {
    if lexing.encoding != EncodingClass::AsciiSafe || !suspects.allows_first_look() {
        return None;
    }
    let mut look = Look {
        text,
        at: 0,
        lexing,
        suspects,
        depth: 0,
        last: Last::Other,
        is_told: false,
    };
    look.skip_spaces();
    let start = look.at;
    let lead = look.word();
    look.last = Last::Word {
        start,
        end: look.at,
        qualified: false,
    };
    let mut effects = Effects {
        statement_count: 1,
        without_effect: false,
        ..Effects::NONE
    };
    match lead.packed {
        SELECT if lead.bytes.len() == 6 => {}
        UPDATE | DELETE if lead.bytes.len() == 6 => effects.is_read_only_shape = false,
        INSERT if lead.bytes.len() == 6 => {
            effects.is_read_only_shape = false;
            effects.sequence = SequenceUse::MayDraw;
            look.insert_target()?;
        }
        _ => return transaction(lead, look, effects),
    }
    look.rest()?;
    if look.is_told && effects.sequence == SequenceUse::MayDraw {
        effects.sequence = SequenceUse::MayDrawAndTell;
    }
    Some(effects)
}

/// A lone BEGIN, COMMIT, END or ROLLBACK.
fn transaction(lead: Word<'_>, mut look: Look<'_>, effects: Effects) -> Option<Effects> {
    let control = match (lead.packed, lead.bytes.len()) {
        (BEGIN, 5) => TransactionControl::Begin,
        (COMMIT, 6) | (END, 3) => TransactionControl::Commit,
        (ROLLBACK, 8) => TransactionControl::Rollback,
        _ => return None,
    };
    let begins = control == TransactionControl::Begin;
    look.end()?;
    Some(Effects {
        transaction: control,
        is_begin_only: begins,
        without_effect: begins,
        is_read_only_shape: begins,
        ends_transaction: !begins,
        exits_failed_block: !begins,
        ..effects
    })
}

/// What was read last, as far as it decides what may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    /// A word from here to here. `qualified`: behind a dot.
    Word {
        start: usize,
        end: usize,
        qualified: bool,
    },
    Quoted,
    String,
    Dot,
    Other,
}

/// A word, with [`packed`] of it.
#[derive(Debug, Clone, Copy)]
struct Word<'t> {
    bytes: &'t [u8],
    packed: u64,
}

impl Word<'_> {
    const fn is(&self, packed: u64, length: usize) -> bool {
        self.packed == packed && self.bytes.len() == length
    }
}

#[derive(Debug)]
struct Look<'t> {
    text: &'t [u8],
    at: usize,
    lexing: Lexing,
    suspects: &'t Suspects,
    depth: u32,
    last: Last,
    /// It says RETURNING.
    is_told: bool,
}

impl<'t> Look<'t> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    #[inline]
    fn skip_spaces(&mut self) {
        while self
            .peek()
            .is_some_and(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t'))
        {
            self.at += 1;
        }
    }

    /// The word at the cursor; empty if none starts here.
    #[inline]
    fn word(&mut self) -> Word<'t> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let ends = |&byte: &u8| !sql_lexer::continues_word(byte);
        let length = rest.iter().position(ends).unwrap_or(rest.len());
        self.at += length;
        let bytes = &rest[..length];
        // What stands behind a short word is there to be read with it.
        let packed = match rest.first_chunk::<8>() {
            Some(chunk) if length < 8 => (u64::from_le_bytes(*chunk) | LOWER_CASE) & !(u64::MAX << (8 * length)),
            _ => packed(bytes),
        };
        Word { bytes, packed }
    }

    /// Nothing but a semicolon.
    fn end(&mut self) -> Option<()> {
        while self
            .peek()
            .is_some_and(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t' | b';'))
        {
            self.at += 1;
        }
        (self.at == self.text.len()).then_some(())
    }

    /// `INTO name [(`: the parenthesis behind the name holds columns.
    fn insert_target(&mut self) -> Option<()> {
        self.skip_spaces();
        let into = self.word();
        if !into.is(INTO, 4) {
            return None;
        }
        self.skip_spaces();
        loop {
            self.last = match self.peek()? {
                b'"' => {
                    self.quoted_identifier()?;
                    Last::Quoted
                }
                byte if sql_lexer::starts_word(byte) => {
                    let start = self.at;
                    let word = self.word();
                    self.check_name(word.bytes)?;
                    self.check_keyword(word)?;
                    Last::Word {
                        start,
                        end: self.at,
                        qualified: false,
                    }
                }
                _ => return None,
            };
            if self.peek() != Some(b'.') {
                break;
            }
            self.last = Last::Dot;
            self.at += 1;
        }
        self.skip_spaces();
        if self.peek() == Some(b'(') {
            self.at += 1;
            self.depth = 1;
            self.last = Last::Other;
        }
        Some(())
    }

    fn rest(&mut self) -> Option<()> {
        while let Some(byte) = self.peek() {
            let start = self.at;
            self.at += 1;
            match byte {
                b' ' | b'\n' | b'\r' | b'\t' => continue,
                b'0'..=b'9' => {
                    while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
                        self.at += 1;
                    }
                    if self.peek().is_some_and(sql_lexer::continues_word) {
                        return None;
                    }
                    self.last = Last::Other;
                }
                b'\'' => {
                    self.string(start)?;
                    self.last = Last::String;
                }
                b'"' => {
                    self.at = start;
                    self.quoted_identifier()?;
                    self.last = Last::Quoted;
                }
                b'.' => self.last = Last::Dot,
                b'(' => {
                    self.open_paren()?;
                    self.last = Last::Other;
                }
                b')' => {
                    self.depth = self.depth.checked_sub(1)?;
                    self.last = Last::Other;
                }
                b'$' => {
                    self.peek().filter(u8::is_ascii_digit)?;
                    self.last = Last::Other;
                }
                b'-' | b'/' if matches!(self.peek(), Some(b'-' | b'*')) => return None,
                b',' | b'=' | b'<' | b'>' | b'*' | b'+' | b'-' | b'/' | b'%' | b':' | b'|' | b'[' | b']' | b'@' => {
                    self.last = Last::Other;
                }
                b';' if self.depth == 0 => return self.end(),
                byte if sql_lexer::starts_word(byte) => {
                    self.at = start;
                    let word = self.word();
                    self.check_name(word.bytes)?;
                    self.check_keyword(word)?;
                    self.last = Last::Word {
                        start,
                        end: self.at,
                        qualified: self.last == Last::Dot,
                    };
                }
                _ => return None,
            }
        }
        (self.depth == 0).then_some(())
    }

    /// A string without a prefix, an escape or a continuation.
    fn string(&mut self, start: usize) -> Option<()> {
        if self.last == Last::String || matches!(self.last, Last::Word { end, .. } if end == start) {
            return None;
        }
        let rest = self.text.get(self.at..)?;
        let length = rest.iter().position(|&byte| byte == b'\'')?;
        if self.lexing.strings != StandardConformingStrings::On && rest[..length].contains(&b'\\') {
            return None;
        }
        self.at += length + 1;
        (self.peek() != Some(b'\'')).then_some(())
    }

    /// `"name"` without a doubled quote.
    fn quoted_identifier(&mut self) -> Option<()> {
        if matches!(self.last, Last::Word { end, .. } if end == self.at) {
            return None;
        }
        let rest = self.text.get(self.at + 1..)?;
        let length = rest.iter().position(|&byte| byte == b'"')?;
        self.at += length + 2;
        if self.peek() == Some(b'"') {
            return None;
        }
        self.check_name(&rest[..length])
    }

    /// A name that the catalog or the full scan may have something to say about.
    #[inline]
    fn check_name(&self, name: &[u8]) -> Option<()> {
        if matches!(name, [b'p' | b'P', b'g' | b'G', b'_', ..]) {
            // pg_temp, pg_settings, pg_locks, …; other catalog names are looked at again for nothing.
            return None;
        }
        (!self.suspects.watches_names() || self.suspects.reach(name).is_none()).then_some(())
    }

    /// The words that the full scan's keyword rules act on wherever they stand.
    #[inline]
    fn check_keyword(&mut self, word: Word<'_>) -> Option<()> {
        let acts = match word.bytes.len() {
            4 => matches!(word.packed, INTO | COPY),
            5 => matches!(word.packed, MERGE | SHARE),
            6 => matches!(word.packed, INSERT | UPDATE | DELETE),
            7 => word.packed == EXECUTE,
            8 => word.packed == TRUNCATE,
            9 => {
                self.is_told |= word.bytes.eq_ignore_ascii_case(b"returning");
                false
            }
            _ => false,
        };
        (!acts).then_some(())
    }

    /// A parenthesis is no call, or a call of PostgreSQL's own harmless functions.
    fn open_paren(&mut self) -> Option<()> {
        self.depth = self.depth.checked_add(1)?;
        match self.last {
            Last::Word {
                start,
                end,
                qualified: false,
            } => {
                let word = self.text.get(start..end)?;
                let grammar = keywords::meaning(word).is_some_and(|meaning| meaning.class == Class::Grammar);
                (grammar || builtin_functions::is_harmless(word)).then_some(())
            }
            Last::Word { .. } | Last::Quoted => None,
            Last::String | Last::Dot | Last::Other => Some(()),
        }
    }
}

const SELECT: u64 = packed(b"select");
const INSERT: u64 = packed(b"insert");
const UPDATE: u64 = packed(b"update");
const DELETE: u64 = packed(b"delete");
const BEGIN: u64 = packed(b"begin");
const COMMIT: u64 = packed(b"commit");
const END: u64 = packed(b"end");
const ROLLBACK: u64 = packed(b"rollback");
const INTO: u64 = packed(b"into");
const COPY: u64 = packed(b"copy");
const MERGE: u64 = packed(b"merge");
const SHARE: u64 = packed(b"share");
const EXECUTE: u64 = packed(b"execute");
const TRUNCATE: u64 = packed(b"truncate");

/// Sets what distinguishes small letters from capital ones in each of eight bytes.
const LOWER_CASE: u64 = 0x2020_2020_2020_2020;

/// The first eight bytes of a word in one number, letters in lower case. With the word's length it is the word, as far
/// as words of letters go.
#[inline]
const fn packed(word: &[u8]) -> u64 {
    if let Some(chunk) = word.first_chunk::<8>() {
        return u64::from_le_bytes(*chunk) | LOWER_CASE;
    }
    let mut number = 0;
    let mut index = 0;
    while index < word.len() {
        number |= ((word[index] | 0x20) as u64) << (8 * index);
        index += 1;
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtual_session::suspects::Suspects;

    #[test]
    fn a_word_ends_where_its_last_byte_stands_whatever_its_length() {
        for length in 0..40 {
            for behind in ["", " ", ";", " and more words behind"] {
                let word = &"Truncated_Tables_of_1_Schema_with_9_names"[..length];
                let text = format!("{word}{behind}");
                let suspects = Suspects::every_mention();
                let mut look = Look {
                    text: text.as_bytes(),
                    at: 0,
                    lexing: Lexing::default(),
                    suspects: &suspects,
                    depth: 0,
                    last: Last::Other,
                    is_told: false,
                };
                let read = look.word();
                assert_eq!(read.bytes, word.as_bytes());
                assert_eq!(read.packed, packed(word.as_bytes()), "{text}");
                assert_eq!(look.at, length);
            }
        }
    }
}
