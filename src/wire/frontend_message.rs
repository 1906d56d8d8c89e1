//! Views of clients' messages: names and offsets into the body, no copies. Strings stay bytes: their encoding is the client's.

use super::{Malformed, Reader};

/// What a Describe or Close is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// `S`: a prepared statement.
    Statement,
    /// `P`: a portal.
    Portal,
}

/// Query: one string of SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query<'a> {
    /// Without its zero byte.
    pub sql: &'a [u8],
}

impl<'a> Query<'a> {
    /// Reads a body.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let sql = reader.cstr()?;
        reader.finish()?;
        Ok(Self { sql })
    }
}

/// Parse: a name, a text, and the types that the client prescribes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parse<'a> {
    /// The statement's name; empty for the unnamed one.
    pub name: &'a [u8],
    /// Without its zero byte.
    pub sql: &'a [u8],
    /// Everything behind the name, as it is on the wire: text, count, types. Equal bytes mean equal statements.
    pub definition: &'a [u8],
}

impl<'a> Parse<'a> {
    /// Reads a body.
    #[allow(
        clippy::self_named_constructors,
        reason = "every view is made by parse; this one is of a Parse"
    )]
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let name = reader.cstr()?;
        let definition = reader.rest();
        let sql = reader.cstr()?;
        let count = u16::from_be_bytes(reader.i16()?.to_be_bytes());
        reader.bytes(usize::from(count) * 4)?;
        reader.finish()?;
        Ok(Self { name, sql, definition })
    }
}

/// The head of a Bind: its names. The values behind them are never looked at and need not have arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BindHead<'a> {
    /// The portal's name; empty for the unnamed one.
    pub portal: &'a [u8],
    /// The statement's name; empty for the unnamed one.
    pub statement: &'a [u8],
    /// Bytes of the body before the statement's name.
    pub statement_offset: usize,
}

impl<'a> BindHead<'a> {
    /// Reads the head of a body, of which a prefix is enough. [`Malformed::Unterminated`] means: the prefix is too short.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let portal = reader.cstr()?;
        let statement = reader.cstr()?;
        Ok(Self {
            portal,
            statement,
            statement_offset: portal.len() + 1,
        })
    }
}

/// The values of a Bind whose whole body is there, in order; `None` is NULL. Their formats are not told.
pub fn bound_values(body: &[u8]) -> Result<Vec<Option<&[u8]>>, Malformed> {
    let mut reader = Reader::new(body);
    reader.cstr()?;
    reader.cstr()?;
    for _ in 0..reader.i16()? {
        reader.i16()?;
    }
    let mut values = Vec::new();
    for _ in 0..reader.i16()? {
        values.push(match usize::try_from(reader.i32()?) {
            Ok(len) => Some(reader.bytes(len)?),
            Err(_) => None,
        });
    }
    Ok(values)
}

/// Describe or Close: a kind and a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named<'a> {
    /// Statement or portal.
    pub target: Target,
    /// Empty for the unnamed one.
    pub name: &'a [u8],
}

impl<'a> Named<'a> {
    /// Reads a body.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let target = match reader.u8()? {
            b'S' => Target::Statement,
            b'P' => Target::Portal,
            _ => return Err(Malformed::Value),
        };
        let name = reader.cstr()?;
        reader.finish()?;
        Ok(Self { target, name })
    }
}

/// Execute: a portal and the most rows to return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Execute<'a> {
    /// The portal's name.
    pub portal: &'a [u8],
    /// Zero for all.
    pub row_limit: i32,
}

impl<'a> Execute<'a> {
    /// Reads a body.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let portal = reader.cstr()?;
        let row_limit = reader.i32()?;
        reader.finish()?;
        Ok(Self { portal, row_limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parse_keeps_its_definition_apart_from_its_name() {
        let body = b"s1\0select $1\0\0\x01\0\0\0\x17";
        let parse = Parse::parse(body).unwrap();
        assert_eq!((parse.name, parse.sql), (&b"s1"[..], &b"select $1"[..]));
        assert_eq!(parse.definition, b"select $1\0\0\x01\0\0\0\x17");
        assert!(Parse::parse(b"s1\0select 1\0\0\x01").is_err());
    }

    #[test]
    fn a_bind_is_understood_from_its_head() {
        let head = BindHead::parse(b"p\0s1\0\0\0rest that has not").unwrap();
        assert_eq!(
            (head.portal, head.statement, head.statement_offset),
            (&b"p"[..], &b"s1"[..], 2)
        );
        assert_eq!(BindHead::parse(b"p\0s1"), Err(Malformed::Unterminated));
    }

    #[test]
    fn the_values_of_a_bind_are_read_where_somebody_asks_for_them() {
        let body = b"p\0s1\0\0\x01\0\0\0\x02\0\0\0\x02hi\xff\xff\xff\xff\0\0";
        assert_eq!(bound_values(body), Ok(vec![Some(&b"hi"[..]), None]));
        for len in 0..body.len() - 2 {
            assert!(bound_values(&body[..len]).is_err(), "{len}");
        }
        assert!(bound_values(b"p\0s1\0\0\0\0\x01\x7f\xff\xff\xffx").is_err());
    }

    #[test]
    fn names_and_limits_are_read() {
        assert_eq!(
            Named::parse(b"Ss1\0"),
            Ok(Named {
                target: Target::Statement,
                name: b"s1"
            })
        );
        assert_eq!(Named::parse(b"Xs1\0"), Err(Malformed::Value));
        assert_eq!(
            Execute::parse(b"\0\0\0\0\x05"),
            Ok(Execute {
                portal: b"",
                row_limit: 5
            })
        );
        assert_eq!(Query::parse(b"select 1"), Err(Malformed::Unterminated));
        assert_eq!(Query::parse(b"a\0b"), Err(Malformed::TrailingBytes));
    }
}
