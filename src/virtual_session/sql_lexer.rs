//! PostgreSQL's lexical rules over bytes: tokens, never a grammar.
//!
//! The rules are those of the manual's "Lexical Structure" chapter as PostgreSQL 12 to 18 carry them out. Where the
//! versions differ (`123abc`, `\v`), the reading that hides nothing is taken. What does not lex is a [`LexError`]: its
//! text may mean anything, so nobody may guess from it.

/// How backslashes in ordinary string literals are read: the server's `standard_conforming_strings`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum StandardConformingStrings {
    /// A backslash is a character like any other (the default since PostgreSQL 9.1).
    #[default]
    On,
    /// A backslash escapes the next character in every string literal.
    Off,
    /// Not known now (a SET of it is on its way): a string literal with a backslash does not lex.
    Uncertain,
}

/// Whether the client's encoding can hide an ASCII byte inside a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EncodingClass {
    /// Every byte of a multi-byte character is ≥ 0x80 (UTF8, LATIN1, EUC_JP, …).
    #[default]
    AsciiSafe,
    /// A trail byte may be `\` or `'` (SJIS, BIG5, GBK, …): a text with any byte ≥ 0x80 does not lex.
    Unsafe,
}

impl EncodingClass {
    /// The class of a `client_encoding` as PostgreSQL reports it. A name that is not known is unsafe.
    pub fn of(client_encoding: &[u8]) -> Self {
        // WIN932, WIN936, WIN949 and WIN950 are other names of SJIS, GBK, UHC and BIG5.
        const SAFE: [&str; 10] = [
            "UTF8",
            "UNICODE",
            "SQLASCII",
            "LATIN",
            "ISO8859",
            "WIN1",
            "WIN8",
            "KOI8",
            "EUC",
            "MULEINTERNAL",
        ];
        let letters = client_encoding.iter().filter(|byte| byte.is_ascii_alphanumeric());
        let name: Vec<u8> = letters.map(u8::to_ascii_uppercase).collect();
        if SAFE.iter().any(|prefix| name.starts_with(prefix.as_bytes())) {
            Self::AsciiSafe
        } else {
            Self::Unsafe
        }
    }
}

/// What of the session decides how a text is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Lexing {
    /// The session's `standard_conforming_strings`.
    pub strings: StandardConformingStrings,
    /// The class of the session's `client_encoding`.
    pub encoding: EncodingClass,
}

/// The text is not SQL as PostgreSQL reads it, or can't be told to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LexError {
    /// A string, quoted identifier, dollar quote or comment that does not end.
    #[error("an unterminated string, quoted identifier or comment")]
    Unterminated,
    /// A byte that starts no token.
    #[error("a byte that starts no token")]
    StrayByte,
    /// A backslash in a string while `standard_conforming_strings` is uncertain, or `U&''` while it is not on.
    #[error("the meaning depends on standard_conforming_strings")]
    Backslash,
    /// A byte ≥ 0x80 in an encoding whose trail bytes can be ASCII.
    #[error("a multi-byte character in an encoding that is not ASCII-safe")]
    Encoding,
    /// Longer than any message can be.
    #[error("longer than 2 GiB")]
    TooLong,
}

/// How the body of a string literal is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StringKind {
    /// `'…'` without escapes but `''`.
    Plain,
    /// `E'…'`, or `'…'` where `standard_conforming_strings` is off.
    Escape,
    /// `U&'…'`.
    Unicode,
    /// `B'…'` or `X'…'`.
    Bits,
    /// `$tag$…$tag$`.
    Dollar,
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// A keyword or an unquoted identifier.
    Word,
    /// `"…"`.
    QuotedIdentifier,
    /// `U&"…"`, whose name is not decoded here.
    UnicodeIdentifier,
    /// A string constant, continuation lines included.
    String(StringKind),
    /// A number without its sign.
    Number,
    /// `$1`.
    Parameter,
    /// A run of operator characters, cut as PostgreSQL cuts it.
    Operator,
    /// `::`
    Typecast,
    /// `,`
    Comma,
    /// `;`
    Semicolon,
    /// `(`
    OpenParen,
    /// `)`
    CloseParen,
    /// `[`
    OpenBracket,
    /// `]`
    CloseBracket,
    /// `.`
    Dot,
    /// `:`, `:=` or `..`
    Other,
}

/// A token: its kind and the bytes of the text that it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: TokenKind,
    /// Offset of its first byte.
    pub start: u32,
    /// Offset behind its last byte.
    pub end: u32,
}

impl Token {
    /// The token's bytes in the text that it was cut from (empty for a foreign text).
    pub fn bytes<'t>(&self, text: &'t [u8]) -> &'t [u8] {
        text.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// Cuts a text into tokens. Cheap to copy, so that a reader can look ahead.
#[derive(Debug, Clone, Copy)]
pub struct Lexer<'t> {
    text: &'t [u8],
    at: usize,
    strings: StandardConformingStrings,
}

impl<'t> Lexer<'t> {
    /// A lexer at the start of `text`.
    ///
    /// # Errors
    /// [`LexError::Encoding`] where the encoding is unsafe and the text is not ASCII, [`LexError::TooLong`].
    pub fn new(text: &'t [u8], lexing: Lexing) -> Result<Self, LexError> {
        if lexing.encoding == EncodingClass::Unsafe && !text.is_ascii() {
            return Err(LexError::Encoding);
        }
        if text.len() > i32::MAX as usize {
            return Err(LexError::TooLong);
        }
        Ok(Self {
            text,
            at: 0,
            strings: lexing.strings,
        })
    }

    /// The next token, or `None` at the end.
    ///
    /// # Errors
    /// What does not lex; the lexer must not be asked again.
    #[inline]
    pub fn next_token(&mut self) -> Result<Option<Token>, LexError> {
        loop {
            let Some(&byte) = self.text.get(self.at) else {
                return Ok(None);
            };
            let start = self.at;
            self.at += 1;
            let kind = match CLASS[usize::from(byte)] {
                Class::Space => continue,
                Class::Letter => self.word(start, byte)?,
                Class::Digit => self.number(start),
                Class::Quote => self.quoted_by_setting()?,
                Class::DoubleQuote => self.quoted_identifier()?,
                Class::Dollar => self.dollar()?,
                Class::Operator => match (byte, self.peek()) {
                    (b'-', Some(b'-')) => {
                        self.line_comment();
                        continue;
                    }
                    (b'/', Some(b'*')) => {
                        self.block_comment()?;
                        continue;
                    }
                    _ => self.operator(start),
                },
                Class::Dot => self.dot(start),
                Class::Colon => self.colon(),
                Class::Comma => TokenKind::Comma,
                Class::Semicolon => TokenKind::Semicolon,
                Class::OpenParen => TokenKind::OpenParen,
                Class::CloseParen => TokenKind::CloseParen,
                Class::OpenBracket => TokenKind::OpenBracket,
                Class::CloseBracket => TokenKind::CloseBracket,
                Class::Stray => return Err(LexError::StrayByte),
            };
            return Ok(Some(Token {
                kind,
                start: start as u32,
                end: self.at as u32,
            }));
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn rest(&self) -> &'t [u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// Moves on while `keep` holds.
    #[inline]
    fn skip_while(&mut self, keep: impl Fn(u8) -> bool) {
        let rest = self.rest();
        self.at += rest.iter().position(|&byte| !keep(byte)).unwrap_or(rest.len());
    }

    /// An identifier, or one of the prefixes `E' B' X' N' U&' U&"`.
    #[inline]
    fn word(&mut self, start: usize, first: u8) -> Result<TokenKind, LexError> {
        self.skip_while(|byte| CONTINUES_WORD[usize::from(byte)]);
        if self.at == start + 1 && matches!(self.peek(), Some(b'\'' | b'&')) {
            return self.prefixed(first);
        }
        Ok(TokenKind::Word)
    }

    fn prefixed(&mut self, letter: u8) -> Result<TokenKind, LexError> {
        match (letter.to_ascii_lowercase(), self.rest()) {
            (b'e', [b'\'', ..]) => {
                self.at += 1;
                self.escape_string()
            }
            (b'b' | b'x', [b'\'', ..]) => {
                self.at += 1;
                self.plain_string(StringKind::Bits)
            }
            (b'n', [b'\'', ..]) => {
                self.at += 1;
                self.quoted_by_setting()
            }
            (b'u', [b'&', b'\'', ..]) if self.strings != StandardConformingStrings::On => Err(LexError::Backslash),
            (b'u', [b'&', b'\'', ..]) => {
                self.at += 2;
                self.plain_string(StringKind::Unicode)
            }
            (b'u', [b'&', b'"', ..]) => {
                self.at += 2;
                self.quoted_identifier()?;
                Ok(TokenKind::UnicodeIdentifier)
            }
            _ => Ok(TokenKind::Word),
        }
    }

    /// `'…'`, read as the session reads it.
    fn quoted_by_setting(&mut self) -> Result<TokenKind, LexError> {
        match self.strings {
            StandardConformingStrings::On => self.plain_string(StringKind::Plain),
            StandardConformingStrings::Off => self.escape_string(),
            StandardConformingStrings::Uncertain => {
                let start = self.at;
                let kind = self.plain_string(StringKind::Plain)?;
                let body = self.text.get(start..self.at).unwrap_or_default();
                if body.contains(&b'\\') {
                    Err(LexError::Backslash)
                } else {
                    Ok(kind)
                }
            }
        }
    }

    fn plain_string(&mut self, kind: StringKind) -> Result<TokenKind, LexError> {
        loop {
            self.skip_while(|byte| byte != b'\'');
            match self.rest() {
                [_, b'\'', ..] => self.at += 2,
                [_, ..] => {
                    self.at += 1;
                    if !self.continued() {
                        return Ok(TokenKind::String(kind));
                    }
                }
                [] => return Err(LexError::Unterminated),
            }
        }
    }

    fn escape_string(&mut self) -> Result<TokenKind, LexError> {
        loop {
            self.skip_while(|byte| byte != b'\'' && byte != b'\\');
            match self.rest() {
                [b'\\', _, ..] | [b'\'', b'\'', ..] => self.at += 2,
                [b'\'', ..] => {
                    self.at += 1;
                    if !self.continued() {
                        return Ok(TokenKind::String(StringKind::Escape));
                    }
                }
                _ => return Err(LexError::Unterminated),
            }
        }
    }

    /// Behind a closing quote: whether the literal goes on at a quote on a later line (comments may stand between).
    fn continued(&mut self) -> bool {
        let mut ahead = *self;
        let mut line_ended = false;
        loop {
            match ahead.rest() {
                [b'\n' | b'\r', ..] => {
                    line_ended = true;
                    ahead.at += 1;
                }
                [b' ' | b'\t' | 0x0b | 0x0c, ..] => ahead.at += 1,
                [b'-', b'-', ..] => ahead.line_comment(),
                [b'\'', ..] if line_ended => {
                    self.at = ahead.at + 1;
                    return true;
                }
                _ => return false,
            }
        }
    }

    fn quoted_identifier(&mut self) -> Result<TokenKind, LexError> {
        loop {
            self.skip_while(|byte| byte != b'"');
            match self.rest() {
                [_, b'"', ..] => self.at += 2,
                [_, ..] => {
                    self.at += 1;
                    return Ok(TokenKind::QuotedIdentifier);
                }
                [] => return Err(LexError::Unterminated),
            }
        }
    }

    /// `$1`, or `$tag$…$tag$`.
    fn dollar(&mut self) -> Result<TokenKind, LexError> {
        let tag_start = self.at - 1;
        match self.peek() {
            Some(b'0'..=b'9') => {
                self.skip_while(|byte| byte.is_ascii_digit());
                return Ok(TokenKind::Parameter);
            }
            Some(b'$') => {}
            Some(byte) if CLASS[usize::from(byte)] == Class::Letter => {
                self.skip_while(|byte| byte != b'$' && CONTINUES_WORD[usize::from(byte)]);
                if self.peek() != Some(b'$') {
                    return Err(LexError::StrayByte);
                }
            }
            _ => return Err(LexError::StrayByte),
        }
        self.at += 1;
        let tag = self.text.get(tag_start..self.at).unwrap_or_default();
        loop {
            self.skip_while(|byte| byte != b'$');
            if self.rest().starts_with(tag) {
                self.at += tag.len();
                return Ok(TokenKind::String(StringKind::Dollar));
            }
            if self.rest().is_empty() {
                return Err(LexError::Unterminated);
            }
            self.at += 1;
        }
    }

    /// Digits, a fraction and an exponent. Letters behind a number are a word of their own, as before PostgreSQL 15, so
    /// that none is hidden; from 15 on such a text is refused by the server.
    fn number(&mut self, start: usize) -> TokenKind {
        self.skip_while(|byte| byte.is_ascii_digit());
        let fraction = self.text.get(start) != Some(&b'.');
        if fraction && self.peek() == Some(b'.') && self.rest().get(1) != Some(&b'.') {
            self.at += 1;
            self.skip_while(|byte| byte.is_ascii_digit());
        }
        match self.rest() {
            [b'e' | b'E', b'0'..=b'9', ..] => self.at += 1,
            [b'e' | b'E', b'+' | b'-', b'0'..=b'9', ..] => self.at += 2,
            _ => return TokenKind::Number,
        }
        self.skip_while(|byte| byte.is_ascii_digit());
        TokenKind::Number
    }

    fn dot(&mut self, start: usize) -> TokenKind {
        match self.peek() {
            Some(b'0'..=b'9') => self.number(start),
            Some(b'.') => {
                self.at += 1;
                TokenKind::Other
            }
            _ => TokenKind::Dot,
        }
    }

    fn colon(&mut self) -> TokenKind {
        match self.peek() {
            Some(b':') => {
                self.at += 1;
                TokenKind::Typecast
            }
            Some(b'=') => {
                self.at += 1;
                TokenKind::Other
            }
            _ => TokenKind::Other,
        }
    }

    /// The longest run of operator characters that holds no comment start; a trailing `+` or `-` belongs to it only
    /// where the run has a character that SQL's own operators don't have (`->`'s cousins like `@-`).
    fn operator(&mut self, start: usize) -> TokenKind {
        self.skip_while(|byte| CLASS[usize::from(byte)] == Class::Operator);
        let run = self.text.get(start..self.at).unwrap_or_default();
        let comment = run.windows(2).position(|pair| pair == b"--" || pair == b"/*");
        let mut length = comment.unwrap_or(run.len());
        let special = |run: &[u8]| run.iter().any(|byte| b"~!@#%^&|`?".contains(byte));
        while length > 1 && matches!(run[length - 1], b'+' | b'-') && !special(&run[..length - 1]) {
            length -= 1;
        }
        self.at = start + length;
        TokenKind::Operator
    }

    fn line_comment(&mut self) {
        self.skip_while(|byte| byte != b'\n' && byte != b'\r');
    }

    /// Block comments nest. The lexer stands behind the `/`.
    fn block_comment(&mut self) -> Result<(), LexError> {
        self.at += 1;
        let mut depth = 1_usize;
        while depth > 0 {
            self.skip_while(|byte| byte != b'*' && byte != b'/');
            match self.rest() {
                [b'*', b'/', ..] => {
                    depth -= 1;
                    self.at += 2;
                }
                [b'/', b'*', ..] => {
                    depth += 1;
                    self.at += 2;
                }
                [_, ..] => self.at += 1,
                [] => return Err(LexError::Unterminated),
            }
        }
        Ok(())
    }
}

/// The name that an identifier token stands for, as PostgreSQL folds it (ASCII letters; a quoted one as written).
/// `None` for other tokens and for `U&"…"`.
pub fn identifier_name(text: &[u8], token: Token) -> Option<Vec<u8>> {
    let bytes = token.bytes(text);
    match token.kind {
        TokenKind::Word => Some(bytes.to_ascii_lowercase()),
        TokenKind::QuotedIdentifier => Some(undouble(bytes.get(1..bytes.len().checked_sub(1)?)?, b'"')),
        _ => None,
    }
}

/// The value of a string constant, continuation lines joined. `None` where it holds an escape other than `\\`, `\'`,
/// `''` and the one-letter ones, for bit and Unicode strings, and for other tokens.
pub fn string_value(text: &[u8], token: Token) -> Option<Vec<u8>> {
    let TokenKind::String(kind) = token.kind else {
        return None;
    };
    let bytes = token.bytes(text);
    match kind {
        StringKind::Dollar => {
            let tag = bytes.iter().skip(1).position(|&byte| byte == b'$')? + 2;
            Some(bytes.get(tag..bytes.len().checked_sub(tag)?)?.to_vec())
        }
        StringKind::Plain | StringKind::Escape => {
            let open = bytes.iter().position(|&byte| byte == b'\'')?;
            quoted_value(bytes.get(open + 1..)?, kind == StringKind::Escape)
        }
        StringKind::Unicode | StringKind::Bits => None,
    }
}

/// Decodes what follows an opening quote, up to the last closing one.
fn quoted_value(body: &[u8], escapes: bool) -> Option<Vec<u8>> {
    let mut value = Vec::with_capacity(body.len());
    let mut rest = body;
    loop {
        match rest {
            [b'\'', b'\'', tail @ ..] => {
                value.push(b'\'');
                rest = tail;
            }
            [b'\''] => return Some(value),
            [b'\'', tail @ ..] => rest = continuation(tail)?,
            [b'\\', escaped, tail @ ..] if escapes => {
                value.push(unescape(*escaped)?);
                rest = tail;
            }
            [byte, tail @ ..] => {
                value.push(*byte);
                rest = tail;
            }
            [] => return None,
        }
    }
}

/// What follows the opening quote of a continuation line.
fn continuation(between: &[u8]) -> Option<&[u8]> {
    let mut rest = between;
    loop {
        match rest {
            [b'\'', tail @ ..] => return Some(tail),
            [b'-', b'-', ..] => {
                let line = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'))?;
                rest = rest.get(line..)?;
            }
            [_, tail @ ..] => rest = tail,
            [] => return None,
        }
    }
}

fn unescape(letter: u8) -> Option<u8> {
    match letter {
        b'b' => Some(0x08),
        b'f' => Some(0x0c),
        b'n' => Some(b'\n'),
        b'r' => Some(b'\r'),
        b't' => Some(b'\t'),
        b'0'..=b'7' | b'x' | b'u' | b'U' => None,
        other => Some(other),
    }
}

fn undouble(inner: &[u8], quote: u8) -> Vec<u8> {
    let mut name = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(&byte) = bytes.next() {
        name.push(byte);
        if byte == quote {
            bytes.next();
        }
    }
    name
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Space,
    Letter,
    Digit,
    Quote,
    DoubleQuote,
    Dollar,
    Operator,
    Dot,
    Colon,
    Comma,
    Semicolon,
    OpenParen,
    CloseParen,
    OpenBracket,
    CloseBracket,
    Stray,
}

/// Whether an identifier or keyword may start with this byte.
#[inline]
pub(super) fn starts_word(byte: u8) -> bool {
    CLASS[usize::from(byte)] == Class::Letter
}

/// Whether an identifier or keyword may go on with this byte.
#[inline]
pub(super) fn continues_word(byte: u8) -> bool {
    CONTINUES_WORD[usize::from(byte)]
}

static CLASS: [Class; 256] = classes();
static CONTINUES_WORD: [bool; 256] = word_bytes();

const fn classes() -> [Class; 256] {
    let mut table = [Class::Stray; 256];
    let mut byte = 0_usize;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => Class::Space,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80.. => Class::Letter,
            b'0'..=b'9' => Class::Digit,
            b'\'' => Class::Quote,
            b'"' => Class::DoubleQuote,
            b'$' => Class::Dollar,
            b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' => Class::Operator,
            b'+' | b'-' | b'*' | b'/' | b'%' | b'<' | b'>' | b'=' => Class::Operator,
            b'.' => Class::Dot,
            b':' => Class::Colon,
            b',' => Class::Comma,
            b';' => Class::Semicolon,
            b'(' => Class::OpenParen,
            b')' => Class::CloseParen,
            b'[' => Class::OpenBracket,
            b']' => Class::CloseBracket,
            _ => Class::Stray,
        };
        byte += 1;
    }
    table
}

const fn word_bytes() -> [bool; 256] {
    let classes = classes();
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = matches!(classes[byte], Class::Letter | Class::Digit | Class::Dollar);
        byte += 1;
    }
    table
}
