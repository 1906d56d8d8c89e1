//! Every message type byte, named as in the manual's "Message Formats".

macro_rules! tags {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $byte:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[allow(missing_docs, reason = "the variants are the manual's own names")]
        pub enum $name { $($variant = $byte),* }

        impl $name {
            /// The message that `byte` announces; `None` for a byte that the protocol doesn't know.
            pub const fn from_byte(byte: u8) -> Option<Self> {
                match byte { $($byte => Some(Self::$variant),)* _ => None }
            }

            /// The type byte on the wire.
            pub const fn byte(self) -> u8 {
                self as u8
            }
        }
    };
}

tags! {
    /// A message from a client. `Authentication` is the family of `p` messages: PasswordMessage,
    /// SASLInitialResponse, SASLResponse and GSSResponse, which only the state of the login tells apart.
    FrontendTag {
        Bind = b'B', Close = b'C', CopyData = b'd', CopyDone = b'c', CopyFail = b'f', Describe = b'D',
        Execute = b'E', Flush = b'H', FunctionCall = b'F', Authentication = b'p', Parse = b'P', Query = b'Q',
        Sync = b'S', Terminate = b'X',
    }
}

tags! {
    /// A message from PostgreSQL.
    BackendTag {
        Authentication = b'R', BackendKeyData = b'K', BindComplete = b'2', CloseComplete = b'3',
        CommandComplete = b'C', CopyData = b'd', CopyDone = b'c', CopyInResponse = b'G', CopyOutResponse = b'H',
        CopyBothResponse = b'W', DataRow = b'D', EmptyQueryResponse = b'I', ErrorResponse = b'E',
        FunctionCallResponse = b'V', NegotiateProtocolVersion = b'v', NoData = b'n', NoticeResponse = b'N',
        NotificationResponse = b'A', ParameterDescription = b't', ParameterStatus = b'S', ParseComplete = b'1',
        PortalSuspended = b's', ReadyForQuery = b'Z', RowDescription = b'T',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_names_itself() {
        for byte in 0..=u8::MAX {
            if let Some(tag) = FrontendTag::from_byte(byte) {
                assert_eq!(tag.byte(), byte);
            }
            if let Some(tag) = BackendTag::from_byte(byte) {
                assert_eq!(tag.byte(), byte);
            }
        }
        assert_eq!(FrontendTag::from_byte(b'z'), None);
        assert_eq!(BackendTag::from_byte(0), None);
    }
}
