//! Bytes ⇄ messages of the PostgreSQL frontend/backend protocol. No I/O, no clock, no session state.
//!
//! The manual's chapters: "Message Formats" (protocol-message-formats), "Message Flow" (protocol-flow) and
//! "Error and Notice Message Fields" (protocol-error-fields). Reading order: [`tag`] names the messages,
//! [`frame`] cuts them, [`reader`] looks inside one, [`startup_packet`] reads the untyped first packets,
//! [`frontend_message`] and [`backend_message`] are views of bodies, [`compose`] writes what we originate and
//! [`report`] is the error or notice that we tell a peer.

pub mod backend_message;
pub mod compose;
pub mod frame;
pub mod frontend_message;
pub mod reader;
pub mod report;
pub mod startup_packet;
pub mod tag;

pub use frame::{HEADER_LEN, Header};
pub use reader::{Malformed, Reader};
pub use report::{Report, Severity, SqlState};
pub use tag::{BackendTag, FrontendTag};

/// Protocol 3.0, which every peer speaks: major in the upper 16 bits.
pub const PROTOCOL_3_0: u32 = 3 << 16;
/// Protocol 3.2 (PostgreSQL 18), whose cancel keys are up to 256 bytes long.
pub const PROTOCOL_3_2: u32 = (3 << 16) | 2;
/// The largest startup packet that PostgreSQL accepts, its length word included (`MAX_STARTUP_PACKET_LENGTH`).
pub const STARTUP_PACKET_LEN_MAX: usize = 10_000;
/// The largest message before authentication: a password or token of 64 kB and its framing (`PG_MAX_AUTH_TOKEN_LENGTH`).
pub const AUTH_MESSAGE_LEN_MAX: usize = 65_535 + 16;
/// The largest body of a message that has no payload of the user's (`PQ_SMALL_MESSAGE_LIMIT`).
pub const SMALL_MESSAGE_LEN_MAX: usize = 10_000;
/// The largest body of any message (`PQ_LARGE_MESSAGE_LIMIT`, just under 1 GiB).
pub const LARGE_MESSAGE_LEN_MAX: usize = 0x3fff_ffff - 1;
