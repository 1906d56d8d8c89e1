//! The checked cursor over one message body: the only way to look inside it. Peer bytes are never indexed.

/// A body that does not hold what its message type promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The body ends before a field does.
    #[error("the message is shorter than its fields")]
    Truncated,
    /// A string has no terminating zero byte.
    #[error("a string in the message is not terminated")]
    Unterminated,
    /// Bytes are left after the last field.
    #[error("the message is longer than its fields")]
    TrailingBytes,
    /// A length word is negative, smaller than itself or larger than allowed.
    #[error("invalid message length")]
    Length,
    /// A field has a value that the protocol does not define.
    #[error("a field of the message has an undefined value")]
    Value,
}

/// A cursor over borrowed bytes. Every method fails with [`Malformed`] instead of reading past the end.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `body`.
    pub const fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    /// What has not been read yet.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Reads `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    /// Reads one byte.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        let (&byte, rest) = self.rest.split_first().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(byte)
    }

    /// Reads a big-endian Int16.
    pub fn i16(&mut self) -> Result<i16, Malformed> {
        self.array().map(i16::from_be_bytes)
    }

    /// Reads a big-endian Int32.
    pub fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_be_bytes)
    }

    /// Reads a big-endian Int32 as an object identifier or code.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// Reads a String: the bytes before the next zero byte, which is skipped. Not decoded: the encoding is the client's.
    pub fn cstr(&mut self) -> Result<&'a [u8], Malformed> {
        // Nearly all names are empty.
        let end = match self.rest.first() {
            Some(0) => 0,
            _ => memchr::memchr(0, self.rest).ok_or(Malformed::Unterminated)?,
        };
        let string = self.bytes(end)?;
        self.u8()?;
        Ok(string)
    }

    /// Succeeds when every byte was read.
    pub const fn finish(self) -> Result<(), Malformed> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Malformed::TrailingBytes)
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_order_and_the_end_is_checked() {
        let mut reader = Reader::new(b"ab\0\x00\x07\xff\xff\xff\xff!");
        assert_eq!(reader.cstr(), Ok(&b"ab"[..]));
        assert_eq!(reader.i16(), Ok(7));
        assert_eq!(reader.i32(), Ok(-1));
        assert_eq!(reader.finish(), Err(Malformed::TrailingBytes));
        assert_eq!(reader.u8(), Ok(b'!'));
        assert_eq!(reader.finish(), Ok(()));
        assert_eq!(reader.u8(), Err(Malformed::Truncated));
    }

    #[test]
    fn a_string_without_its_zero_is_refused() {
        assert_eq!(Reader::new(b"abc").cstr(), Err(Malformed::Unterminated));
    }
}
