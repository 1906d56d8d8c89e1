//! Cutting typed messages out of a byte stream: five bytes of header, then a body.

use super::{BackendTag, FrontendTag, LARGE_MESSAGE_LEN_MAX, Malformed, SMALL_MESSAGE_LEN_MAX};

/// The type byte and the length word.
pub const HEADER_LEN: usize = 5;

/// The header of one message. The body may not have arrived yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The message type byte, known or not.
    pub tag: u8,
    /// Bytes of the body, the length word not counted.
    pub body_len: usize,
}

impl Header {
    /// Reads the header at the start of `bytes`; `None` while fewer than five bytes are there.
    pub fn peek(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        let Some((head, _)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let [tag, a, b, c, d] = *head;
        let word = u32::from_be_bytes([a, b, c, d]);
        let body_len = usize::try_from(word)
            .ok()
            .and_then(|len| len.checked_sub(4))
            .ok_or(Malformed::Length)?;
        if body_len > LARGE_MESSAGE_LEN_MAX {
            return Err(Malformed::Length);
        }
        Ok(Some(Self { tag, body_len }))
    }

    /// The whole message in bytes.
    pub const fn frame_len(self) -> usize {
        HEADER_LEN + self.body_len
    }

    /// The client's message that this announces, if the protocol knows it and its length is one that PostgreSQL accepts
    /// (`PQ_SMALL_MESSAGE_LIMIT` for the messages without a payload).
    pub fn frontend(self) -> Result<FrontendTag, Malformed> {
        let tag = FrontendTag::from_byte(self.tag).ok_or(Malformed::Value)?;
        let small = matches!(
            tag,
            FrontendTag::Close
                | FrontendTag::Describe
                | FrontendTag::Execute
                | FrontendTag::Flush
                | FrontendTag::Sync
                | FrontendTag::Terminate
                | FrontendTag::CopyDone
        );
        if small && self.body_len > SMALL_MESSAGE_LEN_MAX {
            return Err(Malformed::Length);
        }
        Ok(tag)
    }

    /// PostgreSQL's message that this announces, if the protocol knows it.
    pub fn backend(self) -> Result<BackendTag, Malformed> {
        BackendTag::from_byte(self.tag).ok_or(Malformed::Value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_needs_five_bytes() {
        assert_eq!(Header::peek(b"Q\0\0\0"), Ok(None));
        assert_eq!(
            Header::peek(b"Q\0\0\0\x05"),
            Ok(Some(Header { tag: b'Q', body_len: 1 }))
        );
    }

    /// Trap 2: a length below 4, negative or huge is refused before anything is allocated.
    #[test]
    fn trap_02_lengths_out_of_range_are_refused() {
        for word in [0u32, 3, 0x4000_0003, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
            let mut bytes = vec![b'Q'];
            bytes.extend(word.to_be_bytes());
            assert_eq!(Header::peek(&bytes), Err(Malformed::Length), "{word:#x}");
        }
    }

    #[test]
    fn a_sync_of_a_megabyte_is_refused() {
        let header = Header {
            tag: b'S',
            body_len: 1 << 20,
        };
        assert_eq!(header.frontend(), Err(Malformed::Length));
    }
}
